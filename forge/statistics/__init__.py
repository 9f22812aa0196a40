"""Paired comparison, bootstrap intervals and corrections for many tests. numpy only."""

"""From measurements to a verdict: tables, charts and one page that opens offline. No torch."""

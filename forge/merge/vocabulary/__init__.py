"""Bring the vocabularies of models with different tokenizers into one order."""

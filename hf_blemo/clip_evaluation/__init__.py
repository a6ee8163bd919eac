"""Measures of CLIP-like models: zero-shot classification and retrieval."""

"""Pipelines of transformers that need this package."""

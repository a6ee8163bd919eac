"""Data sets made by the package itself."""

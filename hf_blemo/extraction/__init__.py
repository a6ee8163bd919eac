"""Clips to data sets of features."""

"""Clips as frames and sound."""

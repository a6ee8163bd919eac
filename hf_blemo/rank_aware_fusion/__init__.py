"""Rank-aware selective fusion: a flat, closed folder that travels to the Hub unchanged."""

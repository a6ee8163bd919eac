"""CLIP-RD, a small CLIP distilled by relational losses: a flat, closed folder that travels to the Hub unchanged."""

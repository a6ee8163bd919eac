"""Networks as encoders of clips, one file per kind."""

"""Raw clips to features: decoding, and one file per family of encoders."""

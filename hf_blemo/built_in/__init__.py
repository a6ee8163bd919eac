"""Data that the package draws itself: blends, clips, image-text pairs, and the tokenizer of their captions."""

"""For training under transformers' Trainer: collators, metrics, callbacks, adapters and publishing."""

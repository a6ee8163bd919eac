"""Image-text pairs: sources, images, processors, stored teacher embeddings and CLIP-like models."""

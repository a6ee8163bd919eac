"""Training of CLIP-RD students: settings, batches, the loop."""

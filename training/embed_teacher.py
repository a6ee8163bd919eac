# /// script
# requires-python = ">=3.10"
# # The package itself, which names all that it needs, is given by --with: docs/training.md.
# dependencies = []
# ///
"""Embeds image-caption pairs with teachers, once for all students: `hf-blemo embed` of a checkout.

Example:
    accelerate launch training/embed_teacher.py --config training/configs/embed_vit_b_16.yaml --output_dir out/store
"""

from hf_blemo.cli import run_program

if __name__ == "__main__":
    run_program("embed")

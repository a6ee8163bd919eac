# /// script
# requires-python = ">=3.10"
# # The package itself, which names all that it needs, is given by --with: docs/training.md.
# dependencies = []
# ///
"""Distils a small CLIP from a large one: `hf-blemo distill` of a checkout.

Example:
    accelerate launch training/distill_clip_rd.py --config training/configs/clip_rd_synthetic.yaml --teacher TEACHER
"""

from hf_blemo.cli import run_program

if __name__ == "__main__":
    run_program("distill")

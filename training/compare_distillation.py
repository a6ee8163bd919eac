"""Compares distillation methods on the built-in pairs: `hf-blemo compare` of a checkout.

Example:
    accelerate launch training/compare_distillation.py --config training/configs/clip_rd_comparison.yaml
"""

from hf_blemo.cli import run_program

if __name__ == "__main__":
    run_program("compare")

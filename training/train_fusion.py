"""Trains and cross-validates rank-aware selective fusion: `hf-blemo train` of a checkout.

Example:
    accelerate launch training/train_fusion.py --config training/configs/fusion_blemore.yaml --data out/blemore
"""

from hf_blemo.cli import run_program

if __name__ == "__main__":
    run_program("train")

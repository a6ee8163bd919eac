"""Measures the effect of every part of rank-aware selective fusion: `hf-blemo ablate` of a checkout.

Example:
    python training/ablate_fusion.py --config training/configs/fusion_table.yaml --data out/hicmae
"""

from hf_blemo.cli import run_program

if __name__ == "__main__":
    run_program("ablate")

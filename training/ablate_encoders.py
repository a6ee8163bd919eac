"""Measures what replacing one encoder with another costs and saves: `hf-blemo ablate-encoders` of a checkout.

Example:
    python training/ablate_encoders.py --config training/configs/encoders_synthetic.yaml
"""

from hf_blemo.cli import run_program

if __name__ == "__main__":
    run_program("ablate-encoders")

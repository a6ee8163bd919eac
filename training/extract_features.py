"""Extracts features of clips with pre-trained encoders: `hf-blemo features` of a checkout.

Example:
    accelerate launch training/extract_features.py --config training/configs/extract_blemore.yaml --data clips/
"""

from hf_blemo.cli import run_program

if __name__ == "__main__":
    run_program("features")

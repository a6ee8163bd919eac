"""Measures what replacing one encoder with another costs in Score and saves in time, starting from raw clips.

Example:
    python training/ablate_encoders.py --config training/configs/encoders_synthetic.yaml
"""

from hf_blemo.errors import one_line_errors
from hf_blemo.fusion_training.settings import EncoderAblationSettings
from hf_blemo.programs.settings import parse_settings


def main() -> None:
    settings = parse_settings(EncoderAblationSettings, description=__doc__)
    from hf_blemo.fusion_training.encoder_ablation import ablate_encoders

    ablate_encoders(settings)


if __name__ == "__main__":
    with one_line_errors():
        main()

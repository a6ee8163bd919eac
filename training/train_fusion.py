"""Trains and cross-validates rank-aware selective fusion.

Example:
    accelerate launch training/train_fusion.py --config training/configs/fusion_blemore.yaml --data out/blemore
"""

from hf_blemo.errors import one_line_errors, say
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.programs.settings import command_line, parse_settings


def main() -> None:
    settings = parse_settings(FusionSettings, description=__doc__)
    from hf_blemo.fusion_training.results import results_table
    from hf_blemo.fusion_training.run import train_fusion

    metrics = train_fusion(settings, command=command_line())
    if metrics:
        say(*results_table(metrics).split("\n"))
        say(f"Model, processor, card, metrics, plots and predictions: {settings.output_dir}")


if __name__ == "__main__":
    with one_line_errors():
        main()

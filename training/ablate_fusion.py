"""Measures the effect of every part of rank-aware selective fusion, with equal folds, seeds and budget.

Example:
    python training/ablate_fusion.py --config training/configs/fusion_table.yaml --data out/hicmae
"""

from hf_blemo.errors import one_line_errors
from hf_blemo.fusion_training.settings import AblationSettings
from hf_blemo.programs.settings import parse_settings


def main() -> None:
    settings = parse_settings(AblationSettings, description=__doc__)
    from hf_blemo.fusion_training.ablation import ablate

    ablate(settings)


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Measures what every part of rank-aware selective fusion is worth: one table, equal folds, seeds and budget.

Example:
    python training/ablate_fusion.py --config training/configs/fusion_table.yaml --data out/hicmae
"""

import json
from pathlib import Path

from hf_blemo.fusion_training.settings import AblationSettings
from hf_blemo.settings import parse_settings, run_command


def main() -> None:
    settings = parse_settings(AblationSettings, description=__doc__)
    from hf_blemo.fusion_training.ablation import ablate, markdown

    result = ablate(settings)
    output = Path(settings.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "ablation.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "ablation.md").write_text(markdown(result))
    print(f"\n{markdown(result)}\nWritten to {output / 'ablation.md'} and {output / 'ablation.json'}")


if __name__ == "__main__":
    run_command(main)

"""Compares distillation methods on the built-in pairs: one teacher, equal students, budgets and seeds.

Example:
    accelerate launch training/compare_distillation.py --config training/configs/clip_rd_comparison.yaml
"""

from hf_blemo.clip_rd_training.settings import ComparisonSettings
from hf_blemo.errors import one_line_errors, say
from hf_blemo.programs.settings import parse_settings


def main() -> None:
    settings = parse_settings(ComparisonSettings, description=__doc__)
    from hf_blemo.clip_rd_training.comparison import compare, markdown

    result = compare(settings)
    if result:
        say("", *markdown(result).split("\n"))
        say(f"Written to {settings.output_dir}/comparison.md and comparison.json")


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Distils a small CLIP from a large one.

Example:
    accelerate launch training/distill_clip_rd.py --config training/configs/clip_rd_synthetic.yaml --teacher TEACHER
"""

from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.errors import one_line_errors, say
from hf_blemo.programs.settings import command_line, parse_settings


def main() -> None:
    settings = parse_settings(DistillationSettings, description=__doc__)
    from hf_blemo.clip_rd_training.run import distill

    metrics = distill(settings, command=command_line())
    if metrics:
        history = metrics["history"]
        for name in [name for name in history[-1] if name != "step"]:
            # A scheduled term may begin later.
            rows = [row for row in history if name in row]
            shown = [f"{row[name]:10.4f} after {row['step']} steps" for row in (rows[0], rows[-1])]
            say(f"{name:<13} {' '.join(shown)}")
        say(f"Student, tokenizer, image processor and metrics: {settings.output_dir}")


if __name__ == "__main__":
    with one_line_errors():
        main()

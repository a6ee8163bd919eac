"""Distils a small CLIP from a large one.

Example:
    accelerate launch training/distill_clip_rd.py --config training/configs/clip_rd_synthetic.yaml --teacher TEACHER
"""

from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.settings import command_line, parse_settings, run_command


def main() -> None:
    settings = parse_settings(DistillationSettings, description=__doc__)
    from hf_blemo.clip_rd_training.run import distill

    metrics = distill(settings, command=command_line())
    if metrics:
        first, last = metrics["history"][0], metrics["history"][-1]
        for name in [name for name in last if name != "step"]:
            print(
                f"{name:<12} {first[name]:10.4f} after {first['step']} steps {last[name]:10.4f} after {last['step']}"
            )
        print(f"Student, tokenizer, image processor and metrics: {settings.output_dir}")


if __name__ == "__main__":
    run_command(main)

"""Runs the main job on built-in data in minutes: cross-validates a fusion, publishes it, loads it back, predicts.

Example:
    python training/demo_fusion.py --output_dir out/demo
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from hf_blemo.errors import one_line_errors
from hf_blemo.programs.settings import parse_settings, read_settings

CONFIG = Path(__file__).parent / "configs" / "fusion_synthetic.yaml"


@dataclass
class DemoSettings:
    """The settings of `training/demo_fusion.py`.

    Args:
        output_dir: output folder; the files of an earlier demo are replaced.
    """

    output_dir: str = "out/demo"


def main() -> None:
    settings = parse_settings(DemoSettings, description=__doc__)
    import torch
    from transformers import AutoModel, AutoProcessor

    from hf_blemo import blemore, feature_sets
    from hf_blemo.built_in import make_synthetic_blends
    from hf_blemo.fusion_training.results import results_table
    from hf_blemo.fusion_training.run import train_fusion
    from hf_blemo.fusion_training.settings import FusionSettings
    from hf_blemo.hub import files_to_publish, publish
    from hf_blemo.programs.tables import table

    output = Path(settings.output_dir)
    run, published = output / "fusion", output / "published"
    print("1. Train and cross-validate rank-aware fusion on the built-in data", flush=True)
    smaller = ["--seeds", "0", "1", "--synthetic.num_clips", "800"]
    arguments = ["--config", str(CONFIG), "--output_dir", str(run), "--overwrite", "true", *smaller]
    metrics = train_fusion(read_settings(FusionSettings, arguments), command="make demo")
    print(results_table(metrics))

    print("\n2. Publish to a folder the files that `hf-blemo publish --repo` would upload", flush=True)
    publish(run)
    shutil.rmtree(published, ignore_errors=True)
    for name in files_to_publish(run):
        (published / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, published / name)
    print(f"{len(files_to_publish(run))} files in {published}")

    print("\n3. Load it back with AutoModel and predict unseen clips", flush=True)
    model = AutoModel.from_pretrained(published).eval()
    processor = AutoProcessor.from_pretrained(published)
    clips = make_synthetic_blends(num_clips=200, seed=12345)
    with torch.inference_mode():
        out = model(**processor(feature_sets.read_features(clips), clips=clips["clip"]))
    blends = processor.post_process_blends(out)
    encoders = list(model.config.encoders)
    rows = []
    for index in range(6):
        truth = blemore.parse_clip_name(clips["clip"][index])
        chosen = [encoders[place] for place in out.selected_encoders[index].tolist() if place >= 0]
        rows.append(
            [
                clips["clip"][index],
                _readable(zip(truth.emotions, truth.saliences, strict=True)),
                _readable((part["emotion"], part["salience"]) for part in blends[index]),
                ", ".join(chosen),
            ]
        )
    print(table(["clip", "true", "predicted", "encoders in rank order"], rows))
    presence, salience = blemore.acc_presence(blends, clips["clip"]), blemore.acc_salience(blends, clips["clip"])
    print(f"On all {len(clips)} new clips: ACC_presence {presence:.3f}, ACC_salience {salience:.3f}")
    print(f"\nPlots: {run / 'plots'}   Card: {published / 'README.md'}")


def _readable(parts) -> str:
    return " + ".join(f"{emotion} {salience:.0f}%" for emotion, salience in parts)


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Goes from raw clips to a blend in a minute: draws clips, extracts features, trains a fusion, predicts a new clip.

Example:
    python training/demo_clips.py --student out/demo/clip_student --output_dir out/demo
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hf_blemo.errors import one_line_errors
from hf_blemo.programs.settings import parse_settings, read_settings

CONFIG = Path(__file__).parent / "configs" / "fusion_clips.yaml"


@dataclass
class DemoSettings:
    """The settings of `training/demo_clips.py`.

    Args:
        student: a CLIP trained on drawn scenes that encodes the frames; `training/demo_clip_rd.py` makes one.
        output_dir: output folder; the files of an earlier demo are replaced.
        voice: the audio encoder (default: the built-in HuBERT); `opensmile:eGeMAPSv02` needs the package opensmile,
            which is licensed for research only.
        num_clips: number of training clips.
    """

    student: str = "out/demo/clip_student"
    output_dir: str = "out/demo"
    voice: str = ""
    num_clips: int = 216


def main() -> None:
    settings = parse_settings(DemoSettings, description=__doc__)
    from transformers import pipeline

    from hf_blemo import blemore
    from hf_blemo.built_in import MODEL, make_synthetic_clips
    from hf_blemo.extraction.run import extract_features
    from hf_blemo.extraction.settings import ExtractionSettings
    from hf_blemo.fusion_training.run import train_fusion
    from hf_blemo.fusion_training.settings import FusionSettings
    from hf_blemo.prediction.clip_report import NUM_THUMBNAILS, write_report
    from hf_blemo.prediction.clip_words import blend_words

    output = Path(settings.output_dir)
    names = ("clips", "clips_new", "clip_features", "clip_fusion")
    clips, new, features, fusion = (output / name for name in names)
    for folder in (clips, new, features, fusion):
        shutil.rmtree(folder, ignore_errors=True)

    print("1. Draw short clips with picture and sound, with BlEmoRE's names, actors and folds")
    make_synthetic_clips(clips, num_clips=settings.num_clips, seed=0)
    print(f"{settings.num_clips} clips in {clips}", flush=True)

    hears = f"{settings.voice} the sound" if settings.voice else "the built-in HuBERT every 20 ms of sound"
    print(f"\n2. Extract features: the student encodes every frame, {hears}", flush=True)
    voice = settings.voice or str(Path(MODEL) / "voice")
    encoders = {"picture": {"model_id": settings.student}, "voice": {"model_id": voice}}
    made = extract_features(
        ExtractionSettings(data=str(clips), output_dir=str(features), encoders=encoders),
        report_line=lambda line: print(line, file=sys.stderr),
    )
    speed = made["media_seconds"] / made["seconds"]
    print(f"{made['clips']} clips with {made['encoders']} numbers a row, {speed:.1f} times real time")

    print("\n3. Train the fusion on them; its config names their encoders", flush=True)
    arguments = ["--config", str(CONFIG), "--data", str(features), "--output_dir", str(fusion), "--seeds", "0"]
    arguments += ["--protocol", "none", "--num_epochs", "40", "--learning_rate", "1e-3", "--weight_decay", "0.5"]
    train_fusion(read_settings(FusionSettings, [*arguments, "--model.hidden_size", "64"]), command="make demo")

    print("\n4. Predict clips of other actors with the pipeline", flush=True)
    paths = make_synthetic_clips(new, num_clips=36, seed=1)
    recognise = pipeline("blended-emotion-recognition", model=str(fusion), device="cpu")
    results = recognise([str(path) for path in paths], num_thumbnails=NUM_THUMBNAILS)
    labels = [path.stem for path in paths]
    blends = [result["blend"] for result in results]
    presence, salience = blemore.acc_presence(blends, labels), blemore.acc_salience(blends, labels)
    print(f"{len(paths)} new clips: ACC_presence {presence:.3f}, ACC_salience {salience:.3f}")
    write_report(results, output / "clips.html", str(fusion))
    print(f"Report with every clip: {output / 'clips.html'}")

    print("\n5. One of them in detail", flush=True)
    _show(paths[0], recognise(str(paths[0])), blend_words)


def _show(path: Path, result: dict, blend_words) -> None:
    from hf_blemo import blemore

    truth = blemore.parse_clip_name(path.stem)
    drawn = [{"emotion": e, "salience": s} for e, s in zip(truth.emotions, truth.saliences, strict=True)]
    print(f"{path}: {result['duration']:.1f} s, drawn as {blend_words(drawn)}")
    print(f"  predicted {blend_words(result['blend'])}")
    for name in ("probabilities", "presence", "salience"):
        values = ", ".join(f"{emotion} {value:.2f}" for emotion, value in result[name].items())
        print(f"  {name:<13} {values}")
    weights = ", ".join(f"{name} {result['encoder_weights'][name]:.2f}" for name in result["selected_encoders"])
    print(f"  {'encoders':<13} {weights}")


if __name__ == "__main__":
    with one_line_errors():
        main()

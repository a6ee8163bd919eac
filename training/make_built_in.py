"""Makes the model that the package brings along, `hf_blemo/built_in/model`: two encoders, a fusion, clips and a card.

All of it learns from drawn pictures and sounds. One machine makes the same weights every time; another one rounds
otherwise. It takes some 12 minutes on two cores.

Example:
    python training/make_built_in.py
"""

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_blemo.errors import one_line_errors, say
from hf_blemo.programs.settings import parse_settings, read_settings

CONFIGS = Path(__file__).parent / "configs"
WIDER = ("--student_config.vision_config.hidden_size", "64", "--student_config.text_config.hidden_size", "64")
FUSION = "--seeds 0 --protocol none --num_epochs 60 --learning_rate 1e-3 --weight_decay 0.5 --model.hidden_size 64"
# The first layer of sound sees 2.5 ms at once, the last 20 ms.
VOICE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": [64] * 3,
    "conv_kernel": [40, 8, 4],
    "conv_stride": [20, 4, 4],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    **{f"{part}_dropout": 0.0 for part in ("hidden", "attention", "activation", "feat_proj")},
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
VOICE_BATCH, VOICE_RATE = 16, 2e-3
# Code travels with models that may be loaded without the package; this one comes with it.
CODE = ("auto_map", "custom_pipelines")
FILES = ("config.json", "model.safetensors", "*processor_config.json", "tokenizer*.json")

CARD = """---
license: apache-2.0
library_name: transformers
tags:
- blended-emotion-recognition
- rank-aware-fusion
- hf_blemo
- toy
---

# The built-in model of hf_blemo

It shows in seconds what the package does. **It has never seen a person.** Everything it knows was drawn by
`hf_blemo.built_in.make_synthetic_clips`: short films in which coloured shapes sway (a red triangle stands for anger, a
yellow circle for happiness, ...) while a made-up voice hums in six ways, each standing for an emotion. The labels have
the names of BlEmoRE's: anger (`ang`), disgust (`disg`), fear (`fea`), happiness (`hap`), sadness (`sad`) and neutral
(`neu`). They say which of these shapes and hums a film was drawn from, and nothing else. **What the model says of a
recording of people means nothing**; do not use it to judge anybody. For recordings, train a fusion on features of real
encoders.

## How to use

```
hf-blemo predict --built-in                 # the two clips in clips/
hf-blemo demo --built-in                    # a page with these clips
```

```python
import hf_blemo
from hf_blemo.built_in import CLIPS, MODEL
from transformers import pipeline

recognise = pipeline("blended-emotion-recognition", model=MODEL)
print(recognise(CLIPS[0])["blend"])
```

The config names its encoders by `./picture` and `./voice`, folders beside it: to keep a copy, copy the whole folder.

## Parts

| part | what it is | parameters |
|---|---|---:|
| `picture/` | a CLIP, distilled by CLIP-RD on drawn scenes with captions; a row per frame | {picture:,} |
| `voice/` | a HuBERT of two layers, trained to name drawn hums; a row every 20 ms | {voice:,} |
| `model.safetensors` | the fusion of both | {fusion:,} |
| `clips/` | two drawn clips that none of them was trained on | |

## Measured

Trained on {train} drawn clips, measured on {test} others of other drawn actors, every label {each} times. A third of
the clips show their label only in the picture, a third only in the sound.

| clips | number | ACC_presence | ACC_salience |
|---|---:|---:|---:|
{rows}

ACC_presence is the share of clips whose emotions are all found, and no other; ACC_salience the share of blends whose
shares are found too. It calls {unlike} of the {test} clips unlike those it was trained on. Numbers of drawn clips say
nothing about people.

## How it was made

`python training/make_built_in.py` in the repository of hf_blemo makes every file in this folder. Weights, clips and
card: Apache-2.0.
"""


@dataclass
class BuiltInSettings:
    """The settings of `training/make_built_in.py`.

    Args:
        output_dir: folder of the finished model; replaced.
        work_dir: folder for what it is made of. What an earlier call made there is kept, but for the fusion.
        num_pairs: drawn scenes with captions to train the CLIPs on.
        num_steps: steps of each of the two CLIPs.
        num_clips: drawn clips to train on.
        num_test_clips: drawn clips to measure on.
        voice_epochs: passes through the clips whose sound shows their label.
    """

    output_dir: str = "hf_blemo/built_in/model"
    work_dir: str = "out/built_in"
    num_pairs: int = 5000
    num_steps: int = 300
    num_clips: int = 1440
    num_test_clips: int = 360
    voice_epochs: int = 12


def main() -> None:
    settings = parse_settings(BuiltInSettings, description=__doc__)
    from hf_blemo.built_in import CLIPS, make_synthetic_clips
    from hf_blemo.extraction.run import extract_features
    from hf_blemo.extraction.settings import ExtractionSettings
    from hf_blemo.fusion_training.run import train_fusion
    from hf_blemo.fusion_training.settings import FusionSettings

    work = Path(settings.work_dir)
    for name in ("fusion", "model"):
        shutil.rmtree(work / name, ignore_errors=True)
    say("1. Distil a CLIP on drawn scenes")
    picture = distilled(settings, work)
    say("2. Draw clips")
    clips, unseen, shown = (work / name for name in ("clips", "clips_unseen", "clips_shown"))
    # Those to be shown are larger and longer, for people to look at.
    larger = {"size": 192, "seconds": (3.0, 4.0)}
    drawn = (
        (clips, settings.num_clips, {"num_actors": 60}),
        (unseen, settings.num_test_clips, {}),
        (shown, 36, larger),
    )
    for seed, (folder, number, options) in enumerate(drawn):
        if not folder.exists():
            make_synthetic_clips(folder, number, seed, **options)
    say("3. Train an encoder of sound")
    voice = trained_voice(clips, work / "voice", settings.voice_epochs)
    say("4. Extract features and train the fusion")
    encoders = {name: {"model_id": str(folder)} for name, folder in (("picture", picture), ("voice", voice))}
    if not (work / "features").exists():
        extract_features(ExtractionSettings(data=str(clips), output_dir=str(work / "features"), encoders=encoders))
    arguments = ["--config", str(CONFIGS / "fusion_clips.yaml"), "--data", str(work / "features")]
    fusion = read_settings(FusionSettings, [*arguments, "--output_dir", str(work / "fusion"), *FUSION.split()])
    train_fusion(fusion, command="python training/make_built_in.py")
    say("5. Put it together and measure it")
    made = work / "model"
    for source, folder in ((work / "fusion", made), (picture, made / "picture"), (voice, made / "voice")):
        copy_model(source, folder)
    (made / "clips").mkdir()
    for path in CLIPS:
        shutil.copy(shown / Path(path).name, made / "clips")
    card = CARD.format(**measured(made, unseen), train=settings.num_clips)
    (made / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(settings.output_dir, ignore_errors=True)
    shutil.move(made, settings.output_dir)
    size = sum(path.stat().st_size for path in Path(settings.output_dir).rglob("*") if path.is_file())
    say(f"{settings.output_dir}: {size:,} bytes")


def distilled(settings: BuiltInSettings, work: Path) -> Path:
    """Trains a teacher on drawn scenes, and a student of it."""
    from hf_blemo.clip_rd_training.run import distill
    from hf_blemo.clip_rd_training.settings import DistillationSettings

    given = ["--config", str(CONFIGS / "clip_rd_synthetic.yaml"), "--num_steps", str(settings.num_steps)]
    given += ["--synthetic.num_pairs", str(settings.num_pairs)]
    teacher, student = work / "teacher", work / "picture"
    for folder, arguments in ((teacher, WIDER), (student, ("--teacher", str(teacher)))):
        if folder.exists():
            continue
        distill(read_settings(DistillationSettings, [*given, "--output_dir", str(folder), *arguments]))
    return student


def trained_voice(clips: Path, folder: Path, num_epochs: int) -> Path:
    """Trains a small HuBERT to say how much of each emotion the mean of its steps holds."""
    import numpy as np
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    from hf_blemo import blemore
    from hf_blemo.media import MediaFile

    if folder.exists():
        return folder
    names = [name for name, clear in clear_in(clips).items() if clear != "picture"]
    processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    rate = processor.sampling_rate
    sounds = [
        np.concatenate([part.samples for part in MediaFile(clips / f"{name}.mp4").read(False, [rate])])
        for name in names
    ]
    labels = torch.tensor(np.array([blemore.soft_label(name) for name in names]), dtype=torch.float32)
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**VOICE)).train()
    head = torch.nn.Linear(VOICE["hidden_size"], len(blemore.EMOTIONS))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, VOICE_RATE)
    num_steps = num_epochs * (len(names) // VOICE_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VOICE_RATE, num_steps)
    options = {"sampling_rate": rate, "padding": True, "return_attention_mask": True, "return_tensors": "pt"}
    for epoch in range(num_epochs):
        losses = []
        for rows in torch.randperm(len(names)).split(VOICE_BATCH)[: len(names) // VOICE_BATCH]:
            inputs = processor([sounds[row] for row in rows], **options)
            hidden = model(**inputs).last_hidden_state
            # Of the sound alone, not of what fills it up.
            lengths = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
            heard = (torch.arange(hidden.shape[1]) < lengths[:, None])[..., None]
            means = (hidden * heard).sum(1) / heard.sum(1)
            loss = torch.nn.functional.cross_entropy(head(means), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        say(f"epoch {epoch + 1} of {num_epochs}: loss {np.mean(losses):.3f}")
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def copy_model(source: Path, folder: Path) -> None:
    """Copies weights and settings, without code and without places on this machine."""
    folder.mkdir()
    for path in sorted(path for pattern in FILES for path in source.glob(pattern)):
        # Without the permissions of weights, which only their owner may read.
        shutil.copyfile(path, folder / path.name)
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            for name, entry in content.get("encoders", {}).items():
                entry["model_id"] = f"./{name}"
            content = {key: value for key, value in content.items() if key not in CODE}
            (folder / path.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measured(folder: Path, clips: Path) -> dict[str, Any]:
    """What the card says of the model."""
    from transformers import AutoModel, pipeline

    from hf_blemo import blemore

    recognise = pipeline("blended-emotion-recognition", model=str(folder), device="cpu")
    results = list(recognise(str(clips)))
    blends = {result["clip"]: result["blend"] for result in results}
    clear = clear_in(clips)
    rows = []
    for what, kinds in (("all", set(clear.values())), *((f"shown in {name}", {name}) for name in SHOWN)):
        names = [name for name in blends if clear[name] in kinds]
        found = [blends[name] for name in names]
        values = blemore.acc_presence(found, names), blemore.acc_salience(found, names)
        rows.append(f"| {what} | {len(names)} | {values[0]:.3f} | {values[1]:.3f} |")
        say(rows[-1])
    sizes = {name: AutoModel.from_pretrained(folder / name).num_parameters() for name in ("picture", "voice")}
    sizes["fusion"] = recognise.model.num_parameters()
    counted = {"test": len(blends), "each": len(blends) // len(blemore.LABELS)}
    return {**sizes, **counted, "unlike": sum(r["unlike_training"] for r in results), "rows": "\n".join(rows)}


SHOWN = ("picture", "sound", "both")


def clear_in(clips: Path) -> Mapping[str, str]:
    """Clip -> whether its label is shown in the picture, the sound or both."""
    with open(clips / "planted.csv", encoding="utf-8") as file:
        return {row["clip"]: row["clear"] for row in csv.DictReader(file)}


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Whatever is read or loaded, a program ends well or with one line that names it: never a traceback, never a hang.

`make test` draws a few inputs of every kind, `make fuzz` as many as LONG says. A failure names its kind and number, so
`FUZZ=kind:number pytest tests/fuzzing` draws it again.
"""

import contextlib
import io
import itertools
import json
import logging
import os
import random
import shutil
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from distribution_files import write_metadata
from huggingface_hub.errors import StrictDataclassError
from mutations import Hang, altered, altered_json, at_most, odd_array, odd_column, reworded, torn
from pair_files import encoded, pairs_of, picture, write_shards
from tiny_models import make_fusion

from hf_blemo import blemore, cli, feature_sets
from hf_blemo.built_in import make_synthetic_blends
from hf_blemo.clip_rd_training.settings import ComparisonSettings, DistillationSettings, EmbeddingSettings
from hf_blemo.errors import LONGEST_LINE, one_line_errors
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.fusion_training.data import model_config
from hf_blemo.fusion_training.settings import AblationSettings, ExperimentSettings, FusionSettings
from hf_blemo.pairs.pair_sources import PairSourceSettings, open_source
from hf_blemo.programs.settings import read_settings

CLIPS = ["A102_ang_int1_ver1", "A303_mix_ang_hap_30_70_ver1", "A9_hap_int1_ver1", "A8_sad_int1_ver1"]
CONFIGS = Path(__file__).parents[2] / "training" / "configs"
SECONDS = 20
# Kind of input -> how many are drawn in a short and in a long run.
SHORT_AND_LONG = {
    "csv": (60, 3000), "parquet": (60, 3000), "npz": (60, 3000), "npy": (40, 2500), "feature_folder": (40, 2000),
    "built": (30, 1000), "distribution": (20, 700), "json": (40, 500), "pairs": (4, 300),
    "submission": (120, 4000), "yaml": (120, 6200), "model": (40, 3000),
}  # fmt: skip
AT_ONCE = 250


def command(*arguments: object) -> Callable[[], int]:
    """A call of `hf-blemo`."""
    return lambda: cli.main([str(argument) for argument in arguments])


def guarded(read: Callable[[], object]) -> Callable[[], int]:
    """A call of what no command of `hf-blemo` reads, ended as the programs end."""

    def run() -> int:
        try:
            with one_line_errors("hf-blemo"):
                read()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


class Inputs:
    """Good inputs of every kind, made once, and the odd ones drawn from them.

    Args:
        folder: for the good ones.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        header = "clip,fold,emotion,vote_a,vote_b,actor,face.0,face.1,voice_0,voice_1\n"
        rows = [f"{clip},{n % 2},{'ab'[n % 2]},{n},{4 - n},p{n},1.5,2,{n},0.5\n" for n, clip in enumerate(CLIPS)]
        self.csv = header + "".join(rows)
        self.columns = {
            "clip": pa.array(CLIPS),
            "fold": pa.array([0, 1, 0, 1]),
            "emotion": pa.array(list("abab")),
            "actor": pa.array(list("pqpq")),
            "face": pa.array(vectors.tolist()),
            "voice": pa.array([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]], None, [[5.0, 6.0]]]),
        }
        self.arrays = {"clip": np.array(CLIPS), "fold": np.arange(4) % 2, "face": vectors, "voice": vectors[:, None]}
        data = make_synthetic_blends(num_clips=8)
        data.save_to_disk(str(folder / "built"))
        self.blends = data
        features = folder / "distribution" / "pre_extracted_train_data"
        for encoder in ("face", "voice"):
            (features / f"{encoder}_train").mkdir(parents=True)
            for clip in CLIPS:
                np.save(features / f"{encoder}_train" / f"{clip}.npy", vectors)
        (features / "open_train").mkdir()
        units = "[" + ", ".join(["0.5"] * 8) + "]"
        self.openface = "frame,emotion_index,gaze_yaw,gaze_pitch,action_units\n" + f'0,1,0.5,-0.2,"{units}"\n' * 3
        for clip in CLIPS:
            (features / "open_train" / f"{clip}.csv").write_text(self.openface)
        write_metadata(folder / "distribution", {clip: n % 2 for n, clip in enumerate(CLIPS)})
        (folder / "pairs").mkdir()
        for number in range(3):
            (folder / "pairs" / f"{number}.png").write_bytes(encoded(picture(number)))
        self.captions = [{"file_name": f"{n}.png", "caption": f"picture {n}"} for n in range(3)]
        (folder / "pairs" / "metadata.jsonl").write_text("\n".join(map(json.dumps, self.captions)))
        write_shards(folder / "shards", ["a", "b", "c"], 1)
        pairs_of(["a", "b", "c"]).to_parquet(str(folder / "pairs.parquet"))
        model, processor = make_fusion()
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        columns = {"clip": pa.array(CLIPS), "face": pa.array(np.ones((4, 6), "f4").tolist())}
        pq.write_table(pa.table(columns), folder / "features.parquet")
        predictions = {f"{clip}.mov": [{"emotion": "hap", "salience": 70.0}, {"emotion": "sad", "salience": 30.0}]
                       for clip in CLIPS}  # fmt: skip
        self.submission = {"predictions": predictions}
        (folder / "labels.csv").write_text("clip,label,face.0\n" + "".join(f"{clip},a,1\n" for clip in CLIPS))
        space = {"names": ["a", "b"], "blend_percents": [[50, 50]], "unblended": [], "label_kind": "valid"}
        self.predictions = {
            "model": ["m"], "decoding": {"name": "expected_score", "blend_share": None},
            "label_space": {**space, "presence_share": 0.1},
            "predictions": {clip: [{"emotion": "a", "salience": 100.0}] for clip in CLIPS},
            "clips": [{"clip": clip, "blend": [], "probabilities": {"a": 0.5, "b": 0.5}} for clip in CLIPS],
        }  # fmt: skip
        self.labels = folder / "labels"
        labelled = feature_sets.with_label_space(
            datasets.Dataset.from_dict(
                {
                    "clip": CLIPS,
                    "features": [{"face": [[1.0]]}] * 4,
                    "labels": [[1.0, 0.0], [0.0, 1.0]] * 2,
                    "fold": [0, 1, 0, 1],
                }
            ).cast(feature_sets.layout.dataset_features({"face": (1, "float32")}, 2)),
            feature_sets.label_spaces.space_from_entry(space, "here")[0],
        )
        labelled.save_to_disk(str(self.labels))

    def csv_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        path = work / "x.csv"
        path.write_bytes(torn(self.csv.encode(), draw) if draw.randrange(3) == 0 else reworded(self.csv, draw))
        return self._table(draw, path)

    def parquet_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        path, columns = work / "x.parquet", dict(self.columns)
        whole = draw.randrange(3) == 0
        for _ in range(0 if whole else draw.choice((1, 1, 2, 4))):
            columns[draw.choice([*columns, "labels", "features", "emotion", "x"])] = odd_column(draw, 4)
        names = list(columns)
        if draw.randrange(10) == 0:
            names[draw.randrange(len(names))] = draw.choice([*names, "", "x" * 5000, "a.b", "\x00"])
        pq.write_table(pa.Table.from_arrays(list(columns.values()), names), path)
        if whole:
            path.write_bytes(torn(path.read_bytes(), draw))
        return self._table(draw, path)

    def npz_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        path, arrays = work / "x.npz", dict(self.arrays)
        whole = draw.randrange(3) == 0
        for _ in range(0 if whole else draw.choice((1, 1, 2, 4))):
            arrays[draw.choice([*arrays, "labels", "X", "emotion", "filenames"])] = odd_array(draw, 4)
        np.savez(path, **arrays)
        if whole:
            path.write_bytes(torn(path.read_bytes(), draw))
        elif draw.randrange(5) == 0:
            with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                name = draw.choice(["face.npy", "../x.npy", "x.txt", "b.npy"])
                archive.writestr(name, torn(archive.read("face.npy"), draw))
        return self._table(draw, path)

    def _table(self, draw: random.Random, path: Path) -> Callable[[], int]:
        if draw.randrange(2):
            return command("dataset", "info", path)
        options = [
            [], ["--nan", "missing"], ["--label-column", "emotion"],
            ["--label-prefix", "vote_", "--label-kind", "soft"],
            ["--label-column", "emotion", "--folds", "2", "--group", "actor"], ["--label-column", "labels"],
            ["--label-column", "emotion", "--names", "a", "b", "--blend-percents", "50/50"],
        ]  # fmt: skip
        output = path.parent / "made"
        return command("dataset", "build", path, "--output", output, *draw.choice(options))

    def npy_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        folder = work / "x" / "face"
        folder.mkdir(parents=True)
        for number, clip in enumerate(CLIPS[:2]):
            np.save(folder / f"{clip}.npy", np.ones((2, 3), "f4") if number else odd_array(draw, 4))
        if draw.randrange(2):
            path = folder / f"{draw.choice(CLIPS[:2])}.npy"
            path.write_bytes(torn(path.read_bytes(), draw))
        return command("dataset", "info", work / "x")

    def feature_folder_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        folder = work / "x"
        shutil.copytree(self.folder / "distribution" / "pre_extracted_train_data", folder)
        for _ in range(draw.choice((1, 1, 2))):
            self._disturb(draw, folder)
        path = draw.choice(sorted(folder.rglob("*.csv")) or [folder / "open_train.csv"])
        if path.is_file():
            path.write_bytes(
                torn(self.openface.encode(), draw) if draw.randrange(2) else reworded(self.openface, draw)
            )
        return command("dataset", "info", draw.choice((folder, path.parent)) if path.is_file() else folder)

    def _disturb(self, draw: random.Random, folder: Path) -> None:
        """Something in a folder is lost, of another kind, a link, a pipe, or named as nothing is."""
        paths = sorted(folder.rglob("*"))
        path = draw.choice(paths)
        kind = draw.randrange(8)
        name = draw.choice(
            (b"\xff\xfe.npy", b"x" * 240 + b".npy", b"a b.npy", b"-x.npy", b".npy", b"\n.csv", b"x.csv")
        )
        if kind == 0:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif kind < 4:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if kind == 1:
                os.mkfifo(path)
            elif kind == 2:
                path.symlink_to(draw.choice(("/dev/zero", "/dev/null", "/nowhere", path.name, "..")))
            else:
                path.mkdir()
        elif kind == 4:
            (path if path.is_dir() else path.parent).joinpath(os.fsdecode(name)).write_bytes(b"")
        elif path.is_file():
            content = draw.choice((b"", path.read_bytes()[:9], torn(path.read_bytes(), draw)))
            path.write_bytes(content)

    def built_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        folder = work / "x"
        shutil.copytree(self.folder / "built", folder)
        name = draw.choice(("state.json", "dataset_info.json", "", "data-00000-of-00001.arrow"))
        if name.endswith("json"):
            (folder / name).write_bytes(altered_json(json.loads((folder / name).read_text()), draw))
        elif name:
            (folder / name).write_bytes(torn((folder / name).read_bytes(), draw))
        else:
            self._disturb(draw, folder)
        return command("dataset", "info", folder)

    def distribution_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        folder = work / "x"
        shutil.copytree(self.folder / "distribution", folder)
        path = folder / "train_metadata.csv"
        text = path.read_text()
        if draw.randrange(2):
            path.write_bytes(torn(text.encode(), draw) if draw.randrange(3) == 0 else reworded(text, draw))
        else:
            self._disturb(draw, folder)
        return command("dataset", "build", folder, "--output", work / "made")

    def json_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        path = work / "x.json"
        path.write_bytes(altered_json(self.predictions, draw))
        return command("evaluate", "--predictions", path, "--labels", self.labels)

    def pairs_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        kind = draw.randrange(3)
        path = work / ("x", "x.parquet", "x.tar")[kind]
        if kind == 0:
            shutil.copytree(self.folder / "pairs", path)
            lines = "\n".join(json.dumps(altered(row, draw)) for row in self.captions)
            (path / "metadata.jsonl").write_bytes(lines.encode())
            if draw.randrange(2):
                self._disturb(draw, path)
        elif kind == 1:
            path.write_bytes(torn((self.folder / "pairs.parquet").read_bytes(), draw))
        else:
            path.write_bytes(torn(next((self.folder / "shards").iterdir()).read_bytes(), draw))

        def read() -> None:
            open_source(PairSourceSettings(data=str(path), streaming=bool(draw.randrange(2)))).first(3)

        return guarded(read)

    def submission_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        path = work / draw.choice(("x.json", "x.zip"))
        content = altered_json(self.submission, draw)
        if path.suffix == ".json":
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(draw.choice((1, 1, 1, 2))):
                    name = draw.choice((*[blemore.submission.SUBMISSION_FILE] * 3, "x/", "../x"))
                    archive.writestr(name, content, draw.choice((0, 8, 12, 14)))
            if draw.randrange(2):
                path.write_bytes(torn(path.read_bytes(), draw))
        if draw.randrange(2):
            return command("submit", "--check", path)
        return command("evaluate", "--predictions", path)

    def yaml_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        path = work / "x.yaml"
        original = draw.choice(sorted(CONFIGS.iterdir()))
        text = original.read_text()
        kind = draw.randrange(4)
        if kind == 0:
            path.write_bytes(torn(text.encode(), draw))
        elif kind == 1:
            path.write_bytes(reworded(text, draw, ":\n"))
        else:
            content = altered(yaml.safe_load(text), draw)
            path.write_text(yaml.safe_dump(content), encoding="utf-8", errors="surrogatepass")
        classes = {
            "fusion": (FusionSettings, AblationSettings), "embed": (EmbeddingSettings,),
            "encod": (ExtractionSettings,), "extra": (ExtractionSettings,),
            "clip_r": (DistillationSettings, ComparisonSettings),
        }  # fmt: skip
        chosen = draw.choice(next(found for name, found in classes.items() if original.name.startswith(name)))

        def read() -> None:
            needed = ["--data", "synthetic"] if issubclass(chosen, ExperimentSettings) else []
            settings: Any = read_settings(chosen, ["--config", str(path), *needed])
            if isinstance(settings, FusionSettings):
                try:
                    model_config(self.blends, settings)
                except (ValueError, StrictDataclassError) as error:
                    # It names a setting, not the file.
                    raise ValueError(f"{path}: {error}") from error

        return guarded(read)

    def model_input(self, draw: random.Random, work: Path) -> Callable[[], int]:
        folder = work / "x"
        shutil.copytree(self.folder / "model", folder)
        name = draw.choice(("config.json", "config.json", "processor_config.json", "model.safetensors", ""))
        path = folder / name
        if name.endswith("json"):
            path.write_bytes(altered_json(json.loads(path.read_text()), draw))
        elif name:
            weights = path.read_bytes()
            size = int.from_bytes(weights[:8], "little")
            if draw.randrange(2):
                header = altered_json(json.loads(weights[8 : 8 + size]), draw)
                path.write_bytes(len(header).to_bytes(8, "little") + header + weights[8 + size :])
            else:
                path.write_bytes(torn(weights[: size + 64], draw) + weights[size + 64 :])
            if draw.randrange(4) == 0:
                index = {"metadata": {}, "weight_map": {"heads.label_percent": "model.safetensors"}}
                (folder / "model.safetensors.index.json").write_bytes(altered_json(index, draw))
                path.rename(folder / draw.choice(("model-1.safetensors", "model.safetensors")))
        else:
            self._disturb(draw, folder)
        return command("predict", "--model", folder, "--features", self.folder / "features.parquet")


def fault_of(run: Callable[[], int], name: str) -> str | None:
    """What is wrong with how a call ends; None where it ends well, or with one line that names what was read."""
    errors = io.StringIO()
    # Handlers of logging write to the stderr that they were made with.
    logging.disable(logging.CRITICAL)
    try:
        with (
            at_most(SECONDS), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            code = run()
    except Hang as hang:
        return f"hang: {hang}, at {traceback.extract_tb(hang.__traceback__)[-1]}"
    except BaseException as error:
        place = [frame for frame in traceback.extract_tb(error.__traceback__) if "hf_blemo/" in frame.filename][-1]
        return (
            f"traceback: {type(error).__name__}: {str(error)[:150]!r}, from {Path(place.filename).name}:{place.lineno}"
        )
    finally:
        logging.disable(logging.NOTSET)
    text = errors.getvalue().strip()
    if code == 0:
        return None
    lines = [line for line in text.splitlines() if ": error: " in line]
    if code != 2 or len(lines) != 1 or text.splitlines()[-1] != lines[0] or len(lines[0]) > LONGEST_LINE + 100:
        return f"ends with {code} and {text[:300]!r}"
    return None if name in lines[0] else f"does not name {name}: {lines[0][:300]!r}"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("good"))


def draws() -> list[tuple[str, range]]:
    """Kinds and numbers of the inputs to draw."""
    asked = os.environ.get("FUZZ", "short")
    if ":" in asked:
        kind, number = asked.split(":")
        return [(kind, range(int(number), int(number) + 1))]
    counts = {kind: both[asked == "long"] for kind, both in SHORT_AND_LONG.items()}
    return [
        (kind, range(first, min(first + AT_ONCE, count)))
        for kind, count in counts.items()
        for first in range(0, count, AT_ONCE)
    ]


@pytest.mark.parametrize(("kind", "numbers"), draws(), ids=lambda value: str(getattr(value, "start", value)))
def test_odd_inputs_end_well_or_with_one_line(inputs, tmp_path, monkeypatch, kind, numbers):
    monkeypatch.chdir(tmp_path)
    faults = {}
    for number in numbers:
        draw = random.Random(f"{kind}:{number}")
        work = tmp_path / str(number)
        work.mkdir()
        fault = fault_of(getattr(inputs, f"{kind}_input")(draw, work), "x")
        if fault is not None:
            faults[f"{kind}:{number}"] = fault
        shutil.rmtree(work)
    shown = "\n".join(f"{name} {fault}" for name, fault in itertools.islice(faults.items(), 1000))
    assert not faults, f"{len(faults)} of {len(numbers)} inputs\n{shown}"

"""Where one of several processes fails, whatever and wherever, all end within seconds and name it.

`make test` draws a few failures on two processes, `make fuzz` makes all of them on two and on four.
`FUZZ=processes:NUMBER pytest tests/fuzzing/test_failing_processes.py` makes one again.
"""

import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from failing_process import ERRORS, owner_of
from fresh_processes import PACKAGE_FOLDER, run_python

HELPERS = Path(__file__).parents[1] / "helpers"
# A short draw shares the machine with other tests.
SECONDS = 10.0 if os.environ.get("FUZZ") else 40.0
SHORT = 4
CONFIGS = PACKAGE_FOLDER / "training" / "configs"
DISTILL = (
    *("--config", CONFIGS / "clip_rd_synthetic.yaml", "--weight_schedule", "{}", "--synthetic.num_pairs", 64),
    *("--batch_size", 16, "--num_steps", 6, "--log_every", 2, "--checkpoint_every", 2, "--num_workers", 0),
    *("--evaluation", "{drawn: {kind: synthetic, options: {images: 8}}}"),
)
CLIPS = ("--synthetic.num_clips", 6, "--encoders.student.extraction", "{frames_per_second: 2.0}", "--num_threads", 1)
FUSION = (
    *("--synthetic.num_clips", 40, "--data", "synthetic", "--seeds", 0, "--num_epochs", 2, "--model.hidden_size", 8),
    *("--batch_size", 16, "--checkpoint_every", 1, "--patience", 0),
)
# Program -> its arguments.
PROGRAMS = {
    "distill_clip_rd": (*DISTILL, "--teacher", "{teacher}"),
    "distill_clip_rd, workers": (*DISTILL, "--teacher", "{teacher}", "--num_workers", 1),
    "embed_teacher": (
        *("--teachers.tiny", "{teacher}", "--data", "synthetic", "--synthetic.num_pairs", 40, "--rows_per_shard", 5),
    ),
    "train_fusion": FUSION,
    "ablate_fusion": (*FUSION, "--only", "rank-aware, n = 1", "mean of all"),
    "compare_distillation": (
        *("--config", CONFIGS / "clip_rd_comparison.yaml", "--synthetic.num_pairs", 64, "--batch_size", 16),
        *("--num_steps", 2, "--teacher_steps", 2, "--seeds", 0, "--methods", "CLIP-RD", "--num_workers", 0),
        *("--evaluation", "{drawn: {kind: synthetic, options: {images: 8}}}"),
    ),
    "extract_features": ("--encoders.student.model_id", "{student}", "--data", "synthetic", *CLIPS),
}
EVERY, FIRST = None, 0


class Place(NamedTuple):
    """A function in which a process fails.

    Args:
        of: a key of `PROGRAMS`, which begins with that of `training/`.
        name: `module:function`, the module without the package.
        rank: the only process that is ever there; all are by default.
        calls: the most calls of it that happen on every process.
        how: what it fails by where not anything.
    """

    of: str
    name: str
    rank: int | None = EVERY
    calls: int = 1
    how: Sequence[str] = (*ERRORS, "kill", "exit")


RUN, BATCHES, DISTILLER = "clip_rd_training.run", "clip_rd_training.batches", "clip_rd.distillation_clip_rd"
EXTRACT = "extraction.run"
EMBED, FUSED, LOCKSTEP = "clip_rd_training.embedding", "fusion_training.run", "fusion_training.lockstep"
PLACES = [
    # Before the first step.
    Place("distill_clip_rd", f"{RUN}:set_seed"),
    Place("distill_clip_rd", f"{RUN}:make_tasks", FIRST),
    Place("distill_clip_rd", f"{RUN}:open_source"),
    Place("distill_clip_rd", f"{RUN}:open_teacher"),
    Place("distill_clip_rd", f"{RUN}:TrainingPushes"),
    # Reading and decoding.
    Place("distill_clip_rd", f"{BATCHES}:PairBatches._batch", calls=6),
    Place("distill_clip_rd", "clip_rd_training.reading:PairReader.read", calls=24),
    Place("distill_clip_rd", "pairs.images:to_rgb", calls=24),
    # A worker reads; what one has forked must not hide that a process was killed.
    Place("distill_clip_rd, workers", f"{BATCHES}:PairBatches._batch", calls=6, how=[*ERRORS]),
    Place("distill_clip_rd, workers", f"{RUN}:_Training._step", calls=6, how=["kill", "exit"]),
    # A step.
    Place("distill_clip_rd", f"{DISTILLER}:CLIPRDDistiller._embed_student", calls=6),
    Place("distill_clip_rd", f"{DISTILLER}:CLIPRDDistiller._embed_teacher", calls=6),
    Place("distill_clip_rd", "clip_rd.losses_clip_rd:CLIPRDLoss.forward", calls=6),
    Place("distill_clip_rd", "clip_rd.gathering_clip_rd:Processes.gather", calls=6),
    Place("distill_clip_rd", "clip_rd.gathering_clip_rd:Processes.sum", calls=6),
    Place("distill_clip_rd", f"{RUN}:Accelerator.backward", calls=6),
    Place("distill_clip_rd", "clip_rd.gathering_clip_rd:Processes.scatter_sum", calls=6),
    Place("distill_clip_rd", f"{RUN}:Accelerator.clip_grad_norm_", calls=6),
    Place("distill_clip_rd", f"{RUN}:DataPosition.share", calls=3),
    # Evaluation, checkpoints and the end.
    Place("distill_clip_rd", f"{RUN}:ClipEvaluator.evaluate", FIRST),
    Place("distill_clip_rd", f"{RUN}:Accelerator.save_state", calls=3),
    Place("distill_clip_rd", "programs.checkpoints:replace_folder", FIRST, calls=3),
    Place("distill_clip_rd", f"{RUN}:_Training.save_student", FIRST),
    Place("distill_clip_rd", f"{RUN}:write_card", FIRST),
    Place("embed_teacher", f"{EMBED}:load_clip"),
    Place("embed_teacher", f"{EMBED}:_ShardPairs.__getitem__", calls=2),
    Place("embed_teacher", f"{EMBED}:_side", calls=4),
    Place("embed_teacher", "pairs.teacher_store:StoreDescription.write_shard", calls=2),
    Place("embed_teacher", f"{EMBED}:store_card", FIRST),
    Place("train_fusion", f"{FUSED}:load_data"),
    Place("train_fusion", "fusion_training.feature_store:FeatureStore.batch", calls=8),
    Place("train_fusion", f"{LOCKSTEP}:_StackedModels.forward", calls=8),
    Place("train_fusion", f"{FUSED}:Accelerator.backward", calls=4),
    Place("train_fusion", f"{LOCKSTEP}:Lockstep.predict", calls=2),
    Place("train_fusion", f"{FUSED}:Accelerator.gather", calls=4),
    Place("train_fusion", f"{FUSED}:Accelerator.save_state", calls=4),
    Place("train_fusion", f"{FUSED}:write_card", FIRST),
    Place("ablate_fusion", "fusion_training.ablation:measure_variant"),
    Place("ablate_fusion", "fusion_training.ablation:OutOfFold.load"),
    Place("ablate_fusion", "fusion_training.ablation:write_json", FIRST),
    Place("compare_distillation", "clip_rd_training.comparison:distill", calls=2),
    Place("compare_distillation", "clip_rd_training.comparison:ClipEvaluator.evaluate", FIRST, calls=2),
    Place("compare_distillation", f"{RUN}:_Training._step", calls=4),
    Place("extract_features", f"{EXTRACT}:refuse_existing", FIRST, calls=2),
    Place("extract_features", f"{EXTRACT}:_listed"),
    Place("extract_features", f"{EXTRACT}:load_encoders"),
    Place("extract_features", f"{EXTRACT}:_write_clip"),
    Place("extract_features", f"{EXTRACT}:_assemble", FIRST),
]


def failure(number: int, place: Place, processes: int) -> dict[str, object]:
    """What happens to a place; the same whenever it is asked for."""
    draw = random.Random(f"{number} of {processes}")
    rank = draw.randrange(processes) if place.rank is None else place.rank
    return {"rank": rank, "place": place.name, "call": 1 + draw.randrange(place.calls), "how": draw.choice(place.how)}


def draws() -> list[tuple[int, int]]:
    """Numbers of places, and of processes."""
    asked = os.environ.get("FUZZ", "short")
    every = [(number, processes) for processes in (2, 4) for number in range(len(PLACES))]
    if asked == "long":
        return every
    if ":" in asked:
        kind, _, number = asked.partition(":")
        return [one for one in every if kind == "processes" and one[0] == int(number)]
    # Others every time the table grows.
    return [(number, 2) for number in random.Random(len(PLACES)).sample(range(len(PLACES)), SHORT)]


def test_every_place_is_there():
    for place in PLACES:
        owner, name = owner_of(place.name)
        assert callable(getattr(owner, name, None)), place.name


@pytest.mark.parametrize(("number", "processes"), draws())
def test_all_processes_end_when_one_fails(number, processes, trained_teacher, trained_student, tmp_path):
    place = PLACES[number]
    given = failure(number, place, processes)
    models = {"{teacher}": trained_teacher, "{student}": trained_student}
    arguments = [str(models.get(argument, argument)) for argument in PROGRAMS[place.of]]
    name = f"{place.of.split(',')[0]}.py"
    program = PACKAGE_FOLDER / "training" / name
    command = [HELPERS / "failing_process.py", json.dumps(given), program, *arguments, "--output_dir", "out"]
    done = run_python(command, cwd=tmp_path, processes=processes, patience=2 * SECONDS)
    failed_at = re.search(r"fails at ([\d.]+)", done.stderr)
    assert failed_at is not None, f"{given} is never reached\n{done.stderr[-3000:]}"
    seconds = [round(ended - float(failed_at[1]), 1) for ended in done.ended]
    print(f"{place.of} {given}: codes {done.codes} after {seconds} seconds")
    assert None not in done.codes and max(seconds) < SECONDS, f"{done.codes} {seconds}\n{done.stderr[-3000:]}"
    others = [code for rank, code in enumerate(done.codes) if rank != given["rank"]]
    own = done.codes[given["rank"]]
    assert len(set(others)) == 1 and others[0] > 0
    assert own == {"kill": -9, "exit": 3}.get(str(given["how"]), others[0])
    named = re.findall(rf"^{name}: error: process {given['rank']} of {processes}: ", done.stderr, re.M)
    assert len(named) >= processes - 1, done.stderr[-3000:]

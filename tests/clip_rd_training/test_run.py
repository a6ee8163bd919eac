"""Whole distillations of tiny models: they learn, leave a folder that loads, and do not depend on the processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import accelerate.accelerator as accelerator_module
import pytest
import torch
from accelerate.state import AcceleratorState
from fresh_processes import run_python
from huggingface_hub.errors import StrictDataclassFieldValidationError
from pair_files import write_shards
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, pipeline

from hf_blemo.built_in import make_synthetic_pairs, synthetic_tokenizer
from hf_blemo.clip_evaluation.evaluator import ClipEvaluator
from hf_blemo.clip_evaluation.tasks import make_tasks
from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.clip_rd_training import run
from hf_blemo.clip_rd_training.run import History, _Evaluations, _learning_rate, _Training, distill, make_optimizer
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.clip_rd_training.students import make_student
from hf_blemo.pairs.clip_models import load_clip

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_teacher_the_contrastive_loss_is_learned(teacher):
    metrics = json.loads((teacher / "metrics.json").read_text())
    first, last = metrics["history"][0], metrics["history"][-1]
    assert set(first) == {"step", "loss", "task", "logit_scale", "learning_rate"}
    assert last["task"] < first["task"] and last["step"] == 20 and len(metrics["history"]) == 10


def test_a_student_learns_every_term_and_loads_with_all_it_needs(teacher, tmp_path, settings_for):
    output = tmp_path / "student"
    metrics = distill(settings_for(output, "--teacher", teacher, "--num_steps", 20), command="python x.py")
    first, last = metrics["history"][0], metrics["history"][-1]
    for name in ("loss", "task", "fd", "hrd", "icl"):
        assert last[name] < first[name], name
    assert metrics == json.loads((output / "metrics.json").read_text())
    assert not any("teacher" in name or "cross_scale" in name for name in load_file(output / "model.safetensors"))
    student = AutoModel.from_pretrained(output)
    assert student.num_parameters() == metrics["num_parameters"]
    tokenizer, image_processor = AutoTokenizer.from_pretrained(output), AutoImageProcessor.from_pretrained(output)
    pairs = make_synthetic_pairs(3, seed=9)
    inputs = {
        "pixel_values": image_processor(images=list(pairs["image"]), return_tensors="pt")["pixel_values"],
        **tokenizer(list(pairs["caption"]), padding=True, return_tensors="pt"),
    }
    assert student(**inputs).logits_per_image.shape == (3, 3)
    classify = pipeline("zero-shot-image-classification", model=str(output), device="cpu")
    found = classify(pairs[0]["image"], candidate_labels=["a red square", "a blue ring"])
    assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-5)


def test_cached_chunks_end_with_the_same_student(teacher, tmp_path, settings_for):
    for name, chunk_size in (("whole", 0), ("chunks", 5)):
        distill(settings_for(tmp_path / name, "--teacher", teacher, "--chunk_size", chunk_size))
    whole, chunks = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "chunks"))
    for name, value in whole.items():
        torch.testing.assert_close(chunks[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: name + text)


def test_two_processes_end_with_the_student_of_one(teacher, tmp_path, settings_for, quick):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    program = [str(ROOT / "training" / "distill_clip_rd.py"), *quick, "--teacher", str(teacher), "--dtype", "float64"]
    watched = [ROOT / "tests" / "helpers" / "watched_processes.py"]
    for name, start, processes in (("one", [], 1), ("two", watched, 2)):
        command = [*start, *program, "--output_dir", tmp_path / name]
        done = run_python(command, cwd=tmp_path, env=environment, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the group has ended") == 2
    metrics = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")}
    assert [metrics[name]["num_processes"] for name in ("one", "two")] == [1, 2]
    assert metrics["two"]["history"][-1]["loss"] == pytest.approx(metrics["one"]["history"][-1]["loss"], rel=1e-9)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    start = make_student(settings_for(tmp_path))[0].state_dict()
    moved = max((one[name] - start[name]).abs().max().item() for name in one)
    for name, value in one.items():
        assert (two[name] - value).abs().max() < 1e-6 < 0.1 * moved, name


KINDS_OF_DATA = {
    "table": [],
    "stream": [
        *("--data", "{shards}", "--streaming", "true", "--shuffle_block", "7", "--num_workers", "2"),
        *("--augmentation.scale", "[0.5, 1.0]", "--ema_decay", "0.9", "--tokenizer", "{teacher}"),
        *("--evaluation", "{{drawn: {{kind: synthetic, options: {{images: 8}}}}}}", "--evaluate_every", "5"),
    ],
}


@pytest.mark.parametrize("arguments", KINDS_OF_DATA.values(), ids=KINDS_OF_DATA.keys())
def test_a_run_killed_and_resumed_ends_bit_for_bit_as_one_left_alone(
    teacher, tmp_path, quick, settings_for, arguments
):
    shards = write_shards(tmp_path / "shards", list(make_synthetic_pairs(50)["caption"]), 3, torn=(7,))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    options = ["--teacher", str(teacher), "--num_steps", "12", "--checkpoint_every", "1", "--log_every", "5"]
    options += [argument.format(shards=shards, teacher=teacher) for argument in arguments]
    options += ["--student_config.text_config.attention_dropout", "0.2"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    distill(settings_for(alone, *options))
    program = [sys.executable, str(ROOT / "training" / "distill_clip_rd.py"), *quick, *options, "--output_dir"]
    child = subprocess.Popen([*program, str(killed)], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "step_00003").is_dir() and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (killed / "metrics.json").exists()
    resumed = [*program, str(killed), "--resume", "true"]
    assert run_python(resumed[1:], cwd=tmp_path, env=environment).returncode == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes(), name
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (alone, killed))
    for key in ("history", "evaluations", "data"):
        assert one[key] == other[key], key
    assert [row["step"] for row in one["history"]] == [5, 10, 12]
    assert [row["step"] for row in one["evaluations"]] == ([5, 10, 12] if arguments else [])
    # Twelve batches of sixteen are almost four passes over the shards, with the torn picture in each.
    assert one["data"]["seen"] == 192 + one["data"]["broken"] and (one["data"]["broken"] >= 2) == bool(arguments)
    with pytest.raises(ValueError, match="resume: learning_rate is 0.5 and was 0.002"):
        distill(settings_for(killed, *options, "--resume", "true", "--learning_rate", "0.5"))


class Killed(BaseException):
    """Ends a run where it is, as a signal does."""


def killed_at(patch, moment):
    """Has the run end in the middle of what it does after the third step, or at the end."""
    calls = []
    # A checkpoint has four parts beside the weights: average, history, position and evaluations.
    last = {"a checkpoint is written": 10, "the student is written": 1}.get(moment, 3)

    def after_a_part(original):
        def call(*arguments, **options):
            original(*arguments, **options)
            calls.append(arguments)
            if len(calls) == last:
                raise Killed

        return call

    def half_dropped(path, **options):
        if options or not path.name.startswith("step_"):
            return shutil_rmtree(path, **options)
        next(file for file in sorted(path.iterdir()) if file.is_file()).unlink()
        raise Killed

    def never(path, target):
        calls.append(path)
        if len(calls) == last:
            raise Killed
        return os_rename(path, target)

    shutil_rmtree, os_rename = shutil.rmtree, os.rename
    if moment == "a checkpoint is written":
        patch.setattr("accelerate.accelerator.save_custom_state", after_a_part(accelerator_module.save_custom_state))
    elif moment == "a checkpoint gets its name":
        patch.setattr(os, "rename", never)
    elif moment == "an old checkpoint is dropped":
        patch.setattr("hf_blemo.programs.checkpoints.shutil.rmtree", half_dropped)
    else:
        patch.setattr(CLIPRDModel, "save_pretrained", after_a_part(CLIPRDModel.save_pretrained))


MOMENTS = (
    "a checkpoint is written",
    "a checkpoint gets its name",
    "an old checkpoint is dropped",
    "the student is written",
)


def test_a_run_may_be_killed_at_every_moment_of_a_checkpoint(teacher, tmp_path, settings_for):
    arguments = ("--teacher", teacher, "--num_steps", 5, "--checkpoint_every", 1, "--ema_decay", 0.9)
    arguments += ("--student_config.text_config.attention_dropout", 0.2)
    alone = distill(settings_for(tmp_path / "alone", *arguments))
    for moment in MOMENTS:
        output = tmp_path / moment
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, moment)
            with pytest.raises(Killed):
                distill(settings_for(output, *arguments))
        assert not (output / "metrics.json").exists(), moment
        complete = "step_00005" if moment == "the student is written" else "step_00002"
        assert (output / "checkpoints" / complete).is_dir(), moment
        resumed = distill(settings_for(output, *arguments, "--resume", "true"))
        assert resumed["history"] == alone["history"] and resumed["data"] == alone["data"], moment
        name = "model.safetensors"
        assert (output / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), moment
        left = {path.name for path in (output / "checkpoints").iterdir()}
        assert left == {"settings.json", "step_00004", "step_00005"}, moment


def test_a_finished_run_resumed_trains_no_more(teacher, tmp_path, settings_for, monkeypatch):
    arguments = ("--teacher", teacher, "--checkpoint_every", 4)
    metrics = distill(settings_for(tmp_path / "student", *arguments))
    weights = (tmp_path / "student" / "model.safetensors").read_bytes()
    monkeypatch.setattr(_Training, "_step", lambda *_: pytest.fail("a step was trained"))
    # Tables are read alike by any number of workers.
    again = distill(settings_for(tmp_path / "student", *arguments, "--resume", "true", "--num_workers", 1))
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == weights
    for key in ("history", "data", "evaluations"):
        assert again[key] == metrics[key], key


def test_a_stream_goes_on_with_as_many_workers_alone(teacher, tmp_path, settings_for):
    shards = write_shards(tmp_path / "shards", list(make_synthetic_pairs(40)["caption"]), 2)
    arguments = ("--data", shards, "--synthetic", "{}", "--streaming", "true", "--teacher", teacher)
    arguments += ("--checkpoint_every", 1, "--num_steps", 2)
    metrics = distill(settings_for(tmp_path / "student", *arguments))
    assert metrics["data"]["sources"][0]["pairs"] is None and metrics["data"]["seen"] == 32
    with pytest.raises(ValueError, match="resume: num_workers is 1 and was 0"):
        distill(settings_for(tmp_path / "student", *arguments, "--resume", "true", "--num_workers", 1))


def test_the_average_is_what_is_evaluated(teacher, tmp_path, settings_for, monkeypatch):
    tasks = {"drawn": {"kind": "synthetic", "options": {"images": 8}}}
    arguments = ("--teacher", teacher, "--ema_decay", 0.9, "--evaluation", json.dumps(tasks))
    features = []
    original = _Evaluations.add

    def add(self, student, step):
        tokens = self.processor.captions(["one small red ring", "two large striped red rings on the left"])
        with torch.no_grad():
            features.append((student.eval().get_text_features(**tokens), tokens))
        return original(self, student, step)

    monkeypatch.setattr(_Evaluations, "add", add)
    found = distill(settings_for(tmp_path / "student", *arguments))["evaluation"]["tasks"]
    clip = load_clip(str(tmp_path / "student"))
    # To the last bit the same towers, with positions that no average has moved.
    [(embeds, tokens)] = features
    with torch.no_grad():
        assert torch.equal(clip.model.get_text_features(**tokens), embeds)
    assert ClipEvaluator(make_tasks(tasks)).evaluate(clip.model, clip.processor) == found


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_read_ends_a_run_with_one_line(teacher, tmp_path, settings_for, workers):
    pairs = make_synthetic_pairs(20)
    data = pairs.remove_columns("caption").add_column("caption", [" "] * 20)
    data.save_to_disk(str(tmp_path / "pairs"))
    # Without terms of a teacher nothing is read before the first step.
    arguments = ("--synthetic", "{}", "--data", tmp_path / "pairs", "--tokenizer", teacher)
    with pytest.raises(ValueError) as error:
        distill(settings_for(tmp_path / "student", *arguments, "--num_workers", workers))
    message = str(error.value)
    assert message.startswith("100 pairs in a row could not be read; the last: ") and "\n" not in message
    assert message.endswith("found the caption ' ', expected text")


def test_the_saved_student_may_be_a_moving_average(tmp_path, settings_for, monkeypatch):
    seen = []
    original = _Training._step

    def step(self, *arguments):
        terms = original(self, *arguments)
        seen.append({name: value.clone() for name, value in self.distiller.student.state_dict().items()})
        return terms

    monkeypatch.setattr(_Training, "_step", step)
    distill(settings_for(tmp_path / "student", "--num_steps", 3, "--ema_decay", 0.5))
    saved = load_file(tmp_path / "student" / "model.safetensors")
    for name, value in saved.items():
        # The average begins with the weights after the first step.
        expected = 0.5 * (0.5 * seen[0][name] + 0.5 * seen[1][name]) + 0.5 * seen[2][name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert any((saved[name] - seen[2][name]).abs().max() > 1e-4 for name in saved)


def test_a_student_is_evaluated_on_its_way(teacher, tmp_path, settings_for, with_plots):
    tasks = "{drawn: {kind: synthetic, options: {images: 20}}}"
    arguments = ("--teacher", teacher, "--evaluation", tasks, "--evaluate_every", 4, "--evaluate_teacher", "true")
    metrics = distill(settings_for(tmp_path / "student", *arguments))
    assert [row["step"] for row in metrics["evaluations"]] == [4, 6]
    assert metrics["evaluation"] == metrics["evaluations"][-1]
    evaluator = ClipEvaluator(make_tasks({"drawn": {"kind": "synthetic", "options": {"images": 20}}}))
    for folder, found in ((tmp_path / "student", metrics["evaluation"]), (teacher, metrics["teacher_evaluation"])):
        clip = load_clip(str(folder))
        assert evaluator.evaluate(clip.model, clip.processor) == found["tasks"]
    # The card has them, and the plots are there.
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"{metrics['evaluation']['tasks']['retrieval']['image_to_text_r@5']:.1%}" in card
    plots = {path.stem for path in (tmp_path / "student" / "plots").iterdir()}
    assert plots == {"loss_terms", "evaluations", "similarity"}


def test_too_many_broken_pairs_end_the_run_and_keep_its_checkpoints(tmp_path, quick, settings_for):
    pairs = make_synthetic_pairs(200)
    captions = [caption if number % 10 else " " for number, caption in enumerate(pairs["caption"])]
    pairs.remove_columns("caption").add_column("caption", captions).save_to_disk(str(tmp_path / "pairs"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    options = ["--synthetic", "{}", "--data", str(tmp_path / "pairs"), "--tokenizer", str(tmp_path / "tokenizer")]
    options += ["--num_steps", "20", "--checkpoint_every", "2"]
    program = [sys.executable, str(ROOT / "training" / "distill_clip_rd.py"), *quick, *options]
    program += ["--output_dir", str(tmp_path / "student")]
    synthetic_tokenizer().save_pretrained(tmp_path / "tokenizer")
    done = run_python(program[1:], cwd=tmp_path, env=environment)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "pairs could not be read, more than max_broken_share 0.05 allows; for instance:" in last
    assert "found the caption ' ', expected text" in last
    assert list((tmp_path / "student" / "checkpoints").glob("step_*"))
    more = settings_for(tmp_path / "student", *options, "--max_broken_share", "0.2", "--num_steps", "3")
    data = distill(more)["data"]
    assert data["seen"] == 48 + data["broken"] and data["broken_examples"]


def test_gradients_are_clipped(teacher, tmp_path, settings_for, monkeypatch):
    norms = {}
    original = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        gradients = [value.grad for group in self.param_groups for value in group["params"] if value.grad is not None]
        norms.setdefault(limit, []).append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for limit in (0.0, 0.01):
        distill(settings_for(tmp_path / str(limit), "--teacher", teacher, "--max_grad_norm", limit))
    assert min(norms[0.0]) > 0.1 and max(norms[0.01]) == pytest.approx(0.01, rel=1e-3)


def test_towers_may_run_in_half_precision(teacher, tmp_path, settings_for):
    rows = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = ("--teacher", teacher, "--mixed_precision", precision)
        rows[precision] = distill(settings_for(tmp_path / precision, *arguments))["history"][-1]
    for name, value in rows["no"].items():
        assert rows["bf16"][name] == pytest.approx(value, rel=0.05), name
    assert rows["bf16"]["fd"] != rows["no"]["fd"]
    assert {value.dtype for value in load_file(tmp_path / "bf16" / "model.safetensors").values()} == {torch.float32}


def test_trackers_get_every_term(teacher, tmp_path, settings_for):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    distill(settings_for(tmp_path / "student", "--teacher", teacher, "--trackers", "tensorboard"))
    events = EventAccumulator(str(next((tmp_path / "student").rglob("events.out.*")).parent))
    events.Reload()
    assert {"loss", "xrd", "fd", "logit_scale", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [entry.step for entry in events.Scalars("loss")] == [2, 4, 6]


def test_a_student_may_start_from_a_checkpoint(teacher, tmp_path, settings_for):
    settings = settings_for(tmp_path, "--student", teacher, "--student_config", "{}")
    student, processor = make_student(settings)
    for name, value in load_file(teacher / "model.safetensors").items():
        assert torch.equal(student.state_dict()[name], value)
    assert processor.image_processor.size["shortest_edge"] == 32


def test_a_checkpoint_keeps_its_own_tokenizer_and_image_processor(teacher, tmp_path, settings_for):
    folder = tmp_path / "started"
    AutoModel.from_pretrained(teacher).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(teacher, model_max_length=9)
    tokenizer.save_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(teacher, backend="pil")
    image_processor.image_mean = [0.5, 0.25, 0.5]
    image_processor.save_pretrained(folder)
    arguments = ("--student", folder, "--student_config", "{}")
    _, processor = make_student(settings_for(tmp_path, *arguments))
    assert list(processor.image_processor.image_mean) == [0.5, 0.25, 0.5]
    assert processor.tokenizer.model_max_length == 9
    tokenizer.add_tokens(["mauve"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="knows 44 tokens, too few for a tokenizer of 45"):
        make_student(settings_for(tmp_path, *arguments))
    with pytest.raises(ValueError, match="image_size 64: the student .* takes 32"):
        make_student(settings_for(tmp_path, *arguments, "--image_size", 64))
    with pytest.raises(ValueError, match="student_config: .* is a checkpoint"):
        make_student(settings_for(tmp_path, "--student", folder))


@pytest.mark.parametrize("size", [16, 48])
def test_a_new_student_is_made_for_the_size_of_images(size, tmp_path, settings_for):
    student, processor = make_student(settings_for(tmp_path, "--image_size", size))
    pixels = processor.images([make_synthetic_pairs(1)[0]["image"]])
    assert pixels.shape == (1, 3, size, size) and student.get_image_features(pixels).shape == (1, 64)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("width", "student_config: unknown setting 'width'"),
        (
            "vision_config.hiden_size",
            "student_config.vision_config: unknown setting 'hiden_size'",
        ),
        ("text_config.layers", "student_config.text_config: unknown setting 'layers'"),
    ],
)
def test_unknown_settings_of_the_student_are_named(key, message, tmp_path, settings_for):
    with pytest.raises(ValueError, match=message):
        make_student(settings_for(tmp_path, f"--student_config.{key}", 3))


def test_asked_for_vocabulary_is_kept(tmp_path, settings_for):
    student, _ = make_student(settings_for(tmp_path, "--student_config.text_config.vocab_size", 600))
    assert student.config.text_config.vocab_size == 600


def test_a_teacher_of_another_kind_teaches_too(teacher, tmp_path, settings_for):
    """SigLIP: its scale has an axis, its config names no projection, its tokenizer makes no mask."""
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 44, "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    folder = tmp_path / "siglip"
    SiglipModel(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(teacher, model_input_names=["input_ids"])
    tokenizer.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(teacher, backend="pil").save_pretrained(folder)
    metrics = distill(settings_for(tmp_path / "student", "--teacher", folder, "--num_steps", 2))
    assert metrics["history"][-1]["xrd"] > 0


def test_the_weights_of_a_run_may_follow_a_schedule(teacher, tmp_path, settings_for):
    arguments = (
        "--teacher",
        teacher,
        "--num_steps",
        4,
        "--log_every",
        1,
        "--weight_schedule",
        "{xrd: [[1, 0], [3, 1]]}",
    )
    rows = distill(settings_for(tmp_path / "student", *arguments))["history"]
    assert ["xrd" in row for row in rows] == [False, False, True, True]


def test_the_mean_of_a_term_is_over_the_steps_that_computed_it():
    history = History()
    history.add({"loss": torch.tensor(4.0)})
    history.load_state_dict(json.loads(json.dumps(history.state_dict())))
    history.add({"loss": torch.tensor(2.0), "xrd": torch.tensor(3.0)})
    assert history.close(2, rate=0.5) == {"step": 2, "loss": 3.0, "xrd": 3.0, "rate": 0.5}
    history.add({"loss": torch.tensor(1.0)})
    assert history.close(3) == {"step": 3, "loss": 1.0} and len(history.rows) == 2


def test_a_preset_takes_the_tokenizer_s_vocabulary(tmp_path, settings_for):
    settings = settings_for(tmp_path, "--student", "vit-t-16", "--student_config", "{}")
    with torch.device("meta"):
        student, processor = make_student(settings)
    assert student.config.text_config.vocab_size == len(processor.tokenizer)
    assert student.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert processor.image_processor.size["shortest_edge"] == 224


# --- Inputs ---


def test_captions_are_padded_to_the_longest_of_the_batch_and_images_converted(tmp_path, settings_for):
    _, processor = make_student(settings_for(tmp_path))
    encoded = processor.captions(["one small red ring", "two large striped red rings on the left"])
    assert encoded["input_ids"].shape == (2, 10) and encoded["attention_mask"].sum(1).tolist() == [6, 10]
    assert processor.images([make_synthetic_pairs(1)[0]["image"].convert("L")]).shape == (1, 3, 32, 32)


# --- Optimisation ---


def test_the_rate_rises_then_falls_to_nothing():
    settings = DistillationSettings(num_steps=20, warmup_steps=5, learning_rate=1.0)
    rates = [_learning_rate(step, settings) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1 and all(later < earlier for earlier, later in zip(rates[5:], rates[6:], strict=False))
    assert rates[20] == pytest.approx(0)


def test_matrices_alone_decay(tmp_path, settings_for):
    settings = settings_for(tmp_path, "--weight_decay", 0.3)
    student, _ = make_student(settings)
    decayed, others = make_optimizer(student, settings).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    assert "logit_scale" in {names[id(parameter)] for parameter in others["params"]}
    assert all(
        names[id(parameter)].endswith("weight") or "embedding" in names[id(parameter)]
        for parameter in decayed["params"]
    )
    assert len(names) == len(decayed["params"]) + len(others["params"])


# --- Bad input ---

BAD = {
    "unknown term": ({"weights": {"xdr": 1.0}}, "unknown term 'xdr'"),
    "no weight": ({"weights": {"fd": 1.0}}, "expected a weight above 0 for some term"),
    "precision": ({"mixed_precision": "fp8"}, "mixed_precision"),
    "steps": ({"num_steps": 0}, "num_steps"),
    "chunks": ({"chunk_size": -1}, "chunk_size"),
    "synthetic": ({"synthetic": {"num_pair": 3}}, "unknown setting 'num_pair'; the nearest known one is 'num_pairs'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_settings_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=message):
        DistillationSettings(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "./gone"], "teacher './gone': not a file, folder or Hub id"),
        (["--student", "vit-t-17"], "student 'vit-t-17': not a file, folder or Hub id"),
        (["--data", "gone"], "data 'gone': not a file, folder or Hub id"),
        (["--resume", "true"], "resume needs checkpoint_every of at least 1"),
        (["--evaluation.drawn.kid", "synthetic"], "unknown setting 'kid'; the nearest known one is 'kind'"),
        (["--evaluation.drawn.kind", "retrieval"], "evaluation.drawn: kind 'retrieval' needs data"),
        (["--batch_size", "65"], "batch_size 65 is larger than the data 'synthetic', 64 pairs"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(arguments, message, tmp_path, settings_for):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        distill(settings_for(tmp_path / "output", *arguments))
    assert not (tmp_path / "output").exists()


def test_bad_tasks_end_all_processes_though_the_first_alone_makes_them(tmp_path, settings_for, monkeypatch):
    sent = []

    def broadcast(found):
        sent.extend(found)
        return list(sent)

    monkeypatch.setattr(run, "broadcast_object_list", broadcast)
    settings = settings_for(tmp_path, "--evaluation.drawn.kind", "retrieval")
    for first in (True, False):
        with pytest.raises(ValueError, match="evaluation.drawn: kind 'retrieval' needs data"):
            run._tasks_of_first_process(SimpleNamespace(is_main_process=first), settings)
    sent.clear()
    made = settings_for(tmp_path, "--evaluation", "{drawn: {kind: synthetic, options: {images: 2}}}")
    assert len(run._tasks_of_first_process(SimpleNamespace(is_main_process=True), made)) == 3
    assert run._tasks_of_first_process(SimpleNamespace(is_main_process=False), made) == {}


def test_a_file_in_the_place_of_the_folder_is_found_before_training(tmp_path, settings_for):
    (tmp_path / "output").write_text("mine")
    with pytest.raises(NotADirectoryError, match="output_dir .*: found a file, expected a folder"):
        distill(settings_for(tmp_path / "output"))
    assert (tmp_path / "output").read_text() == "mine"


def test_a_teacher_without_its_tokenizer_is_named(teacher, tmp_path, settings_for):
    AutoModel.from_pretrained(teacher).save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="teacher .*bare'?: AutoTokenizer found nothing to load"):
        distill(settings_for(tmp_path / "output", "--teacher", tmp_path / "bare"))


def test_a_caption_that_is_no_text_is_named(tmp_path, settings_for):
    with pytest.raises(ValueError, match="expected a caption, found None"):
        make_student(settings_for(tmp_path))[1].captions(["one small red ring", None])


def test_teachers_and_students_without_a_common_width_are_refused(teacher, tmp_path, settings_for):
    from transformers import CLIPTextConfig, CLIPTextModel, SiglipConfig, SiglipModel

    def prepared(model, name):
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / name)
        AutoImageProcessor.from_pretrained(teacher, backend="pil").save_pretrained(tmp_path / name)
        return tmp_path / name

    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 44, "max_position_embeddings": 16}
    alone = prepared(CLIPTextModel(CLIPTextConfig(**text)), "text_alone")
    with pytest.raises(ValueError, match="CLIPTextModel has no get_image_features; expected a CLIP"):
        distill(settings_for(tmp_path / "student", "--teacher", alone))
    vision = {**tower, "hidden_size": 24, "image_size": 32, "patch_size": 8}
    config = SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
    unequal = prepared(SiglipModel(config), "unequal")
    with pytest.raises(ValueError, match="images are embedded in a width of 24 and texts of 16; expected projections"):
        distill(settings_for(tmp_path / "student", "--teacher", unequal))
    for name, what in (("text_alone", "CLIPTextModel"), ("unequal", "SiglipModel")):
        other = ("--student", tmp_path / name, "--student_config", "{}", "--teacher", teacher)
        with pytest.raises(ValueError, match=f"student '.*{name}': expected a CLIPModel or .*, found {what}"):
            distill(settings_for(tmp_path / "student", *other))
    assert not (tmp_path / "student").exists()


def test_a_checkpoint_of_another_config_is_refused(teacher, tmp_path, settings_for):
    output = tmp_path / "student"
    distill(settings_for(output, "--teacher", teacher, "--checkpoint_every", 2))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    other = ("--student_config.vision_config.num_hidden_layers", 1)
    with pytest.raises(ValueError, match="resume: student_config.* is .* and was"):
        distill(settings_for(output, "--teacher", teacher, "--checkpoint_every", 2, "--resume", "true", *other))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before

"""Whole distillations of tiny models: they learn, leave a folder that loads, and do not depend on the processes."""

import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fresh_processes import run_python
from huggingface_hub.errors import StrictDataclassFieldValidationError
from pair_files import write_shards
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, SiglipConfig, SiglipModel, pipeline

from hf_blemo.built_in import make_synthetic_pairs, synthetic_tokenizer
from hf_blemo.clip_evaluation.evaluator import ClipEvaluator
from hf_blemo.clip_evaluation.tasks import make_tasks
from hf_blemo.clip_rd_training.run import _Evaluations, _History, _learning_rate, _Training, distill, make_optimizer
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.clip_rd_training.students import make_student
from hf_blemo.pairs.clip_models import load_clip

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
PROGRAM = str(ROOT / "training" / "distill_clip_rd.py")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of fifty pairs, two of them with a torn picture."""
    captions = list(make_synthetic_pairs(50)["caption"])
    return write_shards(tmp_path_factory.mktemp("pairs") / "shards", captions, 3, torn=(7, 11))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Settings of an evaluation that takes a moment."""
    captions = list(make_synthetic_pairs(8, seed=3)["caption"])
    folder = write_shards(tmp_path_factory.mktemp("evaluated") / "shards", captions, 1)
    return {"found": {"kind": "retrieval", "data": str(folder), "split": "train"}}


@pytest.fixture(scope="module")
def plain(once, teacher, settings_for, leave_plots_out):
    """The folder of a student of six steps with its checkpoints and tracked terms, to read or to copy."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            leave_plots_out(patch)
            distill(settings_for(folder, "--teacher", teacher, "--checkpoint_every", 4, "--trackers", "tensorboard"))

    return once("plain_student", make)


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


# --- What a run leaves ---


def test_without_a_teacher_the_contrastive_loss_is_learned(teacher):
    history = metrics_of(teacher)["history"]
    assert set(history[0]) == {"step", "loss", "task", "logit_scale", "learning_rate"}
    assert history[-1]["task"] < history[0]["task"] and history[-1]["step"] == 20 and len(history) == 10


def test_a_student_learns_every_term_and_loads_with_all_it_needs(trained_student):
    metrics = metrics_of(trained_student)
    first, last = metrics["history"][0], metrics["history"][-1]
    for name in ("loss", "task", "fd", "hrd", "icl"):
        assert last[name] < first[name], name
    assert not any("teacher" in name or "cross_scale" in name for name in weights_of(trained_student))
    student = AutoModel.from_pretrained(trained_student)
    assert student.num_parameters() == metrics["num_parameters"]
    tokenizer, images = (
        AutoTokenizer.from_pretrained(trained_student),
        AutoImageProcessor.from_pretrained(trained_student),
    )
    pairs = make_synthetic_pairs(3, seed=9)
    pixels = images(images=list(pairs["image"]), return_tensors="pt")["pixel_values"]
    texts = tokenizer(list(pairs["caption"]), padding=True, return_tensors="pt")
    assert student(pixel_values=pixels, **texts).logits_per_image.shape == (3, 3)
    classify = pipeline("zero-shot-image-classification", model=str(trained_student), device="cpu")
    found = classify(pairs[0]["image"], candidate_labels=["a red square", "a blue ring"])
    assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-5)


def test_trackers_get_every_term(plain):
    events = EventAccumulator(str(next(plain.rglob("events.out.*")).parent))
    events.Reload()
    assert {"loss", "xrd", "fd", "logit_scale", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [entry.step for entry in events.Scalars("loss")] == [2, 4, 6]


def test_a_student_is_evaluated_on_its_way(teacher, tmp_path, settings_for, tasks, with_plots):
    arguments = ("--teacher", teacher, "--evaluation", json.dumps(tasks), "--evaluate_every", 4)
    metrics = distill(settings_for(tmp_path, *arguments, "--evaluate_teacher", "true"), command="python x.py")
    assert metrics == metrics_of(tmp_path) and metrics["command"] == "python x.py"
    assert [row["step"] for row in metrics["evaluations"]] == [4, 6]
    assert metrics["evaluation"] == metrics["evaluations"][-1]
    evaluator = ClipEvaluator(make_tasks(tasks))
    for folder, found in ((tmp_path, metrics["evaluation"]), (teacher, metrics["teacher_evaluation"])):
        clip = load_clip(str(folder))
        assert evaluator.evaluate(clip.model, clip.processor) == found["tasks"]
    recall = metrics["evaluation"]["tasks"]["found"]["image_to_text_r@5"]
    assert f"{recall:.1%}" in (tmp_path / "README.md").read_text()
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"loss_terms", "evaluations", "similarity"}


def test_the_average_of_the_weights_is_evaluated_and_saved(tmp_path, settings_for, tasks, monkeypatch):
    seen, features = [], []
    step, add = _Training._step, _Evaluations.add

    def remember(self, *arguments):
        terms = step(self, *arguments)
        seen.append({name: value.clone() for name, value in self.distiller.student.state_dict().items()})
        return terms

    def embed(self, student, *arguments):
        tokens = self.processor.captions(["one small red ring", "two large striped red rings on the left"])
        with torch.no_grad():
            features.append((student.eval().get_text_features(**tokens), tokens))
        return add(self, student, *arguments)

    monkeypatch.setattr(_Training, "_step", remember)
    monkeypatch.setattr(_Evaluations, "add", embed)
    arguments = ("--num_steps", 3, "--ema_decay", 0.5, "--evaluation", json.dumps(tasks))
    found = distill(settings_for(tmp_path, *arguments))["evaluation"]["tasks"]
    saved = weights_of(tmp_path)
    for name, value in saved.items():
        # The average begins with the weights after the first step.
        expected = 0.5 * (0.5 * seen[0][name] + 0.5 * seen[1][name]) + 0.5 * seen[2][name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert any((saved[name] - seen[2][name]).abs().max() > 1e-4 for name in saved)
    # To the last bit the same towers, with positions that no average has moved.
    clip, [(embeds, tokens)] = load_clip(str(tmp_path)), features
    with torch.no_grad():
        assert torch.equal(clip.model.get_text_features(**tokens), embeds)
    assert ClipEvaluator(make_tasks(tasks)).evaluate(clip.model, clip.processor) == found


# --- Ways to run ---


def test_cached_chunks_end_with_the_same_student(teacher, plain, tmp_path, settings_for):
    distill(settings_for(tmp_path, "--teacher", teacher, "--chunk_size", 5))
    chunks = weights_of(tmp_path)
    for name, value in weights_of(plain).items():
        torch.testing.assert_close(chunks[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: name + text)


def test_towers_may_run_in_half_precision(teacher, plain, tmp_path, settings_for):
    found = distill(settings_for(tmp_path, "--teacher", teacher, "--mixed_precision", "bf16"))["history"][-1]
    expected = metrics_of(plain)["history"][-1]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.05), name
    assert found["fd"] != expected["fd"]
    assert {value.dtype for value in weights_of(tmp_path).values()} == {torch.float32}


def test_gradients_are_clipped_and_weights_follow_their_schedule(teacher, tmp_path, settings_for, monkeypatch):
    norms = {}
    original = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        gradients = [value.grad for group in self.param_groups for value in group["params"] if value.grad is not None]
        norms.setdefault(limit, []).append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for limit in (0.0, 0.01):
        arguments = ("--num_steps", 4, "--log_every", 1, "--weight_schedule", "{xrd: [[1, 0], [3, 1]]}")
        run_of = settings_for(tmp_path / str(limit), "--teacher", teacher, "--max_grad_norm", limit, *arguments)
        rows = distill(run_of)["history"]
        assert ["xrd" in row for row in rows] == [False, False, True, True]
    assert min(norms[0.0]) > 0.1 and max(norms[0.01]) == pytest.approx(0.01, rel=1e-3)


def test_a_teacher_of_another_kind_teaches_too(teacher, tmp_path, settings_for):
    """SigLIP: its scale has an axis, its config names no projection, its tokenizer makes no mask."""
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 44, "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})
    folder = tmp_path / "siglip"
    SiglipModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher, model_input_names=["input_ids"]).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(teacher, backend="pil").save_pretrained(folder)
    metrics = distill(settings_for(tmp_path / "student", "--teacher", folder, "--num_steps", 2))
    assert metrics["history"][-1]["xrd"] > 0
    with pytest.raises(ValueError, match="student '.*siglip': expected a CLIPModel or .*, found SiglipModel"):
        make_student(settings_for(tmp_path, "--student", folder, "--student_config", "{}"))


def test_two_processes_end_with_the_student_of_one(teacher, tmp_path, settings_for, quick, tasks):
    options = ["--teacher", str(teacher), "--dtype", "float64", "--evaluation", json.dumps(tasks)]
    options += ["--evaluation_share", "0.25", "--num_steps", "null", "--epochs", "2"]
    expected = distill(settings_for(tmp_path / "one", *options))
    watched = ROOT / "tests" / "helpers" / "watched_processes.py"
    command = [watched, PROGRAM, *quick, *options, "--output_dir", tmp_path / "two"]
    done = run_python(command, cwd=tmp_path, env=ENVIRONMENT, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the group has ended") == 2
    metrics = metrics_of(tmp_path / "two")
    assert (expected["num_processes"], metrics["num_processes"]) == (1, 2)
    assert metrics["history"][-1]["loss"] == pytest.approx(expected["history"][-1]["loss"], rel=1e-9)
    assert metrics["evaluation"] == expected["evaluation"]
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    start = make_student(settings_for(tmp_path))[0].state_dict()
    moved = max((one[name] - start[name]).abs().max().item() for name in one)
    for name, value in one.items():
        assert (two[name] - value).abs().max() < 1e-6 < 0.1 * moved, name


# --- Interrupted runs ---


def test_a_run_killed_and_resumed_ends_bit_for_bit_as_one_left_alone(
    teacher, tmp_path, quick, settings_for, shards, tasks
):
    """A table and a stream with broken pairs, workers, dropout, an average and evaluations."""
    make_synthetic_pairs(30, seed=4).save_to_disk(str(tmp_path / "table"))
    sources = [{"data": str(tmp_path / "table")}, {"data": str(shards), "streaming": True}]
    options = ["--teacher", str(teacher), "--num_steps", "12", "--checkpoint_every", "1", "--log_every", "5"]
    options += ["--sources", json.dumps(sources), "--shuffle_block", "7", "--num_workers", "2"]
    options += ["--augmentation.scale", "[0.5, 1.0]", "--ema_decay", "0.9", "--tokenizer", str(teacher)]
    options += ["--evaluation", json.dumps(tasks), "--evaluate_every", "5", "--synthetic", "{}"]
    options += ["--student_config.text_config.attention_dropout", "0.2"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    one = distill(settings_for(alone, *options))
    command = [sys.executable, PROGRAM, *quick, *options, "--output_dir", str(killed)]
    child = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "step_00003").is_dir() and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (killed / "metrics.json").exists()
    other = distill(settings_for(killed, *options, "--resume", "true"))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes(), name
    for key in ("history", "evaluations", "data"):
        assert one[key] == other[key], key
    assert [row["step"] for row in one["history"]] == [row["step"] for row in one["evaluations"]] == [5, 10, 12]
    # Twelve batches take eight pairs of each source: almost two passes over the shards, with both torn pictures.
    assert one["data"]["seen"] == 192 + one["data"]["broken"] and one["data"]["broken"] >= 2
    assert [source["pairs"] for source in one["data"]["sources"]] == [30, None] and one["data"]["pairs"] is None
    for setting, message in (
        (("--learning_rate", 0.5), "learning_rate is 0.5 and was 0.002"),
        (("--num_workers", 1), "num_workers is 1 and was 2"),
    ):
        with pytest.raises(ValueError, match=f"resume: {message}"):
            distill(settings_for(killed, *options, "--resume", "true", *setting))


class Killed(BaseException):
    """Ends a run where it is, as a signal does."""


# Moment -> the function that never returns, at which call, and whether that call has done its work. A checkpoint has
# four parts beside the weights: average, history, position and evaluations.
MOMENTS = {
    "a checkpoint is written": ("accelerate.accelerator.save_custom_state", 10, True),
    "a checkpoint gets its name": ("os.rename", 3, False),
    "an old checkpoint is dropped": ("shutil.rmtree", 1, False),
    "the student is written": ("hf_blemo.clip_rd.modeling_clip_rd.CLIPRDModel.save_pretrained", 1, True),
}


def kill_in(patch, target, number, works):
    original, calls = pkgutil.resolve_name(target), []

    def call(*arguments, **options):
        if options.get("ignore_errors"):
            return original(*arguments, **options)
        calls.append(arguments)
        if len(calls) == number and target == "shutil.rmtree":
            next(file for file in sorted(arguments[0].iterdir()) if file.is_file()).unlink()
        result = original(*arguments, **options) if works or len(calls) < number else None
        if len(calls) == number:
            raise Killed
        return result

    patch.setattr(target, call)


def test_a_run_may_be_killed_at_every_moment_of_a_checkpoint(teacher, tmp_path, settings_for):
    arguments = ("--teacher", teacher, "--num_steps", 5, "--checkpoint_every", 1, "--ema_decay", 0.9)
    arguments += ("--student_config.text_config.attention_dropout", 0.2)
    alone = distill(settings_for(tmp_path / "alone", *arguments))
    for moment in MOMENTS:
        output = tmp_path / moment
        with pytest.MonkeyPatch.context() as patch:
            kill_in(patch, *MOMENTS[moment])
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


def test_a_finished_run_resumed_trains_no_more(teacher, plain, tmp_path, settings_for, monkeypatch):
    output = tmp_path / "student"
    shutil.copytree(plain, output)
    arguments = ("--teacher", teacher, "--checkpoint_every", 4, "--resume", "true")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="resume: student_config.* is .* and was"):
        distill(settings_for(output, *arguments, "--student_config.vision_config.num_hidden_layers", 1))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before
    monkeypatch.setattr(_Training, "_step", lambda *_: pytest.fail("a step was trained"))
    # Any number of workers reads a table alike.
    again = distill(settings_for(output, *arguments, "--num_workers", 1))
    assert (output / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    for key in ("history", "data", "evaluations"):
        assert again[key] == metrics_of(plain)[key], key


# --- Broken pairs ---


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_read_ends_a_run_with_one_line(teacher, tmp_path, settings_for, workers):
    data = make_synthetic_pairs(20).remove_columns("caption").add_column("caption", [" "] * 20)
    data.save_to_disk(str(tmp_path / "pairs"))
    # Without terms of a teacher nothing is read before the first step.
    arguments = ("--synthetic", "{}", "--data", tmp_path / "pairs", "--tokenizer", teacher, "--num_workers", workers)
    message = r"^100 pairs in a row could not be read; the last: .*found the caption ' ', expected text$"
    with pytest.raises(ValueError, match=message):
        distill(settings_for(tmp_path / "student", *arguments))


def test_too_many_broken_pairs_end_the_run_and_keep_its_checkpoints(tmp_path, settings_for):
    pairs = make_synthetic_pairs(200)
    captions = [caption if number % 10 else " " for number, caption in enumerate(pairs["caption"])]
    pairs.remove_columns("caption").add_column("caption", captions).save_to_disk(str(tmp_path / "pairs"))
    synthetic_tokenizer().save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "student"
    options = ("--synthetic", "{}", "--data", tmp_path / "pairs", "--tokenizer", tmp_path / "tokenizer")
    options += ("--checkpoint_every", 2)
    with pytest.raises(ValueError) as error:
        distill(settings_for(output, *options, "--num_steps", 20))
    assert "pairs could not be read, more than max_broken_share 0.05 allows; for instance:" in str(error.value)
    assert "found the caption ' ', expected text" in str(error.value) and "\n" not in str(error.value)
    assert list((output / "checkpoints").glob("step_*"))
    options += ("--max_broken_share", 0.2, "--num_steps", 3)
    with pytest.raises(FileExistsError, match="holds an earlier run .checkpoints.; name another folder, or resume it"):
        distill(settings_for(output, *options))
    data = distill(settings_for(output, *options, "--overwrite", "true"))["data"]
    assert data["seen"] == 48 + data["broken"] and data["broken_examples"]


# --- Students and their optimisation ---


@pytest.mark.parametrize(
    ("precision", "message"),
    [("exact", "step 2, seed 0: CLIPRDLoss: embed"), ("fast", r"step 2: the training diverged: .* is nan \(embed")],
)
@pytest.mark.parametrize("rate", ["1e30", "1e38"])
def test_a_run_that_diverges_says_where_and_leaves_no_student(
    rate, precision, message, teacher, tmp_path, settings_for
):
    arguments = ("--teacher", str(teacher), "--learning_rate", rate, "--warmup_steps", "0", "--checkpoint_every", "2")
    arguments += ("--precision", precision)
    with pytest.raises(ValueError, match=f"^{message}dings hold NaN or infinite"):
        distill(settings_for(tmp_path, *arguments))
    assert not list(tmp_path.rglob("*.safetensors")) and not (tmp_path / "metrics.json").exists()


def test_a_checkpoint_as_student_keeps_its_weights_tokenizer_and_image_processor(teacher, tmp_path, settings_for):
    folder = tmp_path / "started"
    AutoModel.from_pretrained(teacher).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(teacher, model_max_length=9)
    tokenizer.save_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(teacher, backend="pil")
    image_processor.image_mean = [0.5, 0.25, 0.5]
    image_processor.save_pretrained(folder)
    arguments = ("--student", folder, "--student_config", "{}")
    student, processor, _ = make_student(settings_for(tmp_path, *arguments))
    for name, value in weights_of(teacher).items():
        assert torch.equal(student.state_dict()[name], value)
    assert processor.image_size == (32, 32) and processor.tokenizer.model_max_length == 9
    assert list(processor.image_processor.image_mean) == [0.5, 0.25, 0.5]
    tokenizer.add_tokens(["mauve"])
    tokenizer.save_pretrained(folder)
    for changes, message in (
        (arguments, "knows 44 tokens, too few for a tokenizer of 45"),
        ((*arguments, "--image_size", 64), "image_size 64: the student .* takes 32"),
        (("--student", folder), "student_config: .* is a checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            make_student(settings_for(tmp_path, *changes))


def test_a_new_student_fits_its_images_and_tokens(tmp_path, settings_for):
    for size in (16, 48):
        student, processor, _ = make_student(settings_for(tmp_path, "--image_size", size))
        pixels = processor.images([make_synthetic_pairs(1)[0]["image"].convert("L")])
        assert pixels.shape == (1, 3, size, size) and student.get_image_features(pixels).shape == (1, 64)
    encoded = processor.captions(["one small red ring", "two large striped red rings on the left"])
    assert encoded["input_ids"].shape == (2, 10) and encoded["attention_mask"].sum(1).tolist() == [6, 10]
    with pytest.raises(ValueError, match="expected a caption, found None"):
        processor.captions(["one small red ring", None])
    student, *_ = make_student(settings_for(tmp_path, "--student_config.text_config.vocab_size", 600))
    assert student.config.text_config.vocab_size == 600
    with torch.device("meta"):
        student, processor, _ = make_student(settings_for(tmp_path, "--student", "vit-t-16", "--student_config", "{}"))
    assert student.config.text_config.vocab_size == len(processor.tokenizer)
    assert student.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert processor.image_size == (224, 224)


def test_the_mean_of_a_term_is_over_the_steps_that_computed_it():
    history = _History()
    history.add({"loss": torch.tensor(4.0)})
    history.load_state_dict(json.loads(json.dumps(history.state_dict())))
    history.add({"loss": torch.tensor(2.0), "xrd": torch.tensor(3.0)})
    assert history.close(2, rate=0.5) == {"step": 2, "loss": 3.0, "xrd": 3.0, "rate": 0.5}
    history.add({"loss": torch.tensor(1.0)})
    assert history.close(3) == {"step": 3, "loss": 1.0} and len(history.rows) == 2
    for value in (1.0, float("nan"), 1.0):
        history.add({"loss": torch.tensor(value)})
    with pytest.raises(ValueError, match="step 5: the training diverged: the term loss of the loss is nan"):
        history.close(6)


def test_the_rate_rises_then_falls_to_nothing():
    settings = DistillationSettings("synthetic", num_steps=20, warmup_steps=5, learning_rate=1.0)
    rates = [_learning_rate(step, settings) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1 and all(later < earlier for earlier, later in zip(rates[5:], rates[6:], strict=False))
    assert rates[20] == pytest.approx(0)


def test_matrices_alone_decay(tmp_path, settings_for):
    settings = settings_for(tmp_path, "--weight_decay", 0.3)
    student, *_ = make_student(settings)
    decayed, others = make_optimizer(student, settings).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    assert "logit_scale" in {names[id(parameter)] for parameter in others["params"]}
    matrices = {names[id(parameter)] for parameter in decayed["params"]}
    assert all(name.endswith("weight") or "embedding" in name for name in matrices)
    assert len(names) == len(decayed["params"]) + len(others["params"])


# --- Bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"xdr": 1.0}}, "unknown term 'xdr'"),
        ({"weights": {"fd": 1.0}}, "expected a weight above 0 for some term"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
        ({"num_steps": 0}, "num_steps"),
        ({"image_size": 0}, "image_size"),
        ({"chunk_size": -1}, "chunk_size"),
        ({"synthetic": {"num_pair": 3}}, "unknown setting 'num_pair'; the nearest known one is 'num_pairs'"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=message):
        DistillationSettings(**{"data": "synthetic", **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student_config.width", "3"], "student_config: unknown setting 'width'"),
        (["--student_config.vision_config.hiden_size", "3"], "student_config.vision_config: unknown setting 'hiden_"),
        (["--student_config.text_config.layers", "3"], "student_config.text_config: unknown setting 'layers'"),
        (["--resume", "true"], "resume needs checkpoint_every of at least 1"),
        (["--batch_size", "65"], "batch_size 65 is larger than the data 'synthetic', 64 pairs"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(arguments, message, tmp_path, settings_for):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        distill(settings_for(tmp_path / "output", *arguments))
    assert not (tmp_path / "output").exists()


def test_a_file_in_the_place_of_the_folder_is_found_before_training(tmp_path, settings_for):
    (tmp_path / "output").write_text("mine")
    with pytest.raises(NotADirectoryError, match="output_dir .*: found a file, expected a folder"):
        distill(settings_for(tmp_path / "output"))
    assert (tmp_path / "output").read_text() == "mine"

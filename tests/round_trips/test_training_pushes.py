"""Trainings push to the Hub: this package's programs and plain Trainer, in the middle and at the end."""

import json
from pathlib import Path

import pytest
import yaml
from fresh_processes import run_python
from hub_programs import PACKAGE_FOLDER, environment
from hub_repositories import Blob, make_commit
from tiny_models import fingerprints
from transformers import AutoModel

from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.programs.settings import read_settings

FUSION = (
    "train_fusion.py --synthetic.num_clips 60 --seeds 0 --num_epochs 4 --patience 0 --checkpoint_every 2 "
    "--protocol none"
)
CLIP_RD = (
    "distill_clip_rd.py --synthetic.num_pairs 40 --student custom --num_steps 4 --batch_size 8 --checkpoint_every 2 "
    "--image_size 16 --student_config.projection_dim 8 --student_config.vision_config {tower} "
    "--student_config.text_config {text}"
)
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PROGRAMS = {"rank_aware_fusion": FUSION, "clip_rd": CLIP_RD}
TRAININGS = {"rank_aware_fusion": (FusionSettings, train_fusion), "clip_rd": (DistillationSettings, distill)}
# Loads each commit that holds a model without the package, and says how far its first tensor is from the last one's.
LOAD = """
import json, sys
from huggingface_hub import HfApi
from transformers import AutoModel, AutoProcessor
name = sys.argv[1]
found = {}
for commit in HfApi().list_repo_commits(name):
    if commit.title != "initial commit":
        model = AutoModel.from_pretrained(name, trust_remote_code=True, revision=commit.commit_id)
        AutoProcessor.from_pretrained(name, trust_remote_code=True, revision=commit.commit_id)
        found[commit.title] = float(sum(parameter.abs().sum() for parameter in model.parameters()))
print(json.dumps(found))
"""


def program_arguments(command):
    program, *arguments = command.split()
    values = {"{tower}": {"model_type": "clip_vision_model", "patch_size": 8, **TOWER}, "{text}": TOWER}
    arguments = [json.dumps(values[text]) if text in values else text for text in arguments]
    return [str(PACKAGE_FOLDER / "training" / program), *arguments]


def run_program(hub, work, command, *options, code=0):
    process = run_python([*program_arguments(command), *options], cwd=work, env=environment())
    assert process.returncode == code, process.stderr
    return process.stderr


@pytest.mark.parametrize("family", PROGRAMS)
def test_a_program_pushes_at_every_save_and_publishes_a_release(family, hub, on_hub, tmp_path, fresh_accelerate_state):
    name = f"you/trained-{family.replace('_', '-')}"
    output = tmp_path / "run"
    options = ("--output_dir", output, "--push_to_hub", name, "--hub_strategy", "every_save", "--hub_tag", "v0.1")
    run_program(hub, tmp_path, PROGRAMS[family], *options)
    repository = hub.repository(name)
    titles = [commit.title for commit in repository.branches["main"].history()]
    unit = {"rank_aware_fusion": "epoch", "clip_rd": "step"}[family]
    assert titles == [f"Publish {family} with hf_blemo", f"Training in progress, {unit} 2", "initial commit"]
    assert repository.private and repository.tags["v0.1"] is repository.branches["main"]
    weights = on_hub(LOAD, name, installed=False)
    assert len(weights) == 2 and len(set(weights.values())) == 2
    files = hub.files(name)
    assert {"README.md", "metrics.json", "model.safetensors", "config.json"} <= set(files)
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["pipeline_tag"]
    assert not any("checkpoint" in path or path.endswith((".pt", ".bin")) for path in files)
    # Nor does a card lie in the push in the middle: the one on the Hub would be replaced.
    middle = repository.branches["main"].parent
    assert "README.md" not in middle.files
    # The pushes changed nothing of the training.
    settings_class, train = TRAININGS[family]
    arguments = [*program_arguments(PROGRAMS[family])[1:], "--output_dir", str(tmp_path / "alone")]
    train(read_settings(settings_class, arguments))
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


REFUSED = (
    ("rank_aware_fusion", "you", None, "the Hub rejected the token; log in with `hf auth login` or set HF_TOKEN"),
    ("rank_aware_fusion", "you", "hf_wrong", "the Hub rejected the token"),
    ("clip_rd", "others", "hf_of_you", "the token writes for you, not for 'others'"),
)
# Runs programs one after the other; says with which code and which last line each ended.
PROGRAM_AFTER_PROGRAM = """
import contextlib, io, json, os, runpy, sys
found = []
for token, arguments in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    sys.argv = arguments
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
    found.append([code, errors.getvalue().splitlines()[-1]])
print(json.dumps(found))
"""


def test_a_program_says_before_it_trains_that_it_could_not_push(hub, on_hub, tmp_path):
    runs = []
    for family, owner, token, _ in REFUSED:
        if ("model", f"{owner}/refused") not in hub.repositories.all:
            hub.repositories.create("model", f"{owner}/refused", False, owner)
        options = ["--output_dir", str(tmp_path / "run"), "--push_to_hub", f"{owner}/refused"]
        runs.append((token, program_arguments(PROGRAMS[family]) + options))
    found = on_hub(PROGRAM_AFTER_PROGRAM, json.dumps(runs))
    for (_, owner, _, message), (code, line) in zip(REFUSED, found, strict=True):
        assert code == 2 and f"push_to_hub '{owner}/refused'" in line and message in line
        assert len(hub.repository(f"{owner}/refused").branches["main"].history()) == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_is_complete_where_its_publication_fails(hub, tmp_path):
    """A disk that is full on the Hub at the end: one line, everything here, and the command that publishes it."""
    output = tmp_path / "run"
    hub.faults.statuses = [507]
    options = ("--output_dir", output, "--push_to_hub", "you/late", "--checkpoint_every", 0)
    errors = run_program(hub, tmp_path, FUSION, *options, code=2)
    assert "was not published to you/late" in errors.splitlines()[-1]
    assert f"hf-blemo publish {output} --repo you/late" in errors
    assert len(hub.repository("you/late").branches["main"].history()) == 1
    command = ["-m", "hf_blemo.cli", "publish", output, "--repo", "you/late"]
    process = run_python(command, cwd=tmp_path, env=environment())
    assert process.returncode == 0, process.stderr
    assert "model.safetensors" in hub.files("you/late")


TRAINER = """
import json, os, sys
from transformers import TrainerCallback
from trainer_cases import CASES
from tiny_models import MAKERS
from hf_blemo.trainer import ModelCodeCallback, PublishingTrainer
import trainer_cases

kind = sys.argv[1]
if kind == "publishing":
    trainer_cases.Trainer = PublishingTrainer


class Wait(TrainerCallback):
    # A training so short would write the files of its second push while the first is uploaded.
    def on_step_begin(self, *args, **kwargs):
        trainer._finish_current_push()


for case_name in ("fusion", "clip_rd"):
    case = CASES[case_name]()
    if kind == "plain":
        case.options["callbacks"] = [ModelCodeCallback]
    model = case.make_model()
    case.options["processing_class"] = MAKERS[model.config.model_type](0)[1]
    trainer = case.trainer(
        case_name, model=model, max_steps=4, save_strategy="steps", save_steps=2, push_to_hub=True,
        eval_strategy="steps", eval_steps=2, hub_model_id=f"you/trainer-{case_name}-{kind}",
        hub_strategy="every_save", hub_always_push=True, hub_private_repo=True,
    )
    trainer.add_callback(Wait)
    trainer.train()
    trainer.push_to_hub()
print(json.dumps({name: str(os.path.abspath(name)) for name in ("fusion", "clip_rd")}))
"""

# The digests of the tensors of every push, loaded without the package.
LOAD_PUSHES = """
import hashlib, json, sys
import torch
from huggingface_hub import HfApi
from transformers import AutoModel, AutoProcessor

def digests(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: hashlib.sha256(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            .hexdigest() for key, value in tensors.items()}

found = {}
for name in sys.argv[1:]:
    for commit in HfApi().list_repo_commits(name):
        if "raining" in commit.title:
            options = {"trust_remote_code": True, "revision": commit.commit_id}
            AutoProcessor.from_pretrained(name, **options)
            found.setdefault(name, {})[commit.title] = digests(AutoModel.from_pretrained(name, **options))
print(json.dumps(found))
"""
BY_HAND = b"---\nlicense: mit\n---\n# Mine\n\nBy hand.\n"


@pytest.mark.parametrize("kind", ["plain", "publishing"])
def test_every_push_of_trainer_loads_without_the_package(kind, hub, on_hub):
    names = {case: f"you/trainer-{case}-{kind}" for case in ("fusion", "clip_rd")}
    for name in names.values():
        hub.repositories.create("model", name, True, "you")
        if kind == "publishing":
            main = hub.repository(name).branches
            main["main"] = make_commit({"README.md": Blob(BY_HAND, False)}, "edit", "you", main["main"])
    folders = on_hub(TRAINER, kind)
    found = on_hub(LOAD_PUSHES, *names.values(), installed=False)
    for case, name in names.items():
        titles = [commit.title for commit in hub.repository(name).branches["main"].history()]
        assert titles[0] == "End of training"
        # Every tensor is as the training had it then.
        output = Path(folders[case])
        for title, folder in (("Training in progress, step 2", "checkpoint-2"), ("End of training", "checkpoint-4")):
            assert found[name][title] == fingerprints(AutoModel.from_pretrained(output / folder)), (case, title)
        assert found[name]["Training in progress, step 2"] != found[name]["End of training"]
        if kind == "publishing":
            card = hub.files(name)["README.md"].decode()
            assert "By hand." in card and "license: mit" in card
            metadata = yaml.safe_load(card.split("---")[1])
            results = metadata["model-index"][0]["results"]
            measured = {metric["type"] for result in results for metric in result["metrics"]}
            assert measured >= ({"loss", "score"} if case == "fusion" else {"loss"})
            assert "| last evaluation | value |" in card and metadata["pipeline_tag"]

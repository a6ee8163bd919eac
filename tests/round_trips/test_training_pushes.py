"""The training programs push to the Hub at every save and at the end, and say beforehand where they could not."""

import json
import shlex

import pytest
import yaml
from command_line import run, run_training
from model_reports import tensors_of
from transformers import AutoModel

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = json.dumps({"model_type": "clip_vision_model", "patch_size": 8, **TOWER})
# Family -> program, arguments, and the unit of its steps.
PROGRAMS = {
    "rank_aware_fusion": (
        "train_fusion.py",
        "--data synthetic --synthetic.num_clips 60 --seeds 0 --num_epochs 4 --patience 0 --protocol none",
        "epoch",
    ),
    "clip_rd": (
        "distill_clip_rd.py",
        "--data synthetic --synthetic.num_pairs 40 --student custom --num_steps 4 --batch_size 8 --image_size 16 "
        f"--student_config.projection_dim 8 --student_config.vision_config '{VISION}' "
        f"--student_config.text_config '{json.dumps(TOWER)}'",
        "step",
    ),
}


@pytest.fixture
def train(fresh_accelerate_state, monkeypatch):
    """Runs the program of a family with further arguments."""

    def run_program(family, *options):
        program, arguments, _ = PROGRAMS[family]
        run_training(monkeypatch, program, *shlex.split(arguments), *options)

    return run_program


@pytest.mark.parametrize("family", PROGRAMS)
def test_a_program_pushes_at_every_save_and_publishes_a_release(family, train, hub, tmp_path):
    name, output = f"you/trained-{family}", tmp_path / "run"
    options = ("--checkpoint_every", 2, "--push_to_hub", name, "--hub_strategy", "every_save", "--hub_tag", "v0.1")
    train(family, "--output_dir", output, *options)
    repository = hub.repository(name)
    history = repository.branches["main"].history()
    unit = PROGRAMS[family][2]
    assert [commit.title for commit in history] == [
        f"Publish {family} with hf_blemo", f"Training in progress, {unit} 2", "initial commit",
    ]  # fmt: skip
    assert repository.private and repository.tags["v0.1"] is repository.branches["main"]
    first, last = (AutoModel.from_pretrained(name, revision=commit.oid) for commit in (history[1], history[0]))
    assert any(not value.equal(tensors_of(last)[key]) for key, value in tensors_of(first).items())
    # Each carries its code, with which it loads elsewhere.
    code = {f"modeling_{family}.py", f"configuration_{family}.py", "config.json", "model.safetensors"}
    assert code <= set(history[1].files) & set(history[0].files)
    assert all(b'"auto_map"' in commit.files["config.json"].content for commit in history[:2])
    files = hub.files(name)
    assert {"README.md", "metrics.json"} <= set(files)
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["pipeline_tag"]
    assert not any("checkpoint" in path or path.endswith((".pt", ".bin")) for path in files)
    # The push in the middle brings no card: it would replace the one on the Hub.
    assert "README.md" not in history[1].files
    # The pushes changed nothing of the training.
    train(family, "--output_dir", tmp_path / "alone")
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("family", "owner", "token", "message"),
    [
        ("rank_aware_fusion", "you", "", "the Hub rejected the token; log in with `hf auth login` or set HF_TOKEN"),
        ("rank_aware_fusion", "you", "hf_wrong", "the Hub rejected the token"),
        ("clip_rd", "others", "hf_of_you", "the token writes for you, not for 'others'"),
    ],
)
def test_a_program_refuses_before_training_what_it_could_not_push(
    family, owner, token, message, train, hub, tmp_path, monkeypatch, capfd
):
    name = f"{owner}/refused{len(token)}"
    repository = hub.create(name, private=False)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit) as end:
        train(family, "--output_dir", tmp_path / "run", "--push_to_hub", name)
    line = capfd.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and f"push_to_hub '{name}'" in line and message in line
    assert len(repository.branches["main"].history()) == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_is_complete_where_its_publication_fails(train, hub, tmp_path, capfd):
    """The disk of the Hub is full at the end: one line, everything here, and the command that publishes it."""
    output = tmp_path / "run"
    hub.faults.statuses = [507]
    with pytest.raises(SystemExit) as end:
        train("rank_aware_fusion", "--output_dir", output, "--push_to_hub", "you/late")
    errors = capfd.readouterr().err
    assert end.value.code == 2 and "was not published to you/late" in errors.splitlines()[-1]
    command = ["publish", str(output), "--repo", "you/late"]
    assert f"hf-blemo {' '.join(command)}" in errors
    assert len(hub.repository("you/late").branches["main"].history()) == 1
    assert run(capfd, *command)[0] == 0
    assert "model.safetensors" in hub.files("you/late")

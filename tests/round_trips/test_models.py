"""One battery over both families: saved, pushed, trained and adapted models load with and without the package."""

import json
import re

import model_reports
import pytest
import torch
import transformers
import yaml
from fresh_processes import PACKAGE_FOLDER, run_code, run_python
from model_reports import AUTO_CLASSES, fingerprints
from peft import get_peft_model
from shared_models import fresh_accelerate
from tiny_models import EXTENDED, MAKERS, make_fusion, make_student, save_tiny_model
from trainer_cases import CASES
from transformers import AutoModel, AutoProcessor, Trainer, TrainerCallback

from hf_blemo.hub import push_model
from hf_blemo.prediction.fusion import load_fusion
from hf_blemo.trainer import ModelCodeCallback, PublishingTrainer, lora_config

FAMILIES = ("rank_aware_fusion", "clip_rd")
CASE_OF = {"rank_aware_fusion": "fusion", "clip_rd": "clip_rd"}
TRAINERS = {"plain": Trainer, "publishing": PublishingTrainer}
BY_HAND = b"---\nlicense: mit\n---\n# Mine\n\nBy hand.\n"
SWIN = {
    "model_type": "swin", "image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2],
    "window_size": 2,
}  # fmt: skip
TRUSTING = {"trust_remote_code": True}


def write_card(hub, name):
    """Creates a repository whose card somebody wrote."""
    hub.create(name).edit("README.md", BY_HAND)


@pytest.fixture(scope="module")
def saved(hub, tmp_path_factory):
    """Family -> fingerprints of a tiny model that is on the Hub whole and in shards."""
    work, expected = tmp_path_factory.mktemp("saved"), {}
    for family in FAMILIES:
        model = save_tiny_model(family, work / family)
        save_tiny_model(family, work / "sharded" / family, max_shard_size="3KB")
        assert len(list((work / "sharded" / family).glob("model-*.safetensors"))) > 2
        hub.put(f"you/load-{family}", work / family, private=True)
        hub.put(f"you/load-{family}-sharded", work / "sharded" / family, private=True)
        expected[family] = fingerprints(model)
    return expected


@pytest.fixture(scope="module")
def adapters(hub):
    """Bases, adapters and merged models of both families on the Hub."""
    for family in FAMILIES:
        model, processor = MAKERS[family](0)
        push_model(model, processor, f"you/base-{family}", license="mit")
        base = AutoModel.from_pretrained(f"you/base-{family}")
        adapted = get_peft_model(base, lora_config(base, r=2))
        torch.manual_seed(3)
        for key, value in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.2)
        adapted.push_to_hub(f"you/adapter-{family}", private=True)
        push_model(adapted.merge_and_unload(), processor, f"you/merged-{family}", license="mit")


class Wait(TrainerCallback):
    """A training this short would otherwise write the files of its second push while the first is uploaded."""

    def on_step_begin(self, *args, **kwargs):
        self.trainer._finish_current_push()


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """(Kind of Trainer, family) -> folder and last fingerprints of a training that pushed at step 2 and at step 4."""
    found = {}
    for kind, family in ((kind, family) for kind in TRAINERS for family in FAMILIES):
        name = f"you/trainer-{family}-{kind}"
        write_card(hub, name) if kind == "publishing" else hub.create(name)
        case = CASES[CASE_OF[family]]()
        case.options["processing_class"] = MAKERS[family](0)[1]
        case.options["callbacks"] = [wait := Wait(), *([ModelCodeCallback] if kind == "plain" else [])]
        folder = tmp_path_factory.mktemp("trained") / family
        with fresh_accelerate():
            wait.trainer = trainer = case.trainer(
                folder, trainer_class=TRAINERS[kind], max_steps=4, save_strategy="steps", save_steps=2,
                push_to_hub=True, eval_strategy="steps", eval_steps=2, hub_model_id=name, hub_strategy="every_save",
                hub_always_push=True, hub_private_repo=True,
            )  # fmt: skip
            trainer.train()
            trainer.push_to_hub()
        found[kind, family] = folder, fingerprints(trainer.model)
    return found


def commits_of(hub, name):
    """Title -> name of every commit of main."""
    return {commit.title: commit.oid for commit in hub.repository(name).branches["main"].history()}


PUSHES = ("Training in progress, step 2", "End of training")


@pytest.fixture(scope="module")
def elsewhere(hub, saved, adapters, pushed, tmp_path_factory):
    """Results of a process without the package for everything on the Hub, by the kind of call and the family."""
    work = tmp_path_factory.mktemp("elsewhere")
    student, processor = make_student(vision=SWIN)
    for part in (student, processor):
        part.save_pretrained(work / "swin")
    extended = make_fusion(**EXTENDED)
    for part in extended:
        part.save_pretrained(work / "extended")
    plain = make_student(0)[0].to_clip()
    for part in (plain, make_student(0)[1]):
        part.save_pretrained(work / "clip")
    jobs = {("refused",): ("refused", ["you/load-rank_aware_fusion"], {})}
    jobs["swin",] = ("folder", [str(work / "swin")], TRUSTING)
    jobs["extended",] = ("folder", [str(work / "extended")], TRUSTING)
    jobs["plain",] = ("folder", [str(work / "clip")], {})
    jobs["piped",] = ("piped", [f"you/load-{family}" for family in FAMILIES], TRUSTING)
    for family in FAMILIES:
        jobs["loaded", family] = ("loaded", [f"you/load-{family}", family], TRUSTING)
        jobs["adapted", family] = ("adapted", [family], TRUSTING)
        for kind in TRAINERS:
            commits = commits_of(hub, f"you/trainer-{family}-{kind}")
            name = f"you/trainer-{family}-{kind}"
            jobs["pushed", family, kind] = ("revisions", [name, [commits[title] for title in PUSHES]], TRUSTING)
            jobs["checkpoint", family, kind] = ("folder", [str(pushed[kind, family][0] / "checkpoint-2")], TRUSTING)
    program = [model_reports.__file__, json.dumps(list(jobs.values()))]
    process = run_python(program, cwd=work, installed=False)
    assert process.returncode == 0, process.stderr
    assert "not supported" not in process.stderr
    found = dict(zip(jobs, json.loads(process.stdout.splitlines()[-1]), strict=True))
    found["expected"] = {"swin": fingerprints(student), "plain": fingerprints(plain)}
    found["expected"]["extended"] = fingerprints(extended[0])
    return found


def without_dtypes(config):
    """Without what transformers writes of the towers, too, once they have been loaded."""
    return {
        name: {key: entry for key, entry in value.items() if key != "dtype"} if name.endswith("_config") else value
        for name, value in config.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_loading_gives_every_tensor(family, hub, saved, elsewhere):
    here, there = model_reports.loaded(f"you/load-{family}", family), elsewhere["loaded", family]
    for report in (here, there):
        for way, found in report["tensors"].items():
            assert found == saved[family], way
        assert report["half"] == [] and report["training"] is False
        for name, written in report["written"].items():
            assert without_dtypes(written) == without_dtypes(json.loads(hub.files(f"you/load-{family}")[name])), name
    model = AutoModel.from_pretrained(f"you/load-{family}")
    for auto_class in AUTO_CLASSES[family]:
        assert type(getattr(transformers, auto_class).from_config(model.config)) is type(model)
    assert (here["outputs"], here["processor"]) == (there["outputs"], there["processor"])
    assert all(module.startswith(f"hf_blemo.{family}.") for module in here["modules"])
    assert all(module.startswith("transformers_modules.") for module in there["modules"])


def test_other_kinds_load_and_a_plain_clip_needs_no_code(elsewhere):
    names = ["RankAwareFusionProcessor", "RankAwareFusionModel"]
    assert elsewhere["extended",] == [*names, elsewhere["expected"]["extended"]]
    assert elsewhere["swin",] == ["CLIPProcessor", "CLIPRDModel", elsewhere["expected"]["swin"]]
    assert elsewhere["plain",] == ["CLIPProcessor", "CLIPModel", elsewhere["expected"]["plain"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_holds_the_code_of_its_family_and_nothing_of_the_package(family, tmp_path):
    save_tiny_model(family, tmp_path)
    sources = {path.name: path.read_text() for path in tmp_path.glob("*.py")}
    assert f"modeling_{family}.py" in sources
    for name, text in sources.items():
        assert text == (PACKAGE_FOLDER / "hf_blemo" / family / name).read_text()
        assert not re.search(r"^\s*(import|from) hf_blemo", text, re.MULTILINE), name
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    classes = {"rank_aware_fusion": "RankAwareFusion", "clip_rd": "CLIPRD"}
    expected = dict.fromkeys(AUTO_CLASSES[family], f"modeling_{family}.{classes[family]}Model")
    assert auto_map == {"AutoConfig": f"configuration_{family}.{classes[family]}Config", **expected}
    if family == "rank_aware_fusion":
        processor = json.loads((tmp_path / "processor_config.json").read_text())
        assert processor["auto_map"] == {"AutoProcessor": f"processing_{family}.RankAwareFusionProcessor"}


def test_pipelines_agree_with_and_without_the_package(elsewhere):
    names = [f"you/load-{family}" for family in FAMILIES]
    here, trusting, there = model_reports.piped(*names), model_reports.piped(*names, **TRUSTING), elsewhere["piped",]
    assert here.pop("module") == trusting.pop("module") == "hf_blemo.prediction.clip_pipeline"
    assert there.pop("module").startswith("transformers_modules.")
    assert here == trusting == there
    assert [one["blend"] for one in here["again"]] == [one["blend"] for one in here["blends"]]
    assert len(here["embedding"][0]) == 12 and here["single"] == [{"label": "red", "score": 1.0}]
    first, second = ({row["label"]: row["score"] for row in rows} for rows in here["scores"])
    assert set(first) == set(second) == set(model_reports.LABELS) and first != second
    assert "trust_remote_code=True" in elsewhere["refused",]


@pytest.mark.parametrize("family", FAMILIES)
def test_pushed_adapters_load_and_merge(family, hub, adapters, elsewhere):
    files = hub.files(f"you/adapter-{family}")
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == f"you/base-{family}"
    found = model_reports.adapted(family)
    assert found == elsewhere["adapted", family]
    for way in ("auto", "merged"):
        assert found[way] == pytest.approx(found["adapter"], abs=1e-5), way
    assert found["adapter"] != pytest.approx(found["base"], abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", TRAINERS)
def test_every_push_of_trainer_loads_without_the_package(kind, family, hub, pushed, elsewhere):
    name, (output, last) = f"you/trainer-{family}-{kind}", pushed[kind, family]
    assert next(iter(commits_of(hub, name))) == "End of training"
    # Every tensor is as the training had it then.
    found = elsewhere["pushed", family, kind]
    for fingerprint, folder in zip(found, ("checkpoint-2", "checkpoint-4"), strict=True):
        assert fingerprint == fingerprints(AutoModel.from_pretrained(output / folder)), folder
    assert found[0] != found[1] == last
    # So is a checkpoint in a folder.
    processor = AutoProcessor.from_pretrained(output / "checkpoint-2")
    assert elsewhere["checkpoint", family, kind][::2] == [type(processor).__name__, found[0]]
    if kind == "publishing":
        card = hub.files(name)["README.md"].decode()
        assert "By hand." in card and "license: mit" in card
        metadata = yaml.safe_load(card.split("---")[1])
        results = metadata["model-index"][0]["results"]
        measured = {metric["type"] for result in results for metric in result["metrics"]}
        assert measured >= ({"loss", "score"} if family == "rank_aware_fusion" else {"loss"})
        assert "| last evaluation | value |" in card and metadata["pipeline_tag"]


@pytest.mark.parametrize("family", FAMILIES)
def test_upstreams_push_to_hub_keeps_the_card_and_carries_the_code(family, hub):
    write_card(hub, f"you/upstream-{family}")
    for part in MAKERS[family](0):
        part.push_to_hub(f"you/upstream-{family}")
    files = hub.files(f"you/upstream-{family}")
    assert files["README.md"] == BY_HAND
    code = {path.name for path in (PACKAGE_FOLDER / "hf_blemo" / family).glob("*_*.py")}
    assert {f"modeling_{family}.py", "model.safetensors", "processor_config.json"} <= set(files)
    assert {name for name in files if name.endswith(".py")} <= code


def test_code_is_pinned_by_its_revision(hub, saved, tmp_path):
    """The weights of main with the code of a commit; main's own code is another by then."""
    save_tiny_model("rank_aware_fusion", tmp_path / "model")
    repository = hub.put("you/pinned", tmp_path / "model")
    first = repository.branches["main"]
    repository.edit("modeling_rank_aware_fusion.py", b"raise RuntimeError('new code')")
    code = """
import json, sys
from transformers import AutoModel
def load(**options):
    return type(AutoModel.from_pretrained("you/pinned", trust_remote_code=True, **options)).__name__
names = [load(code_revision=sys.argv[1]), load(revision=sys.argv[1])]
try:
    load()
except RuntimeError as error:
    print(json.dumps([*names, str(error)]))
"""
    report = run_code(tmp_path, code, first.oid, installed=False)
    assert report == ["RankAwareFusionModel", "RankAwareFusionModel", "new code"]


def test_loading_errors_are_one_line(hub, saved, monkeypatch):
    """Through the package's own door; each message says what was found."""
    name = "you/load-rank_aware_fusion"
    broken = hub.copy(f"{name}-sharded", "you/broken-shards")
    shard = sorted(path for path in broken.branches["main"].files if path.startswith("model-"))[1]
    broken.edit(shard, None)
    config = json.loads(hub.files(name)["config.json"])
    config["encoders"]["thermal"] = {"feature_size": 3}
    config["encoder_order"].append("thermal")
    hub.copy(name, "you/other-encoder").edit("config.json", json.dumps(config).encode())
    calls = {
        "you/other-encoder": "^you/other-encoder: the weights do not fit config.json: ",
        "you/nothing-here": "no Hub repository that can be read",
        "you/broken-shards": f"^you/broken-shards: .*{shard}",
        "you/load-clip_rd": "found model_type 'clip_rd' in config.json, expected 'rank_aware_fusion'",
    }
    for repository, message in calls.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_fusion(repository)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=f"^{name}, revision v9: the repository has no such revision$"):
        load_fusion(name, revision="v9")
    # Neither an unknown token nor nobody is told more than that.
    hub.copy(name, "you/unseen").private = True
    for token in ("", "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(FileNotFoundError, match="^you/unseen: "):
            load_fusion("you/unseen")

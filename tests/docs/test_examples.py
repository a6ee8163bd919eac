"""Every program of the documentation runs and prints what its page says; every command parses."""

import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import doc_preparations as prepare
import pytest
from fresh_processes import PACKAGE_FOLDER, run_python
from hub_server import HubServer

from hf_blemo import blemore, cli
from hf_blemo.programs import settings

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_DECIMAL = r"-?\d+\.\d+(?:e-?\d+)?"


def notebook_text(path: Path) -> str:
    """The cells of a notebook as blocks of a page; of what they printed, predictions may differ between machines."""
    blocks = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            printed = [line for output in cell["outputs"] for line in output.get("text", [])]
            told = "".join(line.strip() + "\n" for line in printed if " % " not in line)
            blocks.append(f"```python\n{''.join(cell['source'])}\n```\n```text\n{told}```\n")
    return "\n".join(blocks)


class Page:
    """The joined ```python blocks of a page, the lines of its ```text blocks, and the commands of its other blocks."""

    def __init__(self, text: str):
        found: dict[str, list[str]] = {"python": [], "text": [], "": []}
        for block in _BLOCK.finditer(text):
            found.setdefault(block["language"], []).append(block["code"])
        self.program = "\n".join(found["python"])
        self.printed = "".join(found["text"]).splitlines()
        self.commands = [command for code in found[""] + found.get("bash", []) for command in commands_of(code)]


def commands_of(code: str) -> Iterator[tuple[str, ...]]:
    """Commands of this package, without comments, launchers, placeholders and files they are written to."""
    for line in code.replace("\\\n", " ").replace("$ME", "me").splitlines():
        # Brackets mark optional arguments; three dots stand for options shown before.
        shown_before = "training/" in line and "... --" in line
        line = re.sub(r"(--config )?\.\.\.(?= |$)", "", re.sub(r"\[(--.*?)\]", r"\1", line))
        words = shlex.split(line, comments=True)
        if shown_before:
            words += ["--data", "shown/before"]
        words = list(takewhile(lambda word: word != ">", words))
        for place, word in enumerate(words):
            if word == "hf-blemo" or re.fullmatch(r"training/\w+\.py", word):
                yield tuple(words[place:])
                break
            if word in ("hf_blemo", "hf_blemo.cli") and words[place - 1] == "-m":
                yield ("hf-blemo", *words[place + 1 :])
                break


def missing_line(printed: list[str], output: str) -> str | None:
    """The first printed line of a page that the output lacks, in this order, whatever else it holds.

    A decimal fraction matches any other, and three dots match anything.
    """
    lines = iter(output.splitlines())
    for expected in printed:
        parts = [".*".join(map(re.escape, part.split("..."))) for part in re.split(_DECIMAL, expected)]
        pattern = re.compile(_DECIMAL.join(parts))
        if not any(pattern.fullmatch(line.strip()) for line in lines):
            return expected
    return None


_PATHS = [PACKAGE_FOLDER / "README.md", *sorted((PACKAGE_FOLDER / "docs").rglob("*.md"))]
PAGES = {path.relative_to(PACKAGE_FOLDER).as_posix(): Page(path.read_text(encoding="utf-8")) for path in _PATHS}
NOTEBOOKS = sorted((PACKAGE_FOLDER / "docs" / "notebooks").glob("*.ipynb"))
PAGES |= {path.relative_to(PACKAGE_FOLDER).as_posix(): Page(notebook_text(path)) for path in NOTEBOOKS}

# Names that fragments of two pages use without defining them.
TEACHER_AND_BATCH = """
import torch
from transformers import CLIPConfig, CLIPModel
tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
config = CLIPConfig(vision_config={**tower, "image_size": 224, "patch_size": 112}, text_config=tower)
teacher = CLIPModel(config)
ids = torch.tensor([[49406, 5, 49407], [49406, 6, 49407]])
images, mask = torch.randn(2, 3, 224, 224), torch.ones_like(ids)
batch = {"pixel_values": images, "input_ids": ids, "attention_mask": mask}
"""
PREDICTIONS = """
import numpy as np
from hf_blemo import blemore
labels = blemore.LABEL_MATRIX
probabilities = labels * 0.9 + 0.1 / 6
clips = [f"test_{number:04d}" for number in range(1, 595)]
test_probabilities = probabilities[np.arange(594) % 36]
"""
GRADIENTS = """
assert all(value.grad is not None for value in student.parameters())
"""
SUBMITTED = """
import json, zipfile
with zipfile.ZipFile("submission.zip") as file:
    [name] = file.namelist()
    assert len(json.loads(file.read(name))["predictions"]) == 594
assert (acc_presence, acc_salience) == (1.0, 1.0)
"""


@dataclass(frozen=True)
class Example:
    """How the program of a page is run.

    Args:
        prepare: makes what its reader has: of the Hub, the program's folder, and a folder for other things.
        before, after: code in front of the page's, for what its fragments leave out, and behind it, for what holds.
        needs: modules without which it is skipped.
        options: with them the page's commands run in front of the program; subcommand -> what makes it small.
        check: of the Hub and the program's folder, afterwards.
    """

    prepare: Callable[[Any, Path, Path], None] = lambda *_: None
    before: str = ""
    after: str = ""
    needs: tuple[str, ...] = ()
    options: dict[str, tuple[str, ...]] | None = None
    check: Callable[[HubServer, Path], None] = lambda *_: None


def published(hub: HubServer, work: Path) -> None:
    """Checks two commits and a tag, the card of a push from Trainer, and Parquet."""
    repository = hub.repository("you/my-fusion")
    titles = [commit.title for commit in repository.branches["main"].history()]
    assert titles[0] == "Decode by thresholds" and list(repository.tags) == ["v1"] and repository.private
    assert b"base_model: you/fusion" in hub.files("you/my-fusion")["README.md"]
    pushed = hub.files("you/my-pushed-fusion")
    assert {"model.safetensors", "modeling_rank_aware_fusion.py", "processor_config.json"} <= set(pushed)
    assert b"eval_score" in pushed["README.md"] or b"Score" in pushed["README.md"]
    assert any(path.endswith(".parquet") for path in hub.files("you/my-features", kind="dataset"))


def adapters(hub: HubServer, work: Path) -> None:
    """Checks that only the adapter was pushed, and a whole model after merging."""
    assert "model.safetensors" not in hub.files("you/fusion-lora")
    assert "adapter_model.safetensors" in hub.files("you/fusion-lora")
    assert "model.safetensors" in hub.files("you/fusion-merged")
    assert (work / "out" / "student-lora" / "adapter_model.safetensors").is_file()


EXAMPLES = {
    "README.md": Example(prepare.trained_fusion, before=TEACHER_AND_BATCH + PREDICTIONS, after=GRADIENTS + SUBMITTED),
    "docs/adding_an_encoder.md": Example(
        prepare.fusion_and_features,
        after="assert list(AutoModel.from_pretrained('out/grown').config.encoders) == ['face', 'voice', 'breath']",
    ),
    "docs/clip_rd.md": Example(
        before=TEACHER_AND_BATCH, after=GRADIENTS + "assert student.num_parameters() == 46116097"
    ),
    "docs/clips.md": Example(
        prepare.student_and_clip,
        after="assert encoded.features.shape == (len(encoded.times), 12) and encoded.times[0] == 0",
    ),
    "docs/distilling_your_own.md": Example(
        prepare.teacher_and_pictures,
        needs=("onnxruntime", "onnxscript"),
        options={"distill": ("--batch_size", "4", "--num_workers", "0", "--epochs", "1"), "export": ()},
        after="""
from hf_blemo import CLIPRDModel
found = AutoModel.from_pretrained("out/student").state_dict()
assert any(not torch.equal(values, loaded.state_dict()[name]) for name, values in found.items())
assert all(torch.equal(values, found[name]) for name, values in student.state_dict().items())
""",
    ),
    "docs/domain_adaptation.md": Example(prepare.two_domains, after="assert distance() < before"),
    "docs/fine_tuning.md": Example(
        prepare.tables_of_strangers,
        after="""
from transformers import AutoProcessor
assert found["eval_kl"] < 0.3 and weights.min() > 0.02
for folder, number, kind in (("emotions", 7, "valid"), ("votes", 3, "soft"), ("with-text", 7, "valid")):
    loaded, reader = AutoModel.from_pretrained(f"out/{folder}"), AutoProcessor.from_pretrained(f"out/{folder}")
    assert loaded.config.label_space == reader.label_space and len(reader.label_space) == number
    assert loaded.config.label_kind == reader.label_kind == kind
assert loaded.config.encoders["text"]["modality"] == "text"
""",
    ),
    "docs/lora.md": Example(prepare.both_families, check=adapters),
    "docs/notebooks/distillation.ipynb": Example(
        after="assert scores['distilled'] > scores['alone'] + 0.05 and scores['teacher'] > scores['distilled']"
    ),
    "docs/notebooks/fusion.ipynb": Example(after="assert found['eval_score'] > 0.3 and np.mean(hits) > 0.8"),
    "docs/publishing.md": Example(prepare.trained_folder, check=published),
    "docs/sentence_transformers.md": Example(prepare.student_and_pictures, needs=("sentence_transformers",)),
    "docs/pictures_alone.md": Example(
        prepare.pictures_alone, options={"distill": ("--batch_size", "4", "--num_workers", "0", "--epochs", "1")}
    ),
    "docs/start_from_what_you_have.md": Example(
        prepare.starts, options={"distill": ("--batch_size", "4", "--num_workers", "0", "--epochs", "1")}
    ),
    "docs/start_pairs.md": Example(prepare.own_student),
    "docs/start_pipeline.md": Example(needs=("av",)),
    "docs/using_elsewhere.md": Example(prepare.both_families, needs=("onnxruntime", "onnxscript")),
}


def test_every_program_is_run():
    assert sorted(name for name, page in PAGES.items() if page.program) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_program_of_a_page_does_what_the_page_says(name, hub, tmp_path, monkeypatch, fresh_accelerate_state):
    example, page = EXAMPLES[name], PAGES[name]
    for module in example.needs:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    (tmp_path / "program.py").write_text("\n".join([example.before, page.program, example.after]), encoding="utf-8")
    with hub.emptied():
        example.prepare(hub, work, scratch)
        monkeypatch.chdir(work)
        for _, command, *words in page.commands if example.options is not None else ():
            assert cli.main([command, *words, *example.options[command]]) == 0
        process = run_python([tmp_path / "program.py"], cwd=work)
        assert process.returncode == 0, process.stderr
        missing = missing_line(page.printed, process.stdout)
        assert missing is None, f"{name} says that this is printed: {missing}\nfound:\n{process.stdout}"
        example.check(hub, work)
    assert page.printed or example.after, f"{name}: nothing is asserted"


def test_the_commands_of_a_submission_end_in_a_valid_one(hub, tmp_path, monkeypatch, capsys, fresh_accelerate_state):
    monkeypatch.chdir(tmp_path)
    with hub.emptied():
        prepare.folders_of_clips(hub, tmp_path / "data")
        page = PAGES["docs/clips_to_submission.md"]
        for _, *words in page.commands:
            code = cli.main([*words, *(("--num_epochs", "2", "--seeds", "0") if words[0] == "train" else ())])
            assert code == 0, (words, capsys.readouterr().err)
    assert [words[1] for words in page.commands] == ["features", "train", "predict", "submit", "submit"]
    *_, checked, written = capsys.readouterr().out.splitlines()
    assert checked == "out/submission.zip: a valid submission" and written.startswith("out/again.zip: 594 clips")
    assert checked in (PACKAGE_FOLDER / "docs" / "clips_to_submission.md").read_text(encoding="utf-8")
    assert blemore.check_submission("out/again.zip") == []
    # What the page says of refused names.
    Path("data/test/test_0003.mov").rename("data/test/notes.mov")
    Path("data/test/test_0004.mov").unlink()
    assert cli.main(list(page.commands[2][1:])) == 2
    assert capsys.readouterr().err.splitlines()[:-1] == page.printed


# Files of settings that a page has its reader write.
SETTINGS = {
    name: text
    for path in _PATHS
    for name, text in re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
}
COMMANDS = sorted({command for page in PAGES.values() for command in page.commands})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_understood(command, monkeypatch, tmp_path):
    monkeypatch.chdir(PACKAGE_FOLDER)
    for name, text in SETTINGS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    program, *arguments = [str(tmp_path / word) if word in SETTINGS else word for word in command]
    if program == "hf-blemo":
        assert callable(cli._make_parser().parse_args(arguments).handler)
        return

    class Understood(Exception):
        pass

    def parse(settings_class: type, argv: Any = None, *help_and_name: str) -> None:
        settings.read_settings(settings_class, arguments)
        raise Understood

    monkeypatch.setattr(settings, "parse_settings", parse)
    with pytest.raises(Understood):
        runpy.run_path(program, run_name="__main__")


def test_commands_are_found_and_wrong_ones_are_not_understood(monkeypatch, tmp_path):
    text = """```
accelerate launch training/train_fusion.py ... --nonsense 3  # comment
hf-blemo dataset build SOURCE --output out [--push-to-hub "$ME/name"]
accelerate launch --num_processes 2 -m hf_blemo.cli recipes
make bench
```
"""
    commands = Page(text).commands
    assert commands == [
        ("training/train_fusion.py", "--nonsense", "3", "--data", "shown/before"),
        ("hf-blemo", "dataset", "build", "SOURCE", "--output", "out", "--push-to-hub", "me/name"),
        ("hf-blemo", "recipes"),
    ]
    for wrong in (commands[0], ("hf-blemo", "publish", "out", "--repository", "you/it")):
        with pytest.raises(SystemExit):
            test_every_command_is_understood(wrong, monkeypatch, tmp_path)
    assert len(COMMANDS) > 15


def test_printed_lines_are_matched_in_order():
    page = Page("```python\nprint(1)\n```\n```text\nloss 0.51\n3 of [...]\n```\n")
    assert page.program == "print(1)\n" and page.printed == ["loss 0.51", "3 of [...]"]
    assert missing_line(page.printed, "loss 1.2e-05\nother\n3 of ['a']\n") is None
    assert missing_line(page.printed, "3 of []\nloss 0.5\n") == "3 of [...]"
    assert missing_line(page.printed, "loss nan\n3 of []\n") == "loss 0.51"
    assert missing_line(page.printed, "loss 0.5\n4 of []\n") == "3 of [...]"

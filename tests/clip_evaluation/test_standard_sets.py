"""Labels of data find their classes in standard sets whatever their order and spelling, or are refused."""

import json
import random
import shutil
import sys
from importlib.util import find_spec

import datasets
import pytest
from pair_files import encoded, picture

from hf_blemo.cli import main
from hf_blemo.clip_evaluation.standard_sets import STANDARD_SETS, _read, classes_of_data, standard_name
from hf_blemo.clip_evaluation.tasks import make_tasks
from hf_blemo.errors import MissingExtraError

HAS_TABLES = find_spec("clip_benchmark") is not None

# What the tests' own clip_benchmark has: names of its own, some of them spelled as no data does.
MOODS = ["angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]
LAND = ["crop fields", "forest", "shrubs or bushes", "road", "plants", "meadow", "orchard", "houses", "river", "lake"]
WNIDS = [f"n{number:08d}" for number in range(1000)]
PLACES = list(range(7, 1000, 5))[:197] + [1, 2, 3]
THINGS = [f"thing {number}" for number in range(1000)]
NAMES = {
    "fer2013": MOODS,
    "eurosat": LAND,
    "svhn": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "pets": [f"Cat No {number}" for number in range(20)] + [f"Big Dog {number}" for number in range(17)],
    "imagenet1k": THINGS,
}
TEMPLATES = {"food101": ["{c} to eat."], "cifar10": ["a {c}", "the {c}"]} | {name: ["a {c}."] for name in NAMES}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A package clip_benchmark with the files that are read, in code that cannot be imported."""
    folder = tmp_path / "packages" / "clip_benchmark" / "datasets"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "en_classnames.json").write_text(json.dumps(NAMES))
    (folder / "en_zeroshot_classification_templates.json").write_text(json.dumps(TEMPLATES))
    part = {WNIDS[number] for number in PLACES}
    (folder / "builder.py").write_text(
        f"import torchvision_that_is_not_there\ndef build():\n    imagenet_a_wnids = {sorted(part)}\n"
        f"    imagenet_r_wnids = {part}\nall_imagenet_wordnet_ids = {WNIDS}\n"
    )
    for name in ("clip_benchmark", "clip_benchmark.datasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder.parents[1]))
    yield folder
    for name in ("clip_benchmark", "clip_benchmark.datasets"):
        sys.modules.pop(name, None)


def found(name, named=None, labels=()):
    """Label -> name of its class."""
    classes = classes_of_data(name, named, labels, "data")
    return {label: classes.names[number] for label, number in classes.numbers.items()}


KEPT = sorted(PLACES)
PART = [f"thing {number}" for number in KEPT]
FITTING = {
    "another order": ("fer2013", ["surprise", "disgust", "fear", "happy", "sad", "angry", "neutral"],
                      ["surprised", "disgusted", "fearful", "happy", "sad", "angry", "neutral"]),
    "CamelCase, a part of the words, an alias": (
        "eurosat", ["River", "CropFields", "Forest", "shrubs", "Road", "plant", "MEADOW", "Orchards", "house", "lake"],
        ["river", *[name for name in LAND if name != "river"]]),
    "some of the classes": ("eurosat", ["lake", "forest"], ["lake", "forest"]),
    "the same order and half of the names": (
        "imagenet_sketch", [*THINGS[:500], *(f"u{number}" for number in range(500))], THINGS),
    "digits, sorted as texts": ("imagenet_v2", sorted(map(str, range(1000))),
                                [f"thing {number}" for number in sorted(range(1000), key=str)]),
    "digits of a set that spells them out": ("svhn", list("9876543210"), NAMES["svhn"][::-1]),
    "WordNet ids": ("imagenet_r", [WNIDS[number] for number in KEPT], PART),
    "synonyms": ("imagenet", [f"thing {number}, res {number}" for number in range(1000)], THINGS),
    "names of ImageNet": ("imagenet_a", [f"Thing_{number}" for number in KEPT[::-1]], PART[::-1]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "named", "expected"), FITTING.values(), ids=FITTING.keys())
def test_named_labels_find_their_classes(name, named, expected, tables):
    assert found(name, named) == dict(enumerate(expected))
    # The order of the data is not what decides, unless it is all that there is.
    if "u1" not in named:
        assert found(name, None, [*named, *named]) == dict(zip(named, expected, strict=True))
        own = list(zip(named, expected, strict=True))
        random.Random(0).shuffle(own)
        assert found(name, [one for one, _ in own]) == dict(enumerate(expected for _, expected in own))


def test_numbers_count_in_the_order_of_the_set(tables):
    assert found("svhn", None, [3, 0, 3]) == {0: "zero", 3: "three"}
    assert found("imagenet", None, [999]) == {999: "thing 999"}
    # Of a part of ImageNet, numbers are of the part or of ImageNet.
    assert found("imagenet_a", None, range(200)) == dict(enumerate(PART))
    assert found("imagenet_a", None, KEPT) == dict(zip(KEPT, PART, strict=True))
    assert found("imagenet_a", None, [0, 4]) == {0: PART[0], 4: PART[4]}
    # Data may know all of ImageNet's classes and show a part.
    assert found("imagenet_a", WNIDS) == dict(zip(KEPT, PART, strict=True))


def test_sets_without_names_take_those_of_the_data(tables):
    named = [f"{letter}/dish_{number}" for number, letter in enumerate("abcdefghij" * 10)] + ["apple_pie"]
    classes = classes_of_data("food101", named, (), "data")
    assert classes.names == [f"dish {number}" for number in range(100)] + ["apple pie"]
    assert classes.templates == ["{} to eat."] and not classes.per_class
    assert classes.numbers == {number: number for number in range(101)}
    assert classes_of_data("pets", NAMES["pets"], (), "data").per_class


BAD = {
    "another set": ("fer2013", ["car", "cat", "dog"], "found the label names 'car', 'cat', 'dog', expected names of"),
    "one that is not in the set": ("fer2013", [*MOODS[:5], "sad", "contempt"], "names 'contempt'.*as 'surprised'; a"),
    "too many": ("fer2013", [*MOODS, "bored"], "found 8 classes, expected the 7 of the set"),
    "too few without names": ("cifar10", ["cat"], "found 1 classes, expected the 10 of the set"),
    "numbers in no known order": ("fer2013", [0, 1], "numbers without names, whose order is not known; expected clas"),
    "numbers as texts": ("fer2013", ["0", "1"], "numbers without names"),
    "numbers without names anywhere": ("food101", list(range(101)), "numbers without names"),
    "too large a number": ("svhn", [10, 3], "found the labels 10, expected numbers below 10"),
    "a missing label": ("svhn", [-1, 3], "found the labels -1"),
    "of a part or of all": ("imagenet_a", [7, 12], "2 different numbers that could count either 200 classes or 1,000"),
    "of neither": ("imagenet_a", [0, 999], "or are none of the set's"),
    "half numbers": ("svhn", [0.5], "found the labels 0.5, expected class numbers or class names"),
    "mixed": ("fer2013", ["sad", 3], "found the labels 3, 'sad', expected class numbers or class names"),
}


@pytest.mark.parametrize(("name", "labels", "message"), BAD.values(), ids=BAD.keys())
def test_labels_that_do_not_fit_are_refused(name, labels, message, tables):
    with pytest.raises(ValueError, match=f"^data, classes '{name}': .*{message}"):
        classes_of_data(name, None, labels, "data")
    if all(isinstance(label, str) and not label.isdecimal() for label in labels):
        with pytest.raises(ValueError, match=message):
            classes_of_data(name, labels, (), "data")


def test_a_package_of_another_make_is_one_clear_error(tables):
    (tables / "builder.py").write_text("wordnet = []")
    with pytest.raises(ValueError, match="classes 'imagenet_a': expected the tables of clip_benchmark 1.6, found"):
        classes_of_data("imagenet_a", WNIDS, (), "data")
    (tables / "en_classnames.json").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="en_classnames.json"):
        classes_of_data("svhn", None, [1], "data")


def _saved(folder, labels, feature) -> str:
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(str(folder))
    return str(folder)


def test_tasks_take_standard_sets_by_name(tables, tmp_path, caplog):
    moods = datasets.ClassLabel(names=["Sad", "happy", "anger", "Fear", "disgust", "surprise", "neutral"])
    moods.names[2] = "angry"
    data = _saved(tmp_path / "faces", [0, 6, 3], moods)
    settings = {"kind": "zero_shot", "data": data, "split": "train", "classes": "FER-2013"}
    (task,) = make_tasks({"faces": settings}).values()
    assert [MOODS[label] for label in task.labels] == ["sad", "neutral", "fearful"] and not task.per_class
    assert task.prompts == [[f"a {mood}."] for mood in MOODS]
    (task,) = make_tasks({"faces": {**settings, "templates": ["{}!"]}}).values()
    assert task.prompts[0] == ["angry!"]
    # All labels of a table decide, not those of the first images alone.
    data = _saved(tmp_path / "things", [KEPT.index(number) for number in KEPT], datasets.Value("int64"))
    settings = {"kind": "zero_shot", "data": data, "split": "train", "classes": "imagenet-a", "limit": 3}
    assert make_tasks({"things": settings})["things"].labels == [0, 1, 2]
    assert not [record for record in caplog.records if "holds" in record.message]
    data = _saved(tmp_path / "cats", ["cat no 3", "Cat-No-4"], datasets.Value("string"))
    settings = {"kind": "zero_shot", "data": data, "split": "train", "classes": "pets"}
    task = make_tasks({"cats": settings})["cats"]
    assert (task.labels, task.per_class) == ([3, 4], True)


def test_the_command_takes_them_too(tables, tmp_path, capsys, caplog, trained_student):
    data = _saved(tmp_path / "cats", ["cat no 3", "cat no 4", "cat no 4"], datasets.Value("string"))
    output = tmp_path / "found.json"
    student = shutil.copytree(trained_student, tmp_path / "student")
    arguments = ["evaluate", "--model", str(student), "--zero-shot", data, "--split", "train"]
    assert main([*arguments, "--classes", "Pets", "--output", str(output), "--card"]) == 0
    printed = capsys.readouterr()
    found = json.loads(output.read_text())["tasks"]["cats_zero_shot"]
    assert (found["classes"], found["images"]) == (37, 3) and 0 <= found["mean_per_class_recall"] <= 1
    assert "|  top-5 | mean per class |" in printed.out
    assert f"{found['mean_per_class_recall']:.4f} " in printed.out
    assert f"**this model** | {found['mean_per_class_recall']:.1%} |" in (student / "README.md").read_text()
    assert "cats column 'label': holds 2 of the 37 classes of 'pets'" in caplog.text
    assert main([*arguments, "--classes", "eurosta"]) == 2
    error = capsys.readouterr().err
    assert "classes 'eurosta': neither a JSON file nor a standard set" in error and "did you mean 'eurosat'?" in error
    assert main([*arguments, "--classes", "eurosat"]) == 2
    assert "classes 'eurosat': found the label names 'cat no 3', 'cat no 4', expected" in capsys.readouterr().err


def test_names_are_found_whatever_their_signs():
    assert {standard_name(name) for name in ("Food-101", "food 101", "FOOD101")} == {"food101"}
    assert standard_name("ImageNet-V2") == "imagenet_v2" and standard_name("imagenet-x") is None
    assert standard_name(None) is None and standard_name("") is None


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    message = "classes 'Pets' needs clip_benchmark: pip install --no-deps \"clip.benchmark"
    with pytest.raises(MissingExtraError, match=message):
        make_tasks({"a": {"kind": "zero_shot", "data": ".", "classes": "Pets"}})


@pytest.mark.skipif(not HAS_TABLES, reason="needs clip_benchmark (pip install --no-deps clip_benchmark)")
@pytest.mark.parametrize("name", STANDARD_SETS)
def test_the_library_has_what_the_sets_need(name):
    """Its own names, shuffled and respelled, find themselves; sets without names take those of data."""
    known = STANDARD_SETS[name]
    own, templates, ids = _read(known, name)
    assert own is None or len(own) == known.classes
    assert templates and all(text.count("{}") == 1 for text in templates)
    # Two classes of ImageNet may share a name, so WordNet ids are what tells them apart.
    named = list(own or map("dish_{}".format, range(known.classes))) if ids is None else [ids.all[n] for n in ids.kept]
    order = random.Random(0).sample(range(known.classes), known.classes)
    matched = classes_of_data(name, [named[number].upper().replace(" ", "_") for number in order], (), "data")
    if own is None:
        assert matched.names == [f"DISH {number}" for number in order]
    else:
        assert [matched.numbers[row] for row in range(known.classes)] == order and matched.names == own

"""Tasks from any data: labels by number or name, captions one or many, whole or the first of a stream."""

import json

import datasets
import pytest
from pair_files import encoded, picture, write_shards

from hf_blemo.clip_evaluation.tasks import TEMPLATES, make_tasks

COUNT = 6
NAMES = ["great_tit", "robin", "wren"]


def saved(folder, **columns) -> str:
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(COUNT)]
    features = {"image": datasets.Image()}
    for name, (feature, _) in columns.items():
        features[name] = feature
    values = {"image": images, **{name: found for name, (_, found) in columns.items()}}
    datasets.Dataset.from_dict(values, features=datasets.Features(features)).save_to_disk(str(folder))
    return str(folder)


def one(**settings):
    (task,) = make_tasks({"a": {"split": "train", **settings}}).values()
    return task


def opened(image):
    return image["bytes"] if isinstance(image, dict) else image


def test_labels_have_the_names_of_the_data(tmp_path):
    data = saved(tmp_path / "birds", label=(datasets.ClassLabel(names=NAMES), [0, 1, 2, 2, 1, 0]))
    task = one(kind="zero_shot", data=data)
    names = ["great tit", "robin", "wren"]
    assert task.prompts == [[template.format(name) for template in TEMPLATES] for name in names]
    assert task.labels == [0, 1, 2, 2, 1, 0] and task.data == data
    assert [opened(image) for image in task.images] == [encoded(picture(number)) for number in range(COUNT)]
    short = one(kind="zero_shot", data=data, limit=4, templates=["the bird {}"])
    assert short.labels == [0, 1, 2, 2] and len(short.images) == 4
    assert short.prompts == [[f"the bird {name}"] for name in names]
    for templates in (["a photo"], ["{} and {}"]):
        with pytest.raises(ValueError, match="evaluation.a: template '.*': expected one {} for the class name"):
            one(kind="zero_shot", data=data, templates=templates)


def test_labels_may_be_texts_or_numbers_of_a_table(tmp_path):
    texts = saved(tmp_path / "texts", bird=(datasets.Value("string"), ["wren", "robin"] * 3))
    task = one(kind="zero_shot", data=texts, label_column="bird", templates=["{}"])
    assert task.prompts == [["robin"], ["wren"]] and task.labels == [1, 0] * 3
    table = tmp_path / "birds.json"
    table.write_text(json.dumps({"classes": ["wren", "robin", "tit"], "templates": ["a {}"]}))
    task = one(kind="zero_shot", data=texts, label_column="bird", classes=str(table))
    assert task.labels == [0, 1] * 3 and task.prompts == [["a wren"], ["a robin"], ["a tit"]]
    numbers = saved(tmp_path / "numbers", label=(datasets.Value("int64"), [0, 2, 1, 0, 2, 1]))
    assert one(kind="zero_shot", data=numbers, classes=str(table)).labels == [0, 2, 1, 0, 2, 1]
    with pytest.raises(ValueError, match="column 'label' holds no class names; expected classes"):
        one(kind="zero_shot", data=numbers)
    table.write_text(json.dumps({"classes": ["wren", "robin"]}))
    with pytest.raises(ValueError, match="numbers row 1: label 2 is not one of 2 classes"):
        one(kind="zero_shot", data=numbers, classes=str(table))


def test_images_may_have_several_captions(tmp_path):
    lists = [[f"caption {number} {k}" for k in range(1 + number % 3)] for number in range(COUNT)]
    data = saved(tmp_path / "pairs", captions=(datasets.List(datasets.Value("string")), lists))
    task = one(kind="retrieval", data=data, caption_column="captions")
    assert [list(own) for own in task.captions] == lists
    texts = saved(tmp_path / "texts", caption=(datasets.Value("string"), [f"caption {n}" for n in range(COUNT)]))
    assert one(kind="retrieval", data=texts).captions == [[f"caption {number}"] for number in range(COUNT)]
    broken = saved(tmp_path / "broken", caption=(datasets.Value("string"), ["caption", None] * 3))
    with pytest.raises(ValueError, match=r"broken row 1: found the captions \[None\], expected text"):
        one(kind="retrieval", data=broken)


def test_the_first_of_a_stream_are_taken(tmp_path):
    shards = write_shards(tmp_path / "shards", [f"caption {number}" for number in range(9)], 3)
    task = one(kind="retrieval", data=str(shards), streaming=True, limit=5)
    whole = one(kind="retrieval", data=str(shards))
    assert len(task.images) == 5 and task.captions == whole.captions[:5] and len(whole.captions) == 9
    assert [opened(image) for image in task.images] == [opened(whole.images[number]) for number in range(5)]
    columns = {"label_column": "txt", "image_column": "jpg", "templates": ["{}"]}
    named = one(kind="zero_shot", data=str(shards), streaming=True, limit=2, **columns)
    assert named.labels == [0, 1] and named.prompts == [["caption 0"], ["caption 3"]]
    with pytest.raises(ValueError, match="evaluation.a: streaming needs limit"):
        one(kind="retrieval", data=str(shards), streaming=True)


def test_bad_settings_are_named():
    for settings, message in (
        (
            {"kind": "retreival"},
            "evaluation.a.kind: found 'retreival', expected zero_shot, retrieval, syn",
        ),
        ({"kind": "retrieval"}, "evaluation.a: kind 'retrieval' needs data"),
        ({"knd": "retrieval"}, "evaluation.a: unknown setting 'knd'; the nearest known one is 'kind'"),
        ({"kind": "retrieval", "data": "x/y", "limit": -1}, "evaluation.a.limit: expected at least 0, found -1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_tasks({"a": settings})
    with pytest.raises(ValueError, match="evaluation.b: there is a task 'zero_shot' already"):
        make_tasks({name: {"kind": "synthetic", "options": {"images": 4}} for name in ("a", "b")})


def test_class_tables_are_checked(tmp_path):
    data, table = saved(tmp_path / "numbers", label=(datasets.Value("int64"), [0] * COUNT)), tmp_path / "table.json"
    for content, message in (
        (None, "classes '.*table.json': neither a JSON file nor a standard set, expected a"),
        ({}, "expected 'classes', a list of texts, found None"),
        ({"classes": ["a", 3]}, "expected 'classes', a list of texts"),
        ({"classes": ["a"], "templates": "a {}"}, "expected 'templates', a list of texts, found 'a {}'"),
    ):
        if content is not None:
            table.write_text(json.dumps(content))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            one(kind="zero_shot", data=data, classes=str(table))

"""Class names and templates of the usual zero-shot sets, which clip_benchmark keeps, fitted to the labels of data."""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hf_blemo.errors import check_extra, reading

PER_CLASS = "mean_per_class_recall"
_SHOWN = 3
_LEAST_PREFIX = 4
_MANY = 100


@dataclass(frozen=True)
class StandardSet:
    """A set whose data people have.

    Args:
        key: its name in clip_benchmark.
        classes: how many it has.
        numbered: whether all its data counts the classes alike, so that numbers need no names.
        per_class: whether its usual measure is the mean recall of the classes.
        part: name of the list of WordNet ids in clip_benchmark's code, for a part of ImageNet's classes.
        aliases: names that data has -> names that clip_benchmark has, where no rule connects them.
    """

    key: str
    classes: int
    numbered: bool = False
    per_class: bool = False
    part: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)


_FACES = {"Faces": "off-center face", "Faces_easy": "centered face"}
_FLOWERS = {"ball moss": "air plant", "barberton daisy": "barbeton daisy"}
STANDARD_SETS = {
    "aircraft": StandardSet("fgvc_aircraft", 100, per_class=True),
    "caltech101": StandardSet("caltech101", 102, per_class=True, aliases=_FACES),
    "cars": StandardSet("cars", 196),
    "cifar10": StandardSet("cifar10", 10),
    "cifar100": StandardSet("cifar100", 100),
    "country211": StandardSet("country211", 211, numbered=True),
    "dtd": StandardSet("dtd", 47),
    "eurosat": StandardSet("eurosat", 10, aliases={"HerbaceousVegetation": "brushland or shrubland"}),
    "fer2013": StandardSet("fer2013", 7),
    "flowers102": StandardSet("flowers", 102, per_class=True, aliases=_FLOWERS),
    "food101": StandardSet("food101", 101),
    "gtsrb": StandardSet("gtsrb", 43, numbered=True),
    "imagenet": StandardSet("imagenet1k", 1000, numbered=True),
    "imagenet_a": StandardSet("imagenet1k", 200, numbered=True, part="imagenet_a_wnids"),
    "imagenet_r": StandardSet("imagenet1k", 200, numbered=True, part="imagenet_r_wnids"),
    "imagenet_sketch": StandardSet("imagenet1k", 1000, numbered=True),
    "imagenet_v2": StandardSet("imagenet1k", 1000, numbered=True),
    "mnist": StandardSet("mnist", 10, numbered=True),
    "pcam": StandardSet("pcam", 2, numbered=True),
    "pets": StandardSet("pets", 37, per_class=True),
    "rendered_sst2": StandardSet("renderedsst2", 2),
    "resisc45": StandardSet("resisc45", 45),
    "stl10": StandardSet("stl10", 10),
    "sun397": StandardSet("sun397", 397),
    "svhn": StandardSet("svhn", 10, numbered=True),
}


class NamedClasses(NamedTuple):
    """The classes of a set, as some data counts them.

    Args:
        names: of the classes, in the set's order.
        templates: prompts with `{}` for the class name.
        numbers: label of the data, a number or a name -> number of its class.
        per_class: whether the set's usual measure is the mean recall of the classes.
    """

    names: list[str]
    templates: list[str]
    numbers: dict[Any, int]
    per_class: bool = False


def standard_name(name: str | None) -> str | None:
    """The key in `STANDARD_SETS` of a name, whatever its case and signs; None where it is none."""
    folded = {re.sub(r"[^a-z0-9]", "", known): known for known in STANDARD_SETS}
    return folded.get(re.sub(r"[^a-z0-9]", "", (name or "").lower()))


def classes_of_data(name: str, named: Sequence[str] | None, labels: Iterable[Any], where: str) -> NamedClasses:
    """The classes of a standard set, with the numbers that the labels of some data have in it.

    Labels are matched by their names: spelling, order and a part of the classes may differ, and for ImageNet they may
    be WordNet ids. Numbers without names are taken where all data of the set counts alike.

    Args:
        name: of `STANDARD_SETS`.
        named: names of the data's class numbers; None where labels are not numbers with names.
        labels: of all images; not looked at where they have names.
        where: the data, for messages.
    """
    known, where = STANDARD_SETS[name], f"{where}, classes {name!r}"
    check_extra("sets", f"classes {name!r}")
    names, templates, ids = _read(known, name)
    found = list(named) if named is not None else sorted({label for label in labels if label is not None}, key=str)
    if all(isinstance(label, int) or str(label).isdecimal() for label in found) and (named is None or known.numbered):
        # Names that are digits are numbers that somebody has sorted as texts.
        numbers = _numbers([int(label) for label in found], known, ids, names, where)
        own = names
    elif not all(isinstance(label, str) for label in found):
        raise ValueError(f"{where}: found the labels {_few(found)}, expected class numbers or class names")
    elif names is None:
        own = [_plain(label) for label in found]
        if len(own) != known.classes:
            raise ValueError(f"{where}: found {len(own)} classes, expected the {known.classes} of the set")
        numbers = list(range(len(own)))
    else:
        own, numbers = names, _match(found, known, names, ids, where, in_order=named is not None)
    assert own is not None
    keys = range(len(found)) if named is not None else found
    return NamedClasses(
        own,
        templates,
        {key: number for key, number in zip(keys, numbers, strict=True) if number >= 0},
        known.per_class,
    )


class _Ids(NamedTuple):
    """WordNet ids of ImageNet's 1,000 classes, their names, and the numbers of the classes that a set keeps."""

    all: list[str]
    names: list[str]
    kept: list[int]


def _read(known: StandardSet, name: str) -> tuple[list[str] | None, list[str], _Ids | None]:
    """Class names, where clip_benchmark has some; templates; and ids, for ImageNet."""
    from importlib.resources import files

    folder = files("clip_benchmark.datasets")
    with reading(f"classes {name!r}", "the tables of clip_benchmark 1.6"):
        names = json.loads((folder / "en_classnames.json").read_text(encoding="utf-8")).get(known.key)
        tables = json.loads((folder / "en_zeroshot_classification_templates.json").read_text(encoding="utf-8"))
        templates = [template.replace("{c}", "{}") for template in tables[known.key]]
        if known.key != "imagenet1k":
            return names, templates, None
        # They stand in code that needs torchvision, which is read without being run.
        wanted = {"all_imagenet_wordnet_ids", *([known.part] if known.part else [])}
        lists = {
            target.id: ast.literal_eval(node.value)
            for node in ast.walk(ast.parse((folder / "builder.py").read_text(encoding="utf-8")))
            if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name) and target.id in wanted
        }
        ids = lists["all_imagenet_wordnet_ids"]
        part = set(lists[known.part]) if known.part else set(ids)
        kept = [number for number, wordnet in enumerate(ids) if wordnet in part]
        return [names[number] for number in kept], templates, _Ids(ids, names, kept)


def _numbers(found: list[int], known: StandardSet, ids: _Ids | None, names: list[str] | None, where: str) -> list[int]:
    """Class numbers of plain numbers."""
    if names is None or not known.numbered:
        raise ValueError(
            f"{where}: found numbers without names, whose order is not known; expected class names, or a JSON table "
            "with 'classes' in the order of the numbers"
        )
    outside = [number for number in found if not 0 <= number < (1000 if ids else known.classes)]
    if outside:
        raise ValueError(
            f"{where}: found the labels {_few(outside)}, expected numbers below {1000 if ids else known.classes}"
        )
    if ids is None or known.part is None:
        return found
    # Labels of a part of ImageNet count the part, or are ImageNet's own.
    of_part = max(found, default=0) < known.classes
    of_all = set(found) <= set(ids.kept)
    if of_part and (not of_all or len(set(found)) == known.classes):
        return found
    if of_all and not of_part:
        return [ids.kept.index(number) for number in found]
    raise ValueError(
        f"{where}: found {len(found)} different numbers that could count either {known.classes} classes or 1,000, or "
        f"are none of the set's; expected WordNet ids, class names, or all {known.classes} classes"
    )


def _match(
    found: list[str], known: StandardSet, names: list[str], ids: _Ids | None, where: str, in_order: bool
) -> list[int]:
    """Number of the class of every name that data has."""
    if ids is not None and len(found) > len(names):
        # Data with ImageNet's 1,000 names, of which it has pictures for a part.
        everything = [[wordnet, own] for wordnet, own in zip(ids.all, ids.names, strict=True)]
        own = _matched(found, everything, known, where, in_order)
        place = {number: row for row, number in enumerate(ids.kept)}
        return [place.get(number, -1) for number in own]
    classes = [[name] for name in names]
    if ids is not None:
        classes = [[ids.all[number], name] for number, name in zip(ids.kept, names, strict=True)]
    return _matched(found, classes, known, where, in_order)


def _matched(
    found: list[str], classes: Sequence[Sequence[str]], known: StandardSet, where: str, in_order: bool
) -> list[int]:
    """Number of the class of every name; each class has several names, and data may have an order of its own."""
    if len(found) > len(classes):
        raise ValueError(f"{where}: found {len(found)} classes, expected the {len(classes)} of the set")
    aliases = {_folded(own): theirs for own, theirs in known.aliases.items()}
    data = [_spellings(aliases.get(_folded(name), name)) for name in found]
    spelled = [[_folded(name) for name in own] for own in classes]
    holders: dict[str, set[int]] = {}
    for column, own in enumerate(spelled):
        for name in own:
            holders.setdefault(name, set()).add(column)
    matched: dict[int, int] = {}

    def settle(agreeing: Callable[[int, set[int]], set[int]]) -> None:
        """Pairs names and classes that agree with one another and with nothing else that is left."""
        columns = set(range(len(classes))) - set(matched.values())
        partners = {row: agreeing(row, columns) & columns for row in range(len(found)) if row not in matched}
        counts = Counter(column for own in partners.values() for column in own)
        matched.update({row: min(own) for row, own in partners.items() if len(own) == 1 and counts[min(own)] == 1})

    settle(lambda row, _: holders.get(data[row][0], set()))
    settle(lambda row, _: set().union(*(holders.get(name, set()) for name in data[row])))
    # So many classes, half of them where the set has them, are the set; of fewer, one might stand for another.
    same = in_order and len(found) == len(classes) >= _MANY and all(row == column for row, column in matched.items())
    if same and 2 * len(matched) >= len(found):
        return list(range(len(found)))
    settle(
        lambda row, columns: {
            column for column in columns if any(_alike(data[row][0].split(), own.split()) for own in spelled[column])
        }
    )
    rest = [row for row in range(len(found)) if row not in matched]
    free = sorted(set(range(len(classes))) - set(matched.values()))
    if rest:
        raise ValueError(
            f"{where}: found the label names {_few([found[row] for row in rest])}, expected names of the set, as "
            f"{_few([classes[column][-1] for column in free])}; a JSON table with 'classes' in the order of the "
            "data's labels does without"
        )
    return [matched[row] for row in range(len(found))]


def _folded(name: str) -> str:
    """A name without what spellings differ in: case, signs, CamelCase and plurals."""
    words = re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("'", "").lower())
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def _spellings(name: str) -> list[str]:
    """A name and, of a list of synonyms, each of them."""
    parts = [_folded(part) for part in name.split(",")]
    return [_folded(name), *(parts if len(parts) > 1 else [])]


def _alike(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether every word of the shorter name is in the longer one, or begins like a word there."""
    few, many = sorted((some, others), key=len)

    def same(one: str, other: str) -> bool:
        short, long = sorted((one, other), key=len)
        return one == other or (len(short) >= _LEAST_PREFIX and long.startswith(short))

    return bool(few) and all(any(same(word, other) for other in many) for word in few)


def _plain(name: str) -> str:
    """A class name as a text: `/a/airplane_cabin` is airplane cabin."""
    return re.sub(r"^/?[a-z]/", "", name).replace("_", " ").replace("/", " ").strip()


def _few(values: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, values[:_SHOWN]))
    return f"{shown} and {len(values) - _SHOWN} more" if len(values) > _SHOWN else shown

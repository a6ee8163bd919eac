"""Settings of a program: a strict dataclass, filled from a YAML file whose values the command line overrides."""

import copy
import inspect
import json
import math
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from huggingface_hub.dataclasses import as_validated_field, strict, type_validator

from hf_blemo.errors import check_known, check_once, did_you_mean, listed, one_line_errors, reading, say, without_paths
from hf_blemo.programs.progress import quiet_libraries
from hf_blemo.programs.recipes import find_settings, recipes

Settings = TypeVar("Settings")

CONFIG_OPTION = "--config"
PUSH_SETTINGS = ("push_to_hub", "hub_strategy", "hub_private", "hub_tag", "hub_license")

_SCALARS = {int: "int", float: "float", str: "str", bool: "bool"}
_NULLS = ("null", "~")
_ARGUMENTS = re.compile(r"^Args:\n((?: {4}.*\n?)*)", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w+(?:, \w+)*): *(.*(?:\n {8}.*)*)", re.MULTILINE)
_ENTRY = re.compile(r"[\w.-]+=.")
_HELP_WIDTH = 100
_MOST_VALUES = 20_000


@as_validated_field
def at_least_one(value: float | None) -> None:
    """A field for numbers from 1, or None where its type has that."""
    if value is not None and not 1 <= value < math.inf:
        raise ValueError(f"expected at least 1, found {value}")


@as_validated_field
def not_negative(value: float | None) -> None:
    """A field for numbers from 0, or None where its type has that."""
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"expected at least 0, found {value}")


@as_validated_field
def share(value: float) -> None:
    """A field for shares."""
    if not 0 <= value <= 1:
        raise ValueError(f"expected a share from 0 to 1, found {value}")


@as_validated_field
def different_seeds(value: list[int]) -> None:
    """A field for the seeds of several runs."""
    if not value or len(set(value)) != len(value) or min(value) < 0:
        raise ValueError(f"expected different numbers from 0, at least one, found {value}")


@as_validated_field
def repository(value: str | None) -> None:
    """A field for the id of a Hub repository that is written to."""
    if value is not None and value.count("/") != 1:
        raise ValueError(f"expected owner/name, found {value!r}")


@strict
@dataclass
class PushSettings:
    """Where, when and how a model is pushed.

    Args:
        push_to_hub: repository (owner/name) to publish to; the token and its rights are checked before training.
        hub_strategy: `end` publishes model, card and results after training; `every_save` also pushes the model at
            every checkpoint.
        hub_private: make a new repository private.
        hub_tag: tag of the release at the end, for instance `v1.0` (default: none).
        hub_license: licence of code and weights, for the card (default: none is stated).
        checkpoint_every: epochs or steps between checkpoints; 0 writes none.
    """

    push_to_hub: str | None = repository(None)
    hub_strategy: Literal["end", "every_save"] = "end"
    hub_private: bool = True
    hub_tag: str | None = None
    hub_license: str | None = None
    checkpoint_every: int = not_negative(0)

    def __post_init__(self):
        if self.push_to_hub is None and (self.hub_strategy != "end" or (self.hub_tag or self.hub_license) is not None):
            raise ValueError("hub_strategy, hub_tag and hub_license need push_to_hub")
        if self.hub_strategy == "every_save" and self.checkpoint_every == 0:
            raise ValueError("hub_strategy 'every_save' needs checkpoint_every of at least 1")


def parse_settings(
    settings_class: type[Settings],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    program: str | None = None,
) -> Settings:
    """Reads a program's settings, or ends the program with its help or with one line that says what is wrong.

    `--config` names the file, or a recipe of the package; `--key value` or `--key=value` overrides it, with `_` or `-`
    in the key; `--key.entry value` sets one entry of a dict; a list takes several values or `[a, b]`, a dict takes
    `{a: 1}` or `a=1 b=2`, and a bool alone means true.

    Args:
        settings_class: a dataclass; the Args of its docstring are the help.
        argv, program: the arguments, and the name in messages; those of the process by default.
        description: what the program does, shown by `--help`.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "--help" in arguments or "-h" in arguments:
        say(*settings_help(settings_class, description, program).split("\n"))
        raise SystemExit(0)
    with one_line_errors(program):
        settings = read_settings(settings_class, arguments)
    quiet_libraries()
    return settings


def command_line(arguments: Sequence[str], program: str) -> str:
    """The command that started a program (a script, or `hf-blemo train`), as it would be typed again, without
    folders of this machine."""
    script = program.endswith(".py")
    # Accelerate sets it for what it launches.
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        launcher = ["accelerate", "launch", *([program] if script else ["-m", "hf_blemo.cli", *program.split()[1:]])]
    else:
        launcher = ["python", program] if script else program.split()
    # The value of an option is a path of its own.
    words = ["=".join(map(without_paths, word.split("=", 1))) for word in [*launcher, *arguments]]
    return shlex.join(words)


def check_overwrite(resume: bool, overwrite: bool) -> None:
    """Refuses to resume and to replace an earlier run at once."""
    if resume and overwrite:
        raise ValueError("resume goes on with an earlier run and overwrite replaces it, expected one of the two")


def settings_of(settings_class: type[Settings], entries: Mapping[str, Any], where: str) -> Settings:
    """Makes settings from a dict of values by name, found at `where`.

    Raises:
        ValueError: an unknown name, or a value that its field or the dataclass refuses.
    """
    known = _fields(settings_class)
    check_known(where, entries, known)
    values = {key: _accepted(known[key], value, f"{where}.{key}") for key, value in entries.items()}
    _check_complete(known, values, f"{where}: ", "expected a value of it")
    try:
        return settings_class(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_settings(settings_class: type[Settings], arguments: Sequence[str]) -> Settings:
    """Reads settings from arguments, as `parse_settings` does, with errors that a caller can catch."""
    known = _fields(settings_class)
    # Short forms of its own.
    overrides = _overrides(getattr(settings_class, "spelled_out", list)(arguments))
    files = [texts for key, texts in overrides if key == CONFIG_OPTION]
    if len(files) > 1 or (files and len(files[0]) != 1):
        raise ValueError(f"command line: expected one file after {CONFIG_OPTION}, found {_listed(sum(files, []))}")
    config = find_settings(files[0][0]) if files else None
    values = _read_config(config, known) if config else {}
    for key, texts in overrides:
        if key != CONFIG_OPTION:
            _override(values, key, texts, known)
    place = "a file of settings" if config is None else str(config)
    if config is not None and config == recipes().get(config.stem):
        place = f"a copy of the recipe (hf-blemo recipes {config.stem} --output FILE.yaml)"
    _check_complete(known, values, "", f"pass --{{0}} or put it into {place.replace('{', '{{').replace('}', '}}')}")
    with reading(" and ".join([*(files[0] if files else []), "command line"]), "settings that fit each other"):
        return settings_class(**values)


def _check_complete(known: Mapping[str, Field], values: Mapping[str, Any], where: str, hint: str) -> None:
    for name, field in known.items():
        if name not in values and _default(field) is MISSING:
            raise ValueError(f"{where}setting {name!r} has no default: {hint.format(name)}")


def settings_help(settings_class: type, description: str | None = None, program: str | None = None) -> str:
    """The help of a program: every setting with its key, type, default and line in the docstring of its class."""
    lines = [f"usage: {program or Path(sys.argv[0]).name} [{CONFIG_OPTION} FILE.yaml|RECIPE] [--key value ...]", ""]
    if description:
        lines += [inspect.cleandoc(description), ""]
    lines += [
        "The command line overrides the file. A list: --key a b c. A dict: --key a=1 b=2; an entry: --key.a 1.",
        "hf-blemo recipes lists the files of settings that come with the package.",
        "",
        "settings:",
    ]
    for name, kind, default, text in described_settings(settings_class):
        lines.append(f"  --{name}  {kind}, {default}")
        lines += textwrap.wrap(text, _HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def described_settings(settings_class: type) -> list[tuple[str, str, str, str]]:
    """Of every setting its name, type, default (`required` or `default: ...`), and text in the docstring of the
    class."""
    texts, found = documentation(settings_class), []
    for name, field in _fields(settings_class).items():
        default = _default(field)
        shown = "required" if default is MISSING else f"default: {_shown(default)}"
        found.append((name, _type_name(field.type), shown, texts.get(name, "")))
    return found


# The core schema of YAML 1.2: tag, its values, the characters that they begin with. YAML 1.1, which PyYAML reads, also
# takes 010 for 8, 1:30 for 90, `no` for false and 2024-01-01 for a date.
_CORE_SCHEMA = (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers and words of YAML 1.2, all finite, in which every key is text that comes once.

    An alias counts as all that it stands for, so that a few lines cannot mean billions of values.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.num_values = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, as long as there are not too many."""
        before, mark = self.num_values, self.peek_event().start_mark
        self.num_values += 1
        node = super().compose_node(parent, index)
        if id(node) in self.sizes:
            self.num_values = before + self.sizes[id(node)]
        elif self.num_values == before + 1 and isinstance(node, yaml.CollectionNode) and node.end_mark is None:
            raise yaml.composer.ComposerError(None, None, "an alias of what it stands in", mark)
        self.sizes[id(node)] = self.num_values - before
        if self.num_values > _MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MOST_VALUES:,} values", mark)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; a leading zero means nothing."""
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A finite number."""
        number = super().construct_yaml_float(node)
        if not math.isfinite(number):
            found = f"{node.value}, expected a finite number"
            raise yaml.constructor.ConstructorError(None, None, found, node.start_mark)
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:int":
                # Places, as in `id2label: {0: calm, 1: tense}`; the keys of a saved config are text too.
                key.tag = "tag:yaml.org,2002:str"
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is no text", key.start_mark)
            if key.value in found:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} comes twice", key.start_mark)
            found.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _values, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_values})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _load_yaml(text: str, where: str) -> Any:
    with reading(where, "YAML"):
        try:
            return yaml.load(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
            raise ValueError(f"{where}{line}: expected YAML, found: {error.problem}") from None


def _read_config(path: Path, known: Mapping[str, Field]) -> dict[str, Any]:
    with reading(path, "YAML in UTF-8"):
        text = path.read_text(encoding="utf-8")
    content = _load_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings as 'key: value' lines, found {type(content).__name__}")
    check_known(str(path), content, known)
    return {key: _accepted(known[key], value, f"{path}: {key}") for key, value in content.items()}


def _overrides(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The keys of the command line, each with the values that follow it."""
    overrides: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument.partition("=")
            overrides.append((key, [value] if equals else []))
        elif overrides:
            overrides[-1][1].append(argument)
        else:
            raise ValueError(f"command line: found {argument!r}, expected --key value")
    return overrides


def _override(values: dict[str, Any], key: str, texts: Sequence[str], known: Mapping[str, Field]) -> None:
    """Sets one field, or one entry of a dict, from the command line."""
    first, *path = key.removeprefix("--").split(".")
    name, where = first.replace("-", "_"), f"command line: {key}"
    check_known("command line", [f"--{name}"], [*(f"--{other}" for other in known), CONFIG_OPTION])
    field = known[name]
    if not path:
        values[name] = _accepted(field, _parsed(texts, field.type, where), where)
        return
    annotation = _plain(field.type)
    if _kind(annotation) is not dict:
        raise ValueError(f"{where}: {name} is {_type_name(field.type)}, only a dict has entries of its own")
    if not all(path):
        raise ValueError(f"{where}: expected the name of an entry after each dot")
    if name not in values:
        default = _default(field)
        values[name] = {} if default is MISSING else copy.deepcopy(default)
    if values[name] is None:
        values[name] = {}
    entries = values[name]
    for number, part in enumerate(path):
        annotation = _entry_type(annotation)
        if number == len(path) - 1:
            entries[part] = _parsed(texts, annotation, where)
        else:
            entries = entries.setdefault(part, {})
            if not isinstance(entries, dict):
                raise ValueError(f"{where}: {'.'.join([name, *path[: number + 1]])} is {entries!r}, expected a dict")
    values[name] = _accepted(field, values[name], where)


def _parsed(texts: Sequence[str], annotation: Any, where: str) -> Any:
    """The words after a key as a value that has still to be checked: text stays text only where text is expected."""
    nullable, annotation = _nullable(annotation), _plain(annotation)
    kind = _kind(annotation)
    if kind is bool and not texts:
        return True
    if not texts:
        raise ValueError(f"{where}: found no value, expected {_type_name(annotation)}")
    if nullable and texts[0] in _NULLS and len(texts) == 1:
        return None
    if kind is dict and all(_ENTRY.match(text) for text in texts):
        entries = [text.partition("=") for text in texts]
        check_once(f"{where}:", [name for name, _, _ in entries])
        return {name: _parsed([value], _entry_type(annotation), where) for name, _, value in entries}
    if kind is dict or (kind in (list, Any) and texts[0].startswith("[")):
        return _load_yaml(" ".join(texts), where)
    if kind is list or (kind is Any and len(texts) > 1):
        element = next(iter(get_args(annotation)), Any)
        return [_parsed([text], element, where) for text in texts]
    if len(texts) > 1:
        raise ValueError(f"{where}: found {_listed(texts)}, expected {_type_name(annotation)}")
    return texts[0] if kind in (str, Literal) else _load_yaml(texts[0], where)


def _accepted(field: Field, value: Any, where: str) -> Any:
    """A value that passed the checks of its field; numbers are floats where the field is one."""
    value = _with_floats(value, field.type)
    try:
        type_validator(field.name, value, field.type)
        for validator in field.metadata.get("validator", ()):
            validator(value)
    except TypeError:
        wants_text = _kind(_plain(field.type)) in (str, Literal) and not isinstance(value, (str, dict, list))
        hint = "; put text in quotes" if wants_text else ""
        if _kind(_plain(field.type)) is Literal and not wants_text:
            hint = did_you_mean(value, get_args(_plain(field.type)))
        raise ValueError(f"{where}: found {value!r}, expected {_type_name(field.type)}{hint}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return value


def _with_floats(value: Any, annotation: Any) -> Any:
    annotation = _plain(annotation)
    kind = _kind(annotation)
    if kind is list and isinstance(value, list) and get_args(annotation):
        return [_with_floats(entry, get_args(annotation)[0]) for entry in value]
    if kind is dict and isinstance(value, dict):
        return {key: _with_floats(entry, _entry_type(annotation)) for key, entry in value.items()}
    if kind is not float or isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return value
    # As text, which no field for numbers takes.
    return number if math.isfinite(number) else str(value)


def _fields(settings_class: type) -> dict[str, Field]:
    return {field.name: field for field in fields(settings_class)}


def _nullable(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def _plain(annotation: Any) -> Any:
    """A type without None; `float | int` is float."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    others = [entry for entry in get_args(annotation) if entry is not NoneType]
    return float if float in others else others[0]


def _kind(annotation: Any) -> Any:
    return get_origin(annotation) or annotation


def _entry_type(annotation: Any) -> Any:
    """Type of the values of a dict, whatever is known of it."""
    arguments = get_args(_plain(annotation))
    return arguments[1] if len(arguments) == 2 else Any


def _type_name(annotation: Any) -> str:
    inner = _plain(annotation)
    kind, elements = _kind(inner), get_args(inner)
    if inner is Any:
        return "a value"
    name = _SCALARS.get(kind, getattr(kind, "__name__", str(kind)))
    if kind is Literal:
        name = listed(elements)
    elif kind is list and elements:
        name = f"list of {_type_name(elements[0])}"
    elif kind is dict and _entry_type(inner) is not Any:
        name = f"dict of {_type_name(_entry_type(inner))}"
    return f"{name} or null" if _nullable(annotation) else name


def num_words(annotation: Any) -> int | None:
    """How many words of the command line a setting of a type takes: none for a flag, any number (None) for a list."""
    kind = _kind(_plain(annotation))
    return None if kind in (list, dict, Any) else int(kind is not bool)


def choices_of(annotation: Any) -> tuple[str, ...] | None:
    """The words that a setting of a type can be, where it is one of a few."""
    plain = _plain(annotation)
    return get_args(plain) if _kind(plain) is Literal else None


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _shown(default: Any) -> str:
    """A default as it would be written on the command line."""
    return default if isinstance(default, str) and default else json.dumps(default)


def documentation(settings_class: type) -> dict[str, str]:
    """Field -> its text in the Args of the docstring of a dataclass, those of parent classes included."""
    texts: dict[str, str] = {}
    for parent in reversed(settings_class.__mro__):
        arguments = _ARGUMENTS.search(inspect.cleandoc(parent.__doc__ or ""))
        for names, text in _ARGUMENT.findall(arguments[1] if arguments else ""):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts


def _listed(texts: Sequence[str]) -> str:
    return " ".join(texts) or "none"

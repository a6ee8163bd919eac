"""Settings of a program: any dataclass, filled from a YAML file whose values the command line overrides."""

import copy
import inspect
import json
import math
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hf_blemo.errors import check_known, one_line, one_line_errors

Settings = TypeVar("Settings")

CONFIG_OPTION = "--config"

_SCALARS = {int: "int", float: "float", str: "str", bool: "bool"}
_NULLS = ("null", "~")
_DOCUMENTED = re.compile(r"(?P<names>\w+(?:, \w+)*)(?: \([^)]*\))?: *(?P<text>.*)")
_HELP_WIDTH = 100


def parse_settings(
    settings_class: type[Settings], argv: Sequence[str] | None = None, description: str | None = None
) -> Settings:
    """Reads a program's settings, or ends the program with its help or with one line that says what is wrong.

    `--config FILE.yaml` names the file; `--key value` or `--key=value` overrides it, with `_` or `-` in the key;
    `--key.entry value` sets one entry of a dict; a list takes several values or `[a, b]`, a dict takes `{a: 1}`, and a
    bool alone means true.

    Args:
        settings_class: a dataclass whose fields are int, float, str, bool, list, dict or one of these or None; the
            Args of its docstring are the help.
        argv: the arguments; those of the process by default.
        description: what the program does, shown by `--help`.

    Returns:
        An instance of `settings_class`.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after an error.

    Source: this project's choice.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "--help" in arguments or "-h" in arguments:
        print(settings_help(settings_class, description))
        raise SystemExit(0)
    with one_line_errors():
        settings = read_settings(settings_class, arguments)
    return settings


def command_line() -> str:
    """The command that started this program, as it would be typed again."""
    launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
    return shlex.join([*launcher, *sys.argv])


def read_settings(settings_class: type[Settings], arguments: Sequence[str]) -> Settings:
    """Reads settings from arguments, as `parse_settings` does, with errors that a caller can catch.

    Args:
        settings_class: the dataclass.
        arguments: of the command line, without the program's name.

    Returns:
        An instance of `settings_class`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown key, a value of another type than the field's, or one the dataclass refuses.
        TypeError: the dataclass has a field of a type that no text can be read into.

    Source: this project's choice.
    """
    types = _types(settings_class)
    overrides = _overrides(arguments)
    files = [texts for key, texts in overrides if key == CONFIG_OPTION]
    if len(files) > 1 or (files and len(files[0]) != 1):
        raise ValueError(f"command line: expected one file after {CONFIG_OPTION}, found {_listed(sum(files, []))}")
    values = _read_config(Path(files[0][0]), types) if files else {}
    settings_fields = {field.name: field for field in fields(settings_class)}  # type: ignore[arg-type]
    for key, texts in overrides:
        if key != CONFIG_OPTION:
            _override(values, key, texts, types, settings_fields)
    for name in types:
        if name not in values and _default(settings_fields[name]) is MISSING:
            raise ValueError(f"setting {name!r} has no default: pass --{name} or put it into the file of settings")
    return settings_class(**values)


def settings_help(settings_class: type, description: str | None = None) -> str:
    """Describes every setting: its key, type, default and line in the docstring of its class.

    Args:
        settings_class: the dataclass.
        description: what the program does.

    Returns:
        The text that `--help` prints.

    Source: this project's choice.
    """
    documentation = _documentation(settings_class)
    lines = [f"usage: {Path(sys.argv[0]).name} [{CONFIG_OPTION} FILE.yaml] [--key value ...]", ""]
    if description:
        lines += [inspect.cleandoc(description), ""]
    lines += [
        "The command line overrides the file. One entry of a dict: --key.entry value. A list: --key a b c.",
        "",
        "settings:",
    ]
    types = _types(settings_class)
    for field in fields(settings_class):
        if field.name not in types:
            continue
        default = _default(field)
        shown = "required" if default is MISSING else f"default: {_shown(default)}"
        lines.append(f"  --{field.name}  {_type_name(types[field.name])}, {shown}")
        text = documentation.get(field.name, "")
        lines += textwrap.wrap(text, _HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as in YAML 1.2, and a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _load_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise ValueError(f"{where}{line}: expected YAML, found: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: expected YAML, found: {one_line(error)}") from None


def _read_config(path: Path, types: Mapping[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected settings in YAML")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected YAML in UTF-8, found: {error}") from None
    content = _load_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings as 'key: value' lines, found {type(content).__name__}")
    check_known(str(path), content, types)
    return {key: _checked(value, types[key], f"{path}: {key}") for key, value in content.items()}


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


def _override(
    values: dict[str, Any],
    key: str,
    texts: Sequence[str],
    types: Mapping[str, Any],
    settings_fields: Mapping[str, Field],
) -> None:
    """Sets one field, or one entry of a dict, from the command line."""
    first, *path = key.removeprefix("--").split(".")
    name, where = first.replace("-", "_"), f"command line: {key}"
    check_known("command line", [f"--{name}"], [*(f"--{known}" for known in types), CONFIG_OPTION])
    if not path:
        values[name] = _checked(_parsed(texts, types[name], where), types[name], where)
        return
    annotation = _without_none(types[name])
    if (get_origin(annotation) or annotation) is not dict:
        raise ValueError(f"{where}: {name} is {_type_name(types[name])}, only a dict has entries of its own")
    if not all(path):
        raise ValueError(f"{where}: expected the name of an entry after each dot")
    if name not in values:
        default = _default(settings_fields[name])
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
    values[name] = _checked(values[name], types[name], f"command line: --{name}")


def _parsed(texts: Sequence[str], annotation: Any, where: str) -> Any:
    """The words after a key as a value that has still to be checked: text stays text only where text is expected."""
    nullable, annotation = annotation != _without_none(annotation), _without_none(annotation)
    kind = get_origin(annotation) or annotation
    if kind is bool and not texts:
        return True
    if not texts:
        raise ValueError(f"{where}: found no value, expected {_type_name(annotation)}")
    if nullable and texts[0] in _NULLS and len(texts) == 1:
        return None
    if kind is dict or (kind in (list, Any) and texts[0].startswith("[")):
        return _load_yaml(" ".join(texts), where)
    if kind is list or (kind is Any and len(texts) > 1):
        element = next(iter(get_args(annotation)), Any)
        return [_parsed([text], element, where) for text in texts]
    if len(texts) > 1:
        raise ValueError(f"{where}: found {_listed(texts)}, expected {_type_name(annotation)}")
    return texts[0] if kind is str else _load_yaml(texts[0], where)


def _checked(value: Any, annotation: Any, where: str) -> Any:
    """A value as the type its field has; the only conversion is that of a number to a float."""
    if annotation is Any or (value is None and annotation != _without_none(annotation)):
        return value
    annotation = _without_none(annotation)
    kind = get_origin(annotation) or annotation
    if kind is float:
        number = _as_float(value)
        if number is not None:
            return number
    elif kind is list and isinstance(value, list):
        element = next(iter(get_args(annotation)), Any)
        return [_checked(entry, element, f"{where}[{index}]") for index, entry in enumerate(value)]
    elif kind is dict and isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where}: found the key {key!r}, expected text; put it in quotes")
        return {key: _checked(entry, _entry_type(annotation), f"{where}.{key}") for key, entry in value.items()}
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    hint = "; put text in quotes" if kind is str and not isinstance(value, (dict, list)) else ""
    raise ValueError(f"{where}: found {value!r}, expected {_type_name(annotation)}{hint}")


def _as_float(value: Any) -> float | None:
    """A number, or text that is one, as a float; None for anything else, not-a-number included."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _types(settings_class: type) -> dict[str, Any]:
    """Field -> type, for every field that can be set."""
    hints = get_type_hints(settings_class)
    types = {field.name: hints[field.name] for field in fields(settings_class) if field.init}
    for name, annotation in types.items():
        if not _readable(annotation):
            raise TypeError(f"{settings_class.__name__}.{name}: no text can be read into a field of type {annotation}")
    return types


def _readable(annotation: Any) -> bool:
    annotation = _without_none(annotation)
    kind = get_origin(annotation) or annotation
    return (
        annotation is Any or kind in _SCALARS or (kind in (list, dict) and all(map(_readable, get_args(annotation))))
    )


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        others = [entry for entry in get_args(annotation) if entry is not NoneType]
        return others[0] if len(others) == 1 else annotation
    return annotation


def _entry_type(annotation: Any) -> Any:
    """Type of the values of a dict, whatever is known of it."""
    arguments = get_args(_without_none(annotation))
    return arguments[1] if len(arguments) == 2 else Any


def _type_name(annotation: Any) -> str:
    inner = _without_none(annotation)
    kind = get_origin(inner) or inner
    if inner is Any:
        return "a value"
    elements = get_args(inner)
    name = _SCALARS.get(kind, kind.__name__)
    if kind is list and elements:
        name = f"list of {_type_name(elements[0])}"
    return name if inner is annotation else f"{name} or null"


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _shown(default: Any) -> str:
    """A default as it would be written on the command line."""
    return default if isinstance(default, str) and default else json.dumps(default)


def _documentation(settings_class: type) -> dict[str, str]:
    """Field -> its text in the Args of the docstring, those of the classes it inherits from included."""
    texts: dict[str, str] = {}
    for parent in reversed(settings_class.__mro__):
        texts |= _documented_arguments(inspect.cleandoc(parent.__doc__ or "").splitlines())
    return texts


def _documented_arguments(lines: Iterable[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    names: list[str] = []
    inside, indent = False, 0
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if depth == 0 and line:
            inside, indent, names = line == "Args:", 0, []
        elif inside and line.strip():
            indent = indent or depth
            start = _DOCUMENTED.fullmatch(line.strip()) if depth == indent else None
            if start:
                names = start["names"].split(", ")
                texts |= dict.fromkeys(names, start["text"])
            else:
                texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def _listed(texts: Sequence[str]) -> str:
    return " ".join(texts) or "none"

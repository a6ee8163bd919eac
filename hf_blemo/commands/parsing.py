"""What the parsers of the subcommands share."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_blemo.built_in import MODEL
from hf_blemo.encoders.encoder_options import BACKENDS, DTYPES
from hf_blemo.errors import did_you_mean, listed, nearest_name, printable
from hf_blemo.files import Limits
from hf_blemo.loading import is_hub_id

_BOUNDS = ", ".join(f"{name}={value:g}" for name, value in asdict(Limits()).items())


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line that names the nearest known word, without the usage before it.

    Args:
        settings: `module:class` of a dataclass of settings, which then reads all arguments (`parse_settings`).
        options: of `ArgumentParser`.
    """

    def __init__(self, settings: str | None = None, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self._settings = settings

    def settings_class(self) -> type | None:
        """The dataclass that reads all arguments, if one does."""
        if self._settings is None:
            return None
        module, _, name = self._settings.partition(":")
        return getattr(import_module(module), name)

    def add_settings(self) -> None:
        """Makes an option of every setting, for what goes through all options: completion and the reference."""
        from dataclasses import fields

        from hf_blemo.programs.recipes import recipes
        from hf_blemo.programs.settings import CONFIG_OPTION, choices_of, documentation, num_words

        settings_class = self.settings_class()
        if settings_class is None or CONFIG_OPTION in self._option_string_actions:
            return
        self.add_argument(CONFIG_OPTION, metavar="FILE.yaml|RECIPE", choices=list(recipes()), help="file or recipe")
        texts = documentation(settings_class)
        for setting in fields(settings_class):
            few = num_words(setting.type)
            self.add_argument(
                f"--{setting.name}",
                nargs={None: "*", 0: "?"}.get(few),
                choices=("true", "false") if few == 0 else choices_of(setting.type),
                # argparse formats its help by %.
                help=texts.get(setting.name, "").replace("`", "").replace("%", "%%"),
            )

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As that of `ArgumentParser`, but unknown options end the program before anything that is missing does."""
        words = list(sys.argv[1:] if args is None else args)
        settings_class = self.settings_class()
        if settings_class is None:
            if self._subparsers is not None and not words:
                self.print_help()
                self.exit(2)
            self._check_options(words)
            return super().parse_known_args(words, namespace)
        from hf_blemo.programs.settings import parse_settings

        namespace, _ = super().parse_known_args([], namespace)
        namespace.settings = parse_settings(settings_class, words, self.description, self.prog)
        namespace.words = words
        return namespace, []

    def format_help(self) -> str:
        """The help, with every setting where a dataclass reads them."""
        settings_class = self.settings_class()
        if settings_class is None:
            return super().format_help()
        from hf_blemo.programs.settings import settings_help

        return settings_help(settings_class, self.description, self.prog) + "\n"

    def error(self, message: str) -> Any:
        """Ends the program with the message."""
        self.exit(2, printable(f"{self.prog}: error: {message} (see {self.prog} --help)") + "\n")

    def _check_options(self, words: Sequence[str]) -> None:
        """Refuses an unknown option; after the name of a subcommand they are its own."""
        for word in words:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return
            option = word.partition("=")[0]
            if option.startswith("--") and " " not in word and option not in self._option_string_actions:
                nearest = nearest_name(option, self._option_string_actions)
                hint = f"; did you mean {nearest}?" if nearest else ""
                if self._subparsers is not None:
                    hint = "; expected a command before its options"
                self.error(f"unknown option {option}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuses a value that is none of the choices, and names the nearest."""
        if action.choices is None or value in action.choices:
            return
        choices = list(map(str, action.choices))
        hint = did_you_mean(value, choices)
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"unknown command {value!r}{hint or f', expected {listed(choices)}'}")
        raise argparse.ArgumentError(action, f"found {value!r}, expected {listed(choices)}{hint}")


def add_command(commands: Any, name: str, handler: Any, summary: str, details: str) -> argparse.ArgumentParser:
    """Adds a subcommand, whose handler is called with the arguments; `details` say what it reads and writes, with an
    example."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}")
    parser.add_argument(
        "--limits",
        metavar="NAME=N",
        nargs="+",
        type=_limit,
        default=[],
        help=f"other bounds of what is believed of a file than {_BOUNDS}",
    )
    parser.set_defaults(handler=handler, program=parser.prog, parser=parser)
    return parser


def refuse_options(arguments: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuses options that were given where they would do nothing; `why` ends the message."""
    for name in names:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return number


def repository(text: str) -> str:
    """The id of a Hub repository that is written to."""
    if not is_hub_id(text):
        raise argparse.ArgumentTypeError(f"found {text}, expected owner/name")
    return text


def _limit(text: str) -> tuple[str, float]:
    """The name of a bound, and its value."""
    name, _, value = text.partition("=")
    return name, float(value)


def add_fusion_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Adds the options that say which fusion predicts, which become `arguments.model`: its place, or a list of
    `several`."""
    which = parser.add_mutually_exclusive_group(required=True)
    number: dict[str, Any] = {"nargs": "+"} if several else {}
    which.add_argument("--model", metavar="MODEL", help="folder or Hub id (owner/name)", **number)
    which.add_argument(
        "--built-in",
        action="store_const",
        const=[MODEL] if several else MODEL,
        dest="model",
        help="the package's own small model, with two clips: it knows drawn clips and says nothing about people",
    )
    parser.add_argument("--revision", help="branch, tag or commit of models on the Hub")


def add_encoder_options(parser: Any) -> None:
    """Adds the options of loading the encoders of clips to a parser or a group of one."""
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the encoders (default: float32); int8 by onnxruntime"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="eager",
        help="what runs the encoders: eager torch (default), torch's compiler, or onnxruntime (extra onnx) on the CPU",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code of an encoder's repository, pinned by a commit"
    )
    parser.add_argument(
        "--person", type=_person, metavar="WHO", help="of encoders of faces: largest, central, all, or a number from 1"
    )
    parser.add_argument("--detector", metavar="FILE", help="of encoders of faces: where the detector is now")


def _person(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def encoder_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given to the options of [`add_encoder_options`], as `fusion_encoders` takes it."""
    names = ("dtype", "backend", "trust_remote_code", "person", "detector")
    return {name: getattr(arguments, name) for name in names}


def is_built_in(arguments: argparse.Namespace) -> bool:
    """Whether the fusion of [`add_fusion_options`] is the package's own, of which there is no revision."""
    found = arguments.model in (MODEL, [MODEL])
    if found:
        refuse_options(arguments, ["revision"], "is for models on the Hub, found --built-in")
    return found


def output_path(text: str, option: str, *suffixes: str) -> Path:
    """The path of a file to write that an option named, checked: it has one of the suffixes and is no folder."""
    path = Path(text)
    if path.suffix not in suffixes:
        raise ValueError(f"{option} {text}: expected the suffix {' or '.join(suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(f"{option} {text}: found a folder, expected a file to write")
    return path

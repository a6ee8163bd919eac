"""The `hf-blemo` command, and the programs of `training/` as its subcommands."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_blemo._registration import __version__
from hf_blemo.commands.completion import add_completion
from hf_blemo.commands.dataset import add_dataset
from hf_blemo.commands.demo import add_demo
from hf_blemo.commands.evaluate import add_evaluate
from hf_blemo.commands.export import add_export
from hf_blemo.commands.parsing import Parser
from hf_blemo.commands.predict import add_predict
from hf_blemo.commands.publish import add_publish
from hf_blemo.commands.recipes import add_recipes
from hf_blemo.commands.submit import add_submit
from hf_blemo.errors import one_line_errors, say
from hf_blemo.files import limited
from hf_blemo.programs.progress import quiet_libraries
from hf_blemo.programs.start import importing


@dataclass(frozen=True)
class Program:
    """A program of `training/`, which is also a subcommand.

    Args:
        settings: `module:class` of its settings, whose `check_places` says whether what they name is there, before
            anything large is imported.
        run: called with the settings and the command that started it; prints what was done.
        summary: one line for the list of commands.
        details: what it reads and writes.
        examples: of its arguments.
    """

    settings: str
    run: Callable[[Any, str], None]
    summary: str
    details: str
    examples: Sequence[str]

    def description(self, name: str) -> str:
        """What its help begins with, as the subcommand of a name."""
        examples = "\n".join(f"  hf-blemo {name} {example}" for example in self.examples)
        return (
            f"{self.summary[0].upper()}{self.summary[1:]}.\n\n{self.details}\n\nExamples:\n{examples}\n\n"
            f"On several GPUs: accelerate launch -m hf_blemo.cli {name} ...\n"
            f"On processors: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m hf_blemo.cli {name} ..."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code: 0, 2 after one line on stderr that says what is wrong, or 130 after Ctrl-C.
    """
    try:
        arguments = _make_parser().parse_args(argv)
        quiet_libraries()
        with one_line_errors(arguments.program), limited(dict(arguments.limits)):
            arguments.handler(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def run_program(name: str) -> None:
    """Runs a program as the script in `training/` that was started.

    Args:
        name: of the subcommand that does the same.

    Raises:
        SystemExit: code 2 after one line on stderr that says what is wrong, or 130 after Ctrl-C.
    """
    from hf_blemo.programs.settings import command_line, parse_settings

    program, script, words = PROGRAMS[name], sys.argv[0], sys.argv[1:]
    with one_line_errors(Path(script).name):
        settings_class: Any = Parser(settings=program.settings).settings_class()
        settings = parse_settings(settings_class, words, program.description(name), Path(script).name)
        settings.check_places()
        program.run(settings, command_line(words, script))


def _train(settings: Any, command: str) -> None:
    with importing():
        from hf_blemo.fusion_training.results import results_table
        from hf_blemo.fusion_training.run import train_fusion

    metrics = train_fusion(settings, command=command)
    if metrics:
        say(*results_table(metrics).split("\n"))
        say(f"Model, processor, card, metrics, plots and predictions: {settings.output_dir}")


def _ablate(settings: Any, command: str) -> None:
    with importing():
        from hf_blemo.fusion_training.ablation import ablate

    ablate(settings)


def _ablate_encoders(settings: Any, command: str) -> None:
    with importing():
        from hf_blemo.fusion_training.encoder_ablation import ablate_encoders

    ablate_encoders(settings)


def _distill(settings: Any, command: str) -> None:
    with importing():
        from hf_blemo.clip_rd_training.run import distill

    metrics = distill(settings, command=command)
    if metrics:
        from hf_blemo.clip_rd_training.results import summary

        say(*summary(metrics), f"Student, tokenizer, image processor and metrics: {settings.output_dir}")


def _embed(settings: Any, command: str) -> None:
    with importing():
        from hf_blemo.clip_rd_training.embedding import embed

    result = embed(settings)
    shards = "1 shard" if result["shards"] == 1 else f"{result['shards']} shards"
    say(
        f"{result['pairs']} pairs, {result['rows']} rows in {shards}, {result['written']} of them "
        f"now; {result['broken']} of {result['seen']} could not be read: {settings.output_dir}"
    )


def _compare(settings: Any, command: str) -> None:
    with importing():
        from hf_blemo.clip_rd_training.comparison import compare, markdown

    result = compare(settings)
    if result:
        say("", *markdown(result).split("\n"))
        say(f"Written to {settings.output_dir}/comparison.md and comparison.json")


def _features(settings: Any, command: str) -> None:
    with importing():
        from hf_blemo.extraction.run import extract_features

    result = extract_features(settings, report_line=lambda line: say(line, error=True))
    if result:
        widths, without = (
            ", ".join(f"{name} {number}" for name, number in result[key].items()) for key in ("encoders", "without")
        )
        widths += f"; clips without any: {without}" if without else ""
        clips = "1 clip" if result["clips"] == 1 else f"{result['clips']} clips"
        say(f"{clips}, {len(result['failed'])} failed; width of features: {widths}. Written to {settings.output_dir}")


# Subcommand -> program.
PROGRAMS = {
    "features": Program(
        "hf_blemo.extraction.settings:ExtractionSettings",
        _features,
        "extract features of clips with pre-trained encoders (needs PyAV)",
        """\
Reads SOURCE (--data): a folder of clips, one clip, a .csv with a column video or audio of paths, a saved data set, a
data set on the Hub, or 'synthetic'. A folder with BlEmoRE's train_metadata.csv also gives labels and folds, one of
clips with BlEmoRE's names by --folds K; a .csv or data set by --label-column or --label-prefix. Writes a data set to
--output, which hf-blemo train, hf-blemo predict and datasets.load_from_disk read. An interrupted run resumes with the
missing clips; a clip that cannot be read is reported and left out.

Short forms: SOURCE for --data, --output for --output_dir, --threads for --num_threads, --public for
--hub_private false, --encoder NAME=MODEL[@REVISION] ... for --encoders.NAME.model_id MODEL ...""",
        (
            "clips/ --output out/features --encoder clip=openai/clip-vit-base-patch16 wavlm=microsoft/wavlm-base",
            "clips/ --output out/features --model out/fusion",
        ),
    ),
    "train": Program(
        "hf_blemo.fusion_training.settings:FusionSettings",
        _train,
        "train and cross-validate a rank-aware fusion on features",
        """\
Reads a data set of features, as hf-blemo features and hf-blemo dataset build write them, a table, or 'synthetic'.
Writes model, processor, card, metrics, plots and predictions to --output_dir, for hf-blemo predict and publish.""",
        ("--config fusion_blemore --data out/blemore", "--config fusion_synthetic --output_dir out/fusion --seeds 0"),
    ),
    "ablate": Program(
        "hf_blemo.fusion_training.settings:AblationSettings",
        _ablate,
        "measure what every part of the fusion is worth",
        """\
Reads what hf-blemo train reads, and trains one fusion after another with equal folds, seeds and budget, each without
one part. Writes the table ablation.md and ablation.json to --output_dir.""",
        ("--config fusion_table --data out/hicmae",),
    ),
    "ablate-encoders": Program(
        "hf_blemo.fusion_training.settings:EncoderAblationSettings",
        _ablate_encoders,
        "measure what one encoder in the place of another costs in score and saves in time (needs PyAV)",
        """\
Reads clips, as hf-blemo features does, and sets of encoders. Writes the features, and the table encoders.md and
encoders.json, to --output_dir.""",
        ("--config encoders_synthetic",),
    ),
    "distill": Program(
        "hf_blemo.clip_rd_training.settings:DistillationSettings",
        _distill,
        "distil a small CLIP from a large one, or train one without a teacher",
        """\
Reads pairs of images and captions: a folder with metadata.csv, a .csv with paths, a saved data set, one on the Hub, or
'synthetic'. Writes student, tokenizer, image processor, card, metrics and plots to --output_dir.""",
        ("--config clip_rd_own_pairs --data pictures", "--config clip_rd_synthetic --output_dir out/student"),
    ),
    "embed": Program(
        "hf_blemo.clip_rd_training.settings:EmbeddingSettings",
        _embed,
        "embed pairs with one or several teachers, once for all students",
        """\
Reads pairs, as hf-blemo distill does. Writes their embeddings to --output_dir, from which hf-blemo distill
--teacher_store trains without the teacher.""",
        (
            "--config embed_vit_b_16 --output_dir out/store",
            "--data pictures --teachers b16=openai/clip-vit-base-patch16",
        ),
    ),
    "compare": Program(
        "hf_blemo.clip_rd_training.settings:ComparisonSettings",
        _compare,
        "compare distillation methods: one teacher, equal students, budgets and seeds",
        """\
Reads pairs, as hf-blemo distill does, and trains a teacher on them and students of every method. Writes the table
comparison.md and comparison.json to --output_dir.""",
        ("--config clip_rd_comparison",),
    ),
}


def _make_parser() -> Parser:
    parser = Parser(
        prog="hf-blemo",
        description="Recognise blended emotions or any other labels by rank-aware fusion; distil small CLIPs.",
    )
    parser.add_argument("--version", action="version", version=f"hf_blemo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (add_predict, add_demo, add_dataset):
        add(commands)
    for name, program in PROGRAMS.items():
        _add_program(commands, name, program)
    for add in (add_recipes, add_evaluate, add_submit, add_publish, add_export):
        add(commands)
    add_completion(commands, parser)
    return parser


def _add_program(commands: Any, name: str, program: Program) -> None:
    def run(arguments: argparse.Namespace) -> None:
        from hf_blemo.programs.settings import command_line

        arguments.settings.check_places()
        program.run(arguments.settings, command_line(arguments.words, arguments.program))

    parser = commands.add_parser(
        name, help=program.summary, description=program.description(name), settings=program.settings
    )
    parser.set_defaults(handler=run, program=parser.prog, limits=())


if __name__ == "__main__":
    sys.exit(main())

"""The three plots of a distillation: losses, evaluations during training, and similarities before and after."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from hf_blemo.clip_rd.weights_clip_rd import TERMS
from hf_blemo.programs.figures import DPI, heat_map, save

TOTAL_COLOUR = "#222222"
TERM_COLOUR = "#3b6ea5"
# One colour per cutoff, the strictest darkest, so that accuracies and recalls are read alike.
CUTOFF_COLOURS = {1: "#1f3f66", 5: "#3b8ea5", 10: "#e08a3c"}
PANELS = {
    "zero_shot": (("zero-shot accuracy", "top_{}", (1, 5)),),
    "retrieval": (
        ("image to text recall", "image_to_text_r@{}", (1, 5, 10)),
        ("text to image recall", "text_to_image_r@{}", (1, 5, 10)),
    ),
}
LEGEND = {"zero_shot": "top-{}", "retrieval": "R@{}"}
TICK_STEPS = (1, 2, 5, 10)
LONGEST_NAME = 46
# From here on a linear axis shows little of a curve's end.
LOG_RATIO = 20


def plot_distillation(
    metrics: Mapping[str, Any], maps: tuple[np.ndarray, np.ndarray, np.ndarray] | None, folder: Path
) -> None:
    """Draws `loss_terms.png`, with two or more evaluations `evaluations.png`, and with a teacher `similarity.png`.

    `maps` are the (N, N) similarities of the teacher, and of the student before and after; None without a teacher.
    Plots of an earlier run in the folder go.
    """
    folder.mkdir(exist_ok=True)
    for name in ("loss_terms", "evaluations", "similarity"):
        (folder / f"{name}.png").unlink(missing_ok=True)
    _plot_loss_terms(metrics["history"], folder / "loss_terms.png")
    if len(metrics["evaluations"]) > 1:
        _plot_evaluations(metrics["evaluations"], folder / "evaluations.png", metrics["teacher_evaluation"])
    # A student that has diverged has nothing to draw.
    if maps is not None and all(np.isfinite(values).all() for values in maps):
        _plot_similarity(*maps, folder / "similarity.png")


def _plot_loss_terms(history: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """The total loss and every unweighted term over the steps, each in a panel of its own.

    A panel's axis is logarithmic if its values are positive and span more than a factor of 20. The history has rows
    with "step", "loss" and the terms computed at that step.
    """
    rows = sorted(history, key=itemgetter("step"))
    names = [name for name in ("loss", *TERMS) if any(row.get(name) is not None for row in rows)]
    num_columns = min(3, len(names))
    figure, panels = _panels(len(names), num_columns, "Losses of the distillation", height=2.5)
    for axes, name in zip(panels, names, strict=True):
        points = [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
        steps, values = np.array(points).T
        axes.plot(
            steps,
            values,
            color=TOTAL_COLOUR if name == "loss" else TERM_COLOUR,
            linewidth=2,
            marker="o" if len(points) == 1 else None,
        )
        if values.min() > 0 and values.max() > LOG_RATIO * values.min():
            axes.set_yscale("log")
            few_decades = values.max() < 200 * values.min()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,), numticks=12))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_title("total, weighted" if name == "loss" else name, fontsize=11)
        _finish(axes)
    return save(figure, path)


def _plot_evaluations(
    evaluations: Sequence[Mapping[str, Any]], path: str | Path, teacher: Mapping[str, Any] | None = None
) -> Path:
    """Zero-shot accuracies and recalls of both directions over the steps, a panel per task and direction.

    An evaluation has "step" and "tasks", name -> metrics of `ClipEvaluator`; a task need not be in all of them.
    That of the teacher is drawn as dashed lines for the tasks that both hold.
    """
    rows = sorted(evaluations, key=itemgetter("step"))
    teacher_tasks = teacher["tasks"] if teacher is not None else {}
    found = {name: task for row in rows for name, task in row["tasks"].items()}
    # Pairs of panels first, so that both directions of a task stand side by side.
    tasks = dict(sorted(found.items(), key=lambda item: -len(PANELS[item[1]["kind"]])))
    num_panels = sum(len(PANELS[task["kind"]]) for task in tasks.values())
    figure, panels = _panels(
        num_panels, num_panels if num_panels <= 3 else 2, "Evaluations during training", height=3.3
    )
    remaining = iter(panels)
    for name, task in tasks.items():
        size = f"\n{task['images']:,} images" if task.get("images") is not None else ""
        described = _shortened(f"{name}: {task.get('data', 'data')}") + size
        of_task = []
        for label, pattern, cutoffs in PANELS[task["kind"]]:
            axes = next(remaining)
            for cutoff in cutoffs:
                key = pattern.format(cutoff)
                points = [
                    (row["step"], row["tasks"][name][key])
                    for row in rows
                    if row["tasks"].get(name, {}).get(key) is not None
                ]
                if points:
                    colour = CUTOFF_COLOURS[cutoff]
                    axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", markersize=4)
                    value = (teacher_tasks.get(name) or {}).get(key)
                    if value is not None:
                        axes.axhline(value, color=colour, linewidth=1.4, linestyle="--")
            axes.set_title(f"{label}\n{described}", fontsize=10)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            _finish(axes)
            of_task.append(axes)
        # Both directions of a task are read on one scale, and a low task is not squashed by a high one.
        highest = max(max(axes.dataLim.y1 for axes in of_task), 0.01)
        for axes in of_task:
            axes.set_ylim(0, min(1.02, 1.1 * highest))
    handles, kinds = [], {task["kind"] for task in tasks.values()}
    for cutoff, colour in CUTOFF_COLOURS.items():
        names = [
            pattern.format(cutoff)
            for kind, pattern in LEGEND.items()
            if kind in kinds and cutoff in PANELS[kind][0][2]
        ]
        if names:
            label = " or ".join(names)
            handles.append(Line2D([], [], color=colour, linewidth=2, marker="o", markersize=4, label=label))
    if teacher_tasks:
        handles.append(Line2D([], [], color="#555555", linewidth=1.4, linestyle="--", label="teacher"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    return save(figure, path)


def _plot_similarity(teacher: np.ndarray, before: np.ndarray, after: np.ndarray, path: str | Path) -> Path:
    """The (N, N) cosines of N images (rows) and their captions, of teacher and student before and after, in the same
    colours.

    Below each panel stands the share of rows with their largest entry on the diagonal and, for the student, Pearson's
    correlation of the entries off the diagonal with the teacher's.
    """
    named = {"teacher": teacher, "student before training": before, "student after training": after}
    norm = Normalize(min(matrix.min() for matrix in named.values()), max(matrix.max() for matrix in named.values()))
    figure = Figure(figsize=(12.6, 4.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(named))
    for axes, (name, matrix) in zip(panels, named.items(), strict=True):
        image = heat_map(axes, matrix, "viridis", norm)
        axes.set_aspect("equal")
        axes.set_title(name, fontsize=12)
        text = f"{_diagonal_share(matrix):.0%} of rows have the diagonal largest"
        if name != "teacher":
            correlation = _off_diagonal_correlation(matrix, teacher)
            found = "undefined" if correlation is None else f"{correlation:.3f}"
            text += f"\ncorrelation with the teacher off the diagonal: {found}"
        axes.set_xlabel(text, fontsize=9.5, labelpad=6)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, steps=TICK_STEPS))
        axes.tick_params(labelsize=8.5)
    figure.colorbar(image, ax=panels, label="cosine", shrink=0.8, pad=0.02)
    figure.suptitle("Cosines of images (rows) and captions (columns)", fontsize=12.5)
    return save(figure, path)


def _panels(count: int, num_columns: int, title: str, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, filled row by row."""
    num_rows = -(-count // num_columns)
    figure = Figure(figsize=(1 + 3.9 * num_columns, 0.9 + height * num_rows), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=12.5)
    return figure, [figure.add_subplot(num_rows, num_columns, index + 1) for index in range(count)]


def _finish(axes: Axes) -> None:
    axes.set_xlabel("step", fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=TICK_STEPS))
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _diagonal_share(matrix: np.ndarray) -> float:
    others = matrix.copy()
    np.fill_diagonal(others, -np.inf)
    return float((np.diagonal(matrix) > others.max(axis=1)).mean())


def _off_diagonal_correlation(matrix: np.ndarray, teacher: np.ndarray) -> float | None:
    """Return Pearson's correlation, or None where one side is constant."""
    off = ~np.eye(len(matrix), dtype=bool)
    ours, theirs = matrix[off] - matrix[off].mean(), teacher[off] - teacher[off].mean()
    length = np.linalg.norm(ours) * np.linalg.norm(theirs)
    return float(ours @ theirs / length) if length > 1e-12 else None

"""The four plots of a cross-validation, drawn without pyplot to leave global state alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from hf_blemo import blemore
from hf_blemo.fusion_training.results import CrossValidationResults
from hf_blemo.programs.figures import DPI, heat_map, save
from hf_blemo.programs.tables import mean_and_std

_TRAIN_COLOUR = "#3b6ea5"
_SCORE_COLOUR = "#b4532a"
_MARK_COLOUR = "#d62728"
_MOST_SETS = 24


def plot_cross_validation(
    results: CrossValidationResults,
    history: Iterable[Mapping[str, Any]],
    decoding: str,
    encoder_names: Sequence[str],
    folder: Path,
) -> None:
    """Draws `confusion.png`, `gate_weights.png`, `learning_curves.png` and, where something blends, `thresholds.png`.

    Of many sets of names the most frequent are shown. The history has rows with `seed`, `fold`, `epoch`, `train_loss`,
    `selected` and `validation_<measure>` of the judge's headline.
    """
    protocol, labels, judge = results.first.protocol.replace("_", " "), results.first.labels, results.judge
    true, predicted = judge.sets_of(results.ensemble(decoding)[1], labels)
    names = ["+".join(members) for members in judge.space.sets]
    frequent = np.sort(
        np.argsort(-np.bincount(np.r_[true, predicted], minlength=len(names)), kind="stable")[:_MOST_SETS]
    )
    left_out = f", the {_MOST_SETS} most frequent of {len(names)}" if len(names) > _MOST_SETS else ""
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (true, predicted), 1)
    names = [names[place] for place in frequent]
    what = "emotion set" if judge.is_benchmark else "label set" if judge.space.blend_percents else "label"
    _plot_confusion(
        counts[np.ix_(frequent, frequent)],
        names,
        int((frequent < len(judge.space.names)).sum()),
        folder / "confusion.png",
        f"{what.capitalize()}s, out of fold, {protocol} protocol, {_plural(len(results.seeds), 'seed')}{left_out}",
    )
    path = folder / "thresholds.png"
    path.unlink(missing_ok=True)
    if judge.space.blend_percents:
        probabilities = results.pooled()["probabilities"]
        fitted = judge.fit_thresholds(probabilities, labels)
        _plot_thresholds(
            *judge.threshold_grid(probabilities, labels),
            (fitted["alpha"], fitted["beta"]),
            path,
            f"Thresholds on the pooled out-of-fold predictions, {len(labels):,} clips",
        )
    _plot_gate(
        results.gate["weights"][frequent],
        results.gate["selected"][frequent],
        encoder_names,
        names,
        folder / "gate_weights.png",
        f"Mean gate weight by {what} and encoder, out of fold, {len(labels):,} clips{left_out}",
    )
    measure = f"validation_{judge.headline}"
    _plot_learning_curves(history, folder / "learning_curves.png", f"Learning curves, {protocol} protocol", measure)


def _plot_confusion(counts: np.ndarray, names: Sequence[str], num_singles: int, path: Path, title: str) -> None:
    """(S, S) counts in the cells, rows true and columns predicted, each row coloured by its own shares."""
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    side = 3.0 + 0.5 * max(len(names), 10)
    figure = Figure(figsize=(side, side * 9.8 / 11), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    image = heat_map(axes, shares, "Blues", Normalize(0, max(float(shares.max()), 1e-9)))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            weight = "bold" if row == column else "normal"
            _write_in_cell(axes, row, column, f"{count:,.0f}", image, weight)
    for index in range(len(names)):
        axes.add_patch(Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, edgecolor="#777777", linewidth=0.7))
    if 0 < num_singles < len(names):
        axes.axhline(num_singles - 0.5, color="#222222", linewidth=1.4)
        axes.axvline(num_singles - 0.5, color="#222222", linewidth=1.4)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=10)
    axes.set_yticks(
        range(len(names)), [f"{name}  ({total:,.0f})" for name, total in zip(names, totals, strict=True)], fontsize=10
    )
    axes.set_xlabel("predicted set", fontsize=11, labelpad=9)
    axes.set_ylabel("true set (predictions)", fontsize=11, labelpad=9)
    exact = np.trace(counts) / counts.sum()
    axes.set_title(
        f"{title}\n{counts.sum():,.0f} predictions, {exact:.1%} of them exactly the right set", fontsize=12.5
    )
    figure.colorbar(image, ax=axes, label="share of the true set", shrink=0.75, pad=0.02)
    save(figure, path)


def _plot_thresholds(
    presence: np.ndarray, salience: np.ndarray, chosen: tuple[float, float], path: Path, title: str
) -> None:
    """Score over the official grid of alpha (rows) and beta, with its two halves beside it; best and chosen marked."""
    values = blemore.THRESHOLD_GRID
    score = 0.5 * presence + 0.5 * salience
    best = np.unravel_index(score.argmax(), score.shape)
    figure = Figure(figsize=(12, 7), dpi=DPI, layout="constrained")
    panels = figure.subplot_mosaic([["score", "presence"], ["score", "salience"]], width_ratios=[2.05, 1])
    grids = {
        "score": ("Score", score),
        "presence": ("ACC_presence", presence),
        "salience": ("ACC_salience", salience),
    }
    for key, (name, grid) in grids.items():
        axes = panels[key]
        main = key == "score"
        lowest, highest = float(grid.min()), float(grid.max())
        image = heat_map(axes, grid, "viridis", Normalize(lowest, max(highest, lowest + 1e-9)), origin="lower")
        axes.set_title(name, fontsize=12 if main else 10.5)
        positions = range(0, len(values), 2 if main else 5)
        for ticks in (axes.set_xticks, axes.set_yticks):
            ticks(positions, [f"{values[position]:.2f}" for position in positions], fontsize=9 if main else 8)
        axes.set_xlabel("β (equal salience up to this difference)" if main else "β", fontsize=10.5 if main else 9)
        axes.set_ylabel("α (present from this probability)" if main else "α", fontsize=10.5 if main else 9)
        figure.colorbar(image, ax=axes, shrink=0.9 if main else 0.95, pad=0.02).ax.tick_params(labelsize=8)
        star = f"best cell: {score[best]:.3f} at α {values[best[0]]:.3f}, β {values[best[1]]:.3f}"
        axes.plot(best[1], best[0], "*", color="white", mec="black", ms=17 if main else 10, label=star)
        ring: dict[str, Any] = {
            "mfc": "none",
            "mec": _MARK_COLOUR,
            "mew": 2.4 if main else 1.8,
            "ms": 21 if main else 13,
        }
        place = np.interp(chosen[::-1], values, np.arange(len(values)))
        axes.plot(*place, "o", **ring, label=f"chosen: α {chosen[0]:.3f}, β {chosen[1]:.3f}")
    panels["score"].legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize=10.5, frameon=False)
    figure.suptitle(title, fontsize=13)
    save(figure, path)


def _plot_gate(
    weights: np.ndarray,
    selected: np.ndarray,
    encoder_names: Sequence[str],
    names: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """(S, E) mean weight, NaN in a set without clips, and share of the clips whose top-n holds the encoder."""
    panels = [
        ("mean gate weight", weights, "Purples"),
        ("share of clips with the encoder in the top-n", selected, "Greens"),
    ]
    shape = weights.shape
    width = 2.6 + len(panels) * max(3.2, 0.85 * shape[1] + 0.9)
    figure = Figure(figsize=(width, 2.5 + 0.42 * shape[0]), dpi=DPI, layout="constrained")
    for column, (name, values, colours) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        highest = 1.0 if column else float(np.nanmax(values, initial=1e-9))
        image = heat_map(axes, values, colours, Normalize(0, highest))
        for (row, encoder), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else (f"{value:.0%}" if column else f"{value:.2f}")
            _write_in_cell(axes, row, encoder, text, image)
        axes.set_xticks(
            range(shape[1]), list(encoder_names), rotation=35, ha="right", rotation_mode="anchor", fontsize=10
        )
        axes.set_yticks(range(shape[0]), list(names) if column == 0 else [""] * shape[0], fontsize=10)
        axes.set_title(name, fontsize=10.5)
        figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03).ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=12.5)
    save(figure, path)


def _plot_learning_curves(history: Iterable[Mapping[str, Any]], path: Path, title: str, measure: str) -> None:
    """Each run (seed and fold) faintly, their mean, a band of one standard deviation, and the selected epochs.

    Mean and band cover, at each epoch, the runs that reached it.
    """
    runs: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in history:
        runs[row["seed"], row["fold"]].append(row)
    panels = [
        ("train_loss", "training loss", _TRAIN_COLOUR),
        (measure, measure.replace("_", " ").replace("score", "Score"), _SCORE_COLOUR),
    ]
    figure = Figure(figsize=(6.4 * len(panels), 4.7), dpi=DPI, layout="constrained")
    for column, (key, label, colour) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        by_epoch: dict[int, list[float]] = defaultdict(list)
        for rows in runs.values():
            for row in rows:
                by_epoch[row["epoch"]].append(row[key])
            axes.plot(
                [row["epoch"] for row in rows], [row[key] for row in rows], color=colour, alpha=0.22, linewidth=0.8
            )
        epochs = np.array(sorted(by_epoch))
        mean = np.array([np.mean(by_epoch[epoch]) for epoch in epochs])
        std = np.array([mean_and_std(by_epoch[epoch])["std"] or 0.0 for epoch in epochs])
        if len(runs) > 1:
            axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0, label="± 1 std")
        axes.plot(epochs, mean, color=colour, linewidth=2.2, marker="o" if len(epochs) == 1 else None, label="mean")
        selected = [row for rows in runs.values() for row in rows if row["selected"]]
        marks = [row["epoch"] for row in selected], [row[key] for row in selected]
        axes.plot(*marks, "D", ms=5.5, mfc="white", mec="#222222", mew=1.1, label="selected epoch of a run")
        axes.set_xlabel("epoch", fontsize=10.5)
        axes.set_ylabel(label, fontsize=10.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9.5, frameon=False)
    seeds, folds = len({seed for seed, _ in runs}), len({fold for _, fold in runs})
    figure.suptitle(
        f"{title}\n{_plural(len(runs), 'run')}: {_plural(folds, 'fold')}, {_plural(seeds, 'seed')}", fontsize=12.5
    )
    save(figure, path)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _write_in_cell(axes: Axes, row: int, column: int, text: str, image: AxesImage, weight: str = "normal") -> None:
    """Write a value into its cell, in dark or white for contrast."""
    value = np.asarray(image.get_array())[row, column]
    red, green, blue, _ = image.to_rgba(value) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
    colour = "#1a1a1a" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
    axes.text(column, row, text, ha="center", va="center", fontsize=9.5, color=colour, fontweight=weight)

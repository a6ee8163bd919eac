"""The four pictures of a cross-validation report, drawn without pyplot so that no global state is touched."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hf_blemo.programs.figures import DPI, heat_map, matrix_of, save, write_in_cell

from ..blemore import EMOTION_SETS

TRAIN_COLOUR = "#3b6ea5"
SCORE_COLOUR = "#b4532a"
MARK_COLOUR = "#d62728"


def plot_confusion(
    confusion: ArrayLike, path: str | Path, title: str = "Emotion sets, true against predicted"
) -> Path:
    """Draw the confusion of the 16 emotion sets: counts in the cells, each row coloured by its own shares.

    Args:
        confusion: (16, 16) counts, rows true and columns predicted, in the order of `blemore.EMOTION_SETS`.
        path: the PNG to write.
        title: first line of the title, which should name the protocol; the number of predictions and the share of
            exact sets are added below it from the counts.

    Returns:
        The path written.

    Raises:
        ValueError: if `confusion` has another shape or a negative or non-finite entry.

    Source:
        This project's choice; the sets are those of the BlEmoRE labels.
    """
    counts = matrix_of(confusion, "confusion", (len(EMOTION_SETS), len(EMOTION_SETS)))
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("confusion: expected counts of at least 0, found a negative or non-finite entry")
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    names = ["+".join(emotions) for emotions in EMOTION_SETS]
    num_singles = sum(len(emotions) == 1 for emotions in EMOTION_SETS)

    figure = Figure(figsize=(11, 9.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    image = heat_map(axes, shares, "Blues", Normalize(0, max(float(shares.max()), 1e-9)))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            weight = "bold" if row == column else "normal"
            write_in_cell(axes, row, column, f"{count:,.0f}", image, 9.5, weight)
    for index in range(len(names)):
        axes.add_patch(Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, edgecolor="#777777", linewidth=0.7))
    axes.axhline(num_singles - 0.5, color="#222222", linewidth=1.4)
    axes.axvline(num_singles - 0.5, color="#222222", linewidth=1.4)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=10)
    axes.set_yticks(
        range(len(names)), [f"{name}  ({total:,.0f})" for name, total in zip(names, totals, strict=True)], fontsize=10
    )
    axes.set_xlabel("predicted set", fontsize=11, labelpad=9)
    axes.set_ylabel("true set (predictions)", fontsize=11, labelpad=9)
    num_predictions = totals.sum()
    exact = np.trace(counts) / num_predictions if num_predictions else 0.0
    axes.set_title(
        f"{title}\n{num_predictions:,.0f} predictions, {exact:.1%} of them exactly the right set", fontsize=12.5
    )
    figure.colorbar(image, ax=axes, label="share of the true set", shrink=0.75, pad=0.02)
    return save(figure, path)


def plot_threshold_grid(
    presence: ArrayLike,
    salience: ArrayLike,
    alphas: ArrayLike,
    betas: ArrayLike,
    chosen: tuple[float, float] | None,
    path: str | Path,
    title: str = "Decoding thresholds",
) -> Path:
    """Draw the Score over the grid of thresholds, with ACC_presence and ACC_salience, its two halves, beside it.

    Args:
        presence: (A, B) ACC_presence for every alpha (rows) and beta (columns).
        salience: (A, B) ACC_salience, the same.
        alphas: (A,) presence thresholds, ascending.
        betas: (B,) salience thresholds, ascending.
        chosen: the (alpha, beta) that decoding uses, marked on every panel, or None where nothing was chosen. It may
            lie off this grid's best cell, for instance when it was fitted on other folds; the best cell gets a star.
        path: the PNG to write.
        title: first line of the title, which should name the protocol and the number of clips.

    Returns:
        The path written.

    Raises:
        ValueError: if the shapes do not fit each other or an entry is not finite.

    Source:
        The grid and its tie rule (lowest alpha, then lowest beta) are the BlEmoRE challenge's.
    """
    alpha_values, beta_values = np.asarray(alphas, dtype=float), np.asarray(betas, dtype=float)
    shape = (len(alpha_values), len(beta_values))
    presence_grid = matrix_of(presence, "presence", shape)
    salience_grid = matrix_of(salience, "salience", shape)
    if not (np.isfinite(presence_grid).all() and np.isfinite(salience_grid).all()):
        raise ValueError("presence and salience: expected finite numbers, found NaN or infinity")
    score_grid = 0.5 * presence_grid + 0.5 * salience_grid
    best = np.unravel_index(score_grid.argmax(), shape)

    figure = Figure(figsize=(12, 7), dpi=DPI, layout="constrained")
    panels = figure.subplot_mosaic([["score", "presence"], ["score", "salience"]], width_ratios=[2.05, 1])
    grids = (("score", "Score", score_grid), ("presence", "ACC_presence", presence_grid))
    for key, name, grid in (*grids, ("salience", "ACC_salience", salience_grid)):
        axes = panels[key]
        main = key == "score"
        lowest, highest = float(grid.min()), float(grid.max())
        image = heat_map(axes, grid, "viridis", Normalize(lowest, max(highest, lowest + 1e-9)), origin="lower")
        axes.set_title(name, fontsize=12 if main else 10.5)
        for ticks, values in ((axes.set_xticks, beta_values), (axes.set_yticks, alpha_values)):
            positions = range(0, len(values), 2 if main else 5)
            ticks(positions, [f"{values[position]:.2f}" for position in positions], fontsize=9 if main else 8)
        axes.set_xlabel("β (equal salience up to this difference)" if main else "β", fontsize=10.5 if main else 9)
        axes.set_ylabel("α (present from this probability)" if main else "α", fontsize=10.5 if main else 9)
        figure.colorbar(image, ax=axes, shrink=0.9 if main else 0.95, pad=0.02).ax.tick_params(labelsize=8)
        best_text = f"best cell: {score_grid[best]:.3f} at α {alpha_values[best[0]]:.3f}, β {beta_values[best[1]]:.3f}"
        axes.plot(
            best[1],
            best[0],
            marker="*",
            markersize=17 if main else 10,
            color="white",
            markeredgecolor="black",
            linestyle="none",
            label=best_text,
        )
        if chosen is not None:
            position = (_position(chosen[1], beta_values), _position(chosen[0], alpha_values))
            axes.plot(
                *position,
                marker="o",
                markersize=21 if main else 13,
                markerfacecolor="none",
                markeredgecolor=MARK_COLOUR,
                markeredgewidth=2.4 if main else 1.8,
                linestyle="none",
                label=f"chosen: α {chosen[0]:.3f}, β {chosen[1]:.3f}",
            )
    panels["score"].legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize=10.5, frameon=False)
    figure.suptitle(title, fontsize=13)
    return save(figure, path)


def plot_gate_weights(
    weights: ArrayLike,
    row_names: Sequence[str],
    encoder_names: Sequence[str],
    path: str | Path,
    selected: ArrayLike | None = None,
    title: str = "Mean gate weight of each encoder",
) -> Path:
    """Draw how much the gate relies on each encoder for each emotion or emotion set.

    Args:
        weights: (R, E) mean gate weight per row and encoder; NaN in a row that no clip belongs to.
        row_names: R names of emotions or emotion sets.
        encoder_names: E names, in the order of the columns.
        path: the PNG to write.
        selected: (R, E) share of the clips whose top-n holds the encoder, drawn beside the weights where given.
        title: first line of the title, which should name the protocol and the number of clips.

    Returns:
        The path written.

    Raises:
        ValueError: if the shapes do not fit the names, or a number is negative or infinite.
    """
    shape = (len(row_names), len(encoder_names))
    panels = [("mean gate weight", matrix_of(weights, "weights", shape), "Purples")]
    if selected is not None:
        panels.append(
            ("share of clips with the encoder in the top-n", matrix_of(selected, "selected", shape), "Greens")
        )
    for name, values, _ in panels:
        if np.isinf(values).any() or (values < 0).any():
            raise ValueError(f"{name}: expected numbers of at least 0, found a negative or infinite one")

    width = 2.6 + len(panels) * max(3.2, 0.85 * shape[1] + 0.9)
    figure = Figure(figsize=(width, 2.5 + 0.42 * shape[0]), dpi=DPI, layout="constrained")
    for column, (name, values, colours) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        highest = 1.0 if column else float(np.nanmax(values, initial=1e-9))
        image = heat_map(axes, values, colours, Normalize(0, highest))
        for (row, encoder), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else (f"{value:.0%}" if column else f"{value:.2f}")
            write_in_cell(axes, row, encoder, text, image, 9.5)
        axes.set_xticks(
            range(shape[1]), list(encoder_names), rotation=35, ha="right", rotation_mode="anchor", fontsize=10
        )
        axes.set_yticks(range(shape[0]), list(row_names) if column == 0 else [""] * shape[0], fontsize=10)
        axes.set_title(name, fontsize=10.5)
        figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03).ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=12.5)
    return save(figure, path)


def plot_learning_curves(
    history: Iterable[Mapping[str, Any]], path: str | Path, title: str = "Learning curves"
) -> Path:
    """Draw training loss and validation Score over the epochs: each run faintly, their mean, and a band around it.

    A run is one pair of seed and fold. Mean and band (one standard deviation over runs) cover, at each epoch, the runs
    that reached it. Each run's selected epoch is marked: the row with a true "selected", or, where a run marks none,
    its first best validation score.

    Args:
        history: rows with "seed", "fold", "epoch" and "train_loss", and "validation_score" (None or absent in an epoch
            that was not validated) and "selected" where known.
        path: the PNG to write.
        title: first line of the title, which should name the protocol; the number of runs is added to it.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no row, or a row lacks one of the four keys it must have.
    """
    runs: dict[tuple[Any, Any], list[Mapping[str, Any]]] = defaultdict(list)
    for index, row in enumerate(history):
        missing = [key for key in ("seed", "fold", "epoch", "train_loss") if key not in row]
        if missing:
            raise ValueError(f"history row {index}: expected the key {missing[0]!r}, found {sorted(row)}")
        runs[(row["seed"], row["fold"])].append(row)
    if not runs:
        raise ValueError("history: expected at least one row, found none")
    for rows in runs.values():
        rows.sort(key=lambda row: row["epoch"])

    panels = [("train_loss", "training loss", TRAIN_COLOUR)]
    if any(row.get("validation_score") is not None for rows in runs.values() for row in rows):
        panels.append(("validation_score", "validation Score", SCORE_COLOUR))
    figure = Figure(figsize=(6.4 * len(panels), 4.7), dpi=DPI, layout="constrained")
    for column, (key, label, colour) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        by_epoch: dict[float, list[float]] = defaultdict(list)
        for rows in runs.values():
            points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
            for epoch, value in points:
                by_epoch[epoch].append(float(value))
            axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, alpha=0.22, linewidth=0.8)
        epochs = np.array(sorted(by_epoch))
        mean = np.array([np.mean(by_epoch[epoch]) for epoch in epochs])
        std = np.array([np.std(by_epoch[epoch]) for epoch in epochs])
        if len(runs) > 1:
            axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0, label="± 1 std")
        axes.plot(epochs, mean, color=colour, linewidth=2.2, marker="o" if len(epochs) == 1 else None, label="mean")
        marks = [(row["epoch"], row[key]) for row in _selected_rows(runs) if row.get(key) is not None]
        if marks:
            axes.plot(
                *zip(*marks, strict=True),
                linestyle="none",
                marker="D",
                markersize=5.5,
                markerfacecolor="white",
                markeredgecolor="#222222",
                markeredgewidth=1.1,
                label="selected epoch of a run",
            )
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
    return save(figure, path)


def _selected_rows(runs: Mapping[Any, list[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Return the row of each run whose epoch was kept, leaving out runs where nothing tells which it was."""
    chosen = []
    for rows in runs.values():
        marked = [row for row in rows if row.get("selected")]
        scored = [row for row in rows if row.get("validation_score") is not None]
        if marked:
            chosen.append(marked[-1])
        elif scored:
            chosen.append(max(scored, key=lambda row: row["validation_score"]))
    return chosen


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _position(value: float, grid: np.ndarray) -> float:
    """Return where a value lies on an axis that counts the grid's cells."""
    return float(np.interp(value, grid, np.arange(len(grid))))

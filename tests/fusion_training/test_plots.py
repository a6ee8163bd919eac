"""The figures show the numbers they are given: tests read the drawn artists back, and the PNG files written."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_blemo import blemore
from hf_blemo.fusion_training import plots

NAMES = ["+".join(emotions) for emotions in blemore.EMOTION_SETS]


@pytest.fixture
def figures(monkeypatch):
    """Figures in the order in which they were saved; writing them, which takes long, is left out but for one kind."""
    saved, savefig = [], Figure.savefig

    def record(figure, path, **options):
        saved.append(figure)
        if "confusion" in path.name:
            savefig(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title().startswith(title))


def cell_texts(axes):
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}


def test_confusion_shows_counts_and_shares_of_each_row(tmp_path, figures):
    confusion = np.zeros((16, 16), dtype=int)
    confusion[0, 0], confusion[0, 6], confusion[9, 9] = 3, 1, 1200
    paths = [tmp_path / "plots" / "confusion.png", tmp_path / "confusion_again.png"]
    for path in paths:
        plots._plot_confusion(confusion, NAMES, 6, path, "honest protocol")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    axes = panel(figures[0], "honest protocol")

    shares = np.asarray(axes.images[0].get_array())
    assert shares[0, 0] == 0.75 and shares[0, 6] == 0.25 and shares[9, 9] == 1.0
    assert shares.sum() == 2.0  # the 14 rows without a clip are not divided by zero
    assert cell_texts(axes) == {(0, 0): "3", (0, 6): "1", (9, 9): "1,200"}
    assert axes.get_title() == "honest protocol\n1,204 predictions, 99.9% of them exactly the right set"
    assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
    assert axes.get_yticklabels()[9].get_text() == "ang+sad  (1,200)"
    with Image.open(paths[0]) as image:
        assert image.format == "PNG" and round(image.info["dpi"][0]) == 150 and image.size == (1650, 1470)


def test_threshold_grid_marks_best_and_chosen(tmp_path, figures):
    grid = blemore.THRESHOLD_GRID
    presence, salience = np.full((20, 20), 0.1), np.zeros((20, 20))
    presence[4, :], salience[4, 7], salience[4, 9] = 0.3, 0.2, 0.2
    plots._plot_thresholds(presence, salience, (grid[2], grid[1]), tmp_path / "grid.png", "fold 0")
    score, left, right = (panel(figures[0], name) for name in ("Score", "ACC_presence", "ACC_salience"))

    np.testing.assert_allclose(score.images[0].get_array(), 0.5 * presence + 0.5 * salience)
    np.testing.assert_array_equal(left.images[0].get_array(), presence)
    np.testing.assert_array_equal(right.images[0].get_array(), salience)
    for axes in (score, left, right):
        best, chosen = axes.lines
        assert (best.get_xdata()[0], best.get_ydata()[0]) == (7, 4)  # of two equal cells, the lower beta
        np.testing.assert_allclose((chosen.get_xdata()[0], chosen.get_ydata()[0]), (1, 2))
    labels = [text.get_text() for text in score.get_legend().get_texts()]
    assert labels == ["best cell: 0.250 at α 0.239, β 0.382", "chosen: α 0.145, β 0.097"]
    # Low alpha is drawn at the bottom, as on any axis.
    assert score.get_ylim()[0] < score.get_ylim()[1]


def test_gate_weights_and_selection(tmp_path, figures):
    weights = np.linspace(0.0, 0.62, 32).reshape(16, 2)
    weights[3] = np.nan
    selected = np.ones((16, 2))
    selected[0, 1] = 0.25
    plots._plot_gate(weights, selected, ["wavlm", "imagebind"], NAMES, tmp_path / "gate.png", "gate, 10 clips")
    gate, top = panel(figures[0], "mean gate weight"), panel(figures[0], "share of clips")

    np.testing.assert_array_equal(np.ma.filled(gate.images[0].get_array(), np.nan), weights)
    assert cell_texts(gate)[0, 1] == "0.02" and cell_texts(gate)[3, 0] == "–"
    assert cell_texts(top)[0, 1] == "25%" and top.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in gate.get_yticklabels()][:7] == [*blemore.EMOTIONS, "ang+disg"]
    assert figures[0].get_suptitle() == "gate, 10 clips"
    assert "matplotlib.pyplot" not in sys.modules, "its figures are global state"


def run_rows(fold, losses, scores, chosen):
    rows = zip(losses, scores, strict=True)
    return [
        {"seed": 0, "fold": fold, "epoch": epoch, "train_loss": loss, "validation_score": score}
        | {"selected": epoch == chosen}
        for epoch, (loss, score) in enumerate(rows, start=1)
    ]


def test_learning_curves_mean_band_and_selected_epochs(tmp_path, figures):
    # A selected epoch need not be the best one.
    history = run_rows(0, [3.0, 2.0, 1.0], [0.1, 0.3, 0.1], 1) + run_rows(1, [5.0, 4.0], [0.2, 0.3], 1)
    plots._plot_learning_curves(history, tmp_path / "curves.png", "honest protocol", "validation_score")
    loss, score = figures[0].axes

    def line(axes, label):
        found = next(line for line in axes.lines if line.get_label() == label)
        return list(found.get_xdata()), list(found.get_ydata())

    assert line(loss, "mean") == ([1, 2, 3], [4.0, 3.0, 1.0])  # at epoch 3 only fold 0 is left
    epochs, means = line(score, "mean")
    assert epochs == [1, 2, 3] and means == pytest.approx([0.15, 0.3, 0.1])
    band = loss.collections[0].get_paths()[0].vertices
    expected = {(epoch, mean + sign * 2**0.5) for epoch, mean in ((1, 4), (2, 3)) for sign in (-1, 1)} | {(3, 1)}
    assert {tuple(np.round(point, 9)) for point in expected} <= {tuple(point) for point in band.round(9)}
    assert sorted(zip(*line(score, "selected epoch of a run"), strict=True)) == [(1, 0.1), (1, 0.2)]
    assert sorted(zip(*line(loss, "selected epoch of a run"), strict=True)) == [(1, 3.0), (1, 5.0)]
    assert figures[0].get_suptitle() == "honest protocol\n2 runs: 2 folds, 1 seed"

"""The figures show the numbers they are given: tests read the drawn artists back, and the PNG files written."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_blemo.blemore import EMOTION_SETS, EMOTIONS
from hf_blemo.fusion_training.plots import plot_confusion, plot_gate_weights, plot_learning_curves, plot_threshold_grid


@pytest.fixture
def figures(monkeypatch):
    """Figures in the order in which they were saved."""
    saved = []
    savefig = Figure.savefig

    def record(figure, *arguments, **options):
        saved.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title().startswith(title))


def cell_texts(axes):
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}


def test_confusion_shows_counts_and_shares_of_each_row(tmp_path, figures):
    confusion = np.zeros((16, 16), dtype=int)
    confusion[0, 0], confusion[0, 6], confusion[9, 9] = 3, 1, 1200
    path = plot_confusion(confusion, tmp_path / "plots" / "confusion.png", "honest protocol")
    axes = panel(figures[0], "honest protocol")

    shares = np.asarray(axes.images[0].get_array())
    assert shares[0, 0] == 0.75 and shares[0, 6] == 0.25 and shares[9, 9] == 1.0
    assert shares.sum() == 2.0  # the 14 rows without a clip are not divided by zero
    assert cell_texts(axes) == {(0, 0): "3", (0, 6): "1", (9, 9): "1,200"}
    assert axes.get_title() == "honest protocol\n1,204 predictions, 99.9% of them exactly the right set"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["+".join(names) for names in EMOTION_SETS]
    assert axes.get_yticklabels()[9].get_text() == "ang+sad  (1,200)"
    with Image.open(path) as image:
        assert image.format == "PNG" and round(image.info["dpi"][0]) == 150 and image.size == (1650, 1470)


def test_empty_confusion_is_drawn(tmp_path, figures):
    plot_confusion(np.zeros((16, 16)), tmp_path / "confusion.png")
    assert "0 predictions, 0.0%" in figures[0].axes[0].get_title()


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (np.zeros((6, 6)), r"expected shape \(16, 16\), found \(6, 6\)"),
        (np.full((16, 16), -1), "negative"),
        (np.full((16, 16), np.nan), "non-finite"),
    ],
)
def test_bad_confusion_is_refused(tmp_path, confusion, message):
    with pytest.raises(ValueError, match=message):
        plot_confusion(confusion, tmp_path / "confusion.png")
    assert not list(tmp_path.iterdir())


def test_threshold_grid_marks_best_and_chosen(tmp_path, figures):
    alphas, betas = np.linspace(0.05, 0.95, 20), np.linspace(0.05, 0.95, 20)
    presence, salience = np.full((20, 20), 0.1), np.zeros((20, 20))
    presence[4, :], salience[4, 7], salience[4, 9] = 0.3, 0.2, 0.2
    plot_threshold_grid(presence, salience, alphas, betas, (alphas[2], betas[1]), tmp_path / "grid.png", "fold 0")
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


def test_threshold_grid_without_a_choice(tmp_path, figures):
    plot_threshold_grid(np.zeros((3, 2)), np.zeros((3, 2)), [0.1, 0.2, 0.3], [0.1, 0.2], None, tmp_path / "grid.png")
    assert len(panel(figures[0], "Score").lines) == 1


def test_threshold_grid_refuses_transposed_input(tmp_path):
    with pytest.raises(ValueError, match=r"salience: expected shape \(3, 2\), found \(2, 3\)"):
        plot_threshold_grid(np.zeros((3, 2)), np.zeros((2, 3)), [0.1, 0.2, 0.3], [0.1, 0.2], None, tmp_path / "a.png")
    with pytest.raises(ValueError, match="finite"):
        plot_threshold_grid([[np.nan]], [[0.0]], [0.1], [0.1], None, tmp_path / "a.png")


def test_gate_weights_and_selection(tmp_path, figures):
    weights = np.linspace(0.0, 0.55, 12).reshape(6, 2)
    weights[3] = np.nan
    selected = np.ones((6, 2))
    selected[0, 1] = 0.25
    plot_gate_weights(weights, EMOTIONS, ["wavlm", "imagebind"], tmp_path / "gate.png", selected, "gate, 10 clips")
    gate, top = panel(figures[0], "mean gate weight"), panel(figures[0], "share of clips")

    np.testing.assert_array_equal(np.ma.filled(gate.images[0].get_array(), np.nan), weights)
    assert cell_texts(gate)[0, 1] == "0.05" and cell_texts(gate)[3, 0] == "–"
    assert cell_texts(top)[0, 1] == "25%" and top.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in gate.get_yticklabels()] == list(EMOTIONS)
    assert figures[0].get_suptitle() == "gate, 10 clips"


def test_gate_weights_refuse_other_shapes(tmp_path):
    with pytest.raises(ValueError, match=r"weights: expected shape \(6, 3\), found \(6, 2\)"):
        plot_gate_weights(np.zeros((6, 2)), EMOTIONS, ["a", "b", "c"], tmp_path / "gate.png")
    with pytest.raises(ValueError, match="mean gate weight: expected numbers of at least 0"):
        plot_gate_weights(np.full((6, 1), -0.1), EMOTIONS, ["a"], tmp_path / "gate.png")


def run_rows(fold, losses, scores, **extra):
    return [
        {"seed": 0, "fold": fold, "epoch": epoch, "train_loss": loss, "validation_score": score, **extra}
        for epoch, (loss, score) in enumerate(zip(losses, scores, strict=True), start=1)
    ]


def test_learning_curves_mean_band_and_selected_epochs(tmp_path, figures):
    history = run_rows(0, [3.0, 2.0, 1.0], [0.1, None, 0.1]) + run_rows(1, [5.0, 4.0], [0.2, 0.3])
    history[4]["selected"] = False
    history[3]["selected"] = True  # a kept epoch need not be the best one
    plot_learning_curves(history[::-1], tmp_path / "curves.png", "honest protocol")
    loss, score = figures[0].axes

    def line(axes, label):
        found = next(line for line in axes.lines if line.get_label() == label)
        return list(found.get_xdata()), list(found.get_ydata())

    assert line(loss, "mean") == ([1, 2, 3], [4.0, 3.0, 1.0])  # at epoch 3 only fold 0 is left
    epochs, means = line(score, "mean")
    assert epochs == [1, 2, 3] and means == pytest.approx([0.15, 0.3, 0.1])
    band = loss.collections[0].get_paths()[0].vertices
    assert {(1.0, 3.0), (1.0, 5.0), (2.0, 2.0), (2.0, 4.0), (3.0, 1.0)} <= {tuple(point) for point in band.round(9)}
    assert sorted(zip(*line(score, "selected epoch of a run"), strict=True)) == [(1, 0.1), (1, 0.2)]
    assert sorted(zip(*line(loss, "selected epoch of a run"), strict=True)) == [(1, 3.0), (1, 5.0)]
    assert figures[0].get_suptitle() == "honest protocol\n2 runs: 2 folds, 1 seed"


def test_learning_curves_without_validation_have_one_panel(tmp_path, figures):
    plot_learning_curves([{"seed": 0, "fold": 0, "epoch": 1, "train_loss": 1.0}], tmp_path / "curves.png")
    assert len(figures[0].axes) == 1
    assert "selected epoch of a run" not in [line.get_label() for line in figures[0].axes[0].lines]


def test_learning_curves_name_the_bad_row(tmp_path):
    with pytest.raises(ValueError, match="history row 1: expected the key 'train_loss'"):
        plot_learning_curves(run_rows(0, [1.0], [0.1]) + [{"seed": 0, "fold": 0, "epoch": 2}], tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one row"):
        plot_learning_curves([], tmp_path / "a.png")


def test_equal_numbers_give_equal_files(tmp_path):
    first = plot_gate_weights(np.eye(2), ["ang", "sad"], ["a", "b"], tmp_path / "first.png")
    second = plot_gate_weights(np.eye(2), ["ang", "sad"], ["a", "b"], tmp_path / "second.png")
    assert first.read_bytes() == second.read_bytes()


def test_no_global_matplotlib_state_is_touched(tmp_path):
    code = (
        "import sys; from hf_blemo.fusion_training.plots import plot_gate_weights;"
        f"plot_gate_weights([[1.0]], ['ang'], ['a'], {str(tmp_path / 'gate.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

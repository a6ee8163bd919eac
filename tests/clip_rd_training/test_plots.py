"""The figures of a distillation show the numbers they are given: tests read the drawn artists back."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_blemo.clip_rd.weights_clip_rd import TERMS
from hf_blemo.clip_rd_training.plots import _plot_evaluations, _plot_loss_terms, _plot_similarity


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


def points_of(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def panels_of(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def retrieval(first, **more):
    recalls = {
        f"{direction}_r@{cutoff}": first * factor
        for direction, factor in (("image_to_text", 1.0), ("text_to_image", 0.5))
        for cutoff in (1, 5, 10)
    }
    return {"kind": "retrieval", "data": "owner/coco", **recalls, **more}


def zero_shot(top_1, top_5, **more):
    return {"kind": "zero_shot", "data": "synthetic", "images": 1500, "top_1": top_1, "top_5": top_5, **more}


def test_every_term_of_the_loss_has_a_panel(tmp_path, figures):
    history = [
        {"step": step, "loss": 20.0, "logit_scale": 14.0, "learning_rate": 0.1, **dict.fromkeys(TERMS, 1.0)}
        for step in (20, 10)
    ]
    history[0] |= {"fd": 0.001, "hrd": 0.0, "xrd": None}
    path = _plot_loss_terms(history, tmp_path / "plots" / "loss.png")
    panels = panels_of(figures[0])
    assert list(panels) == ["total, weighted", *TERMS]
    assert points_of(panels["total, weighted"].lines[0]) == [(10, 20.0), (20, 20.0)]
    assert points_of(panels["fd"].lines[0]) == [(10, 1.0), (20, 0.001)]
    assert points_of(panels["xrd"].lines[0]) == [(10, 1.0)]  # a term that was not computed leaves no zero
    assert {name for name, axes in panels.items() if axes.get_yscale() == "log"} == {"fd"}  # 0 has no logarithm
    assert figures[0].get_suptitle() == "Losses of the distillation"
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_a_logarithmic_axis_of_little_more_than_a_decade_is_labelled(tmp_path, figures):
    _plot_loss_terms([{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.02}], tmp_path / "loss.png")
    figures[0].canvas.draw()
    (axes,) = figures[0].axes
    low, high = axes.get_ylim()
    shown = [tick.get_text() for tick in axes.get_yticklabels() if low <= tick.get_position()[1] <= high]
    assert {"0.05", "0.1", "0.2", "0.5"} <= set(shown)


def test_evaluations_over_steps_with_the_teacher_dashed(tmp_path, figures):
    evaluations = [
        {"step": 200, "tasks": {"drawn": zero_shot(0.2, 0.4), "coco": retrieval(0.6)}},
        {"step": 100, "tasks": {"drawn": zero_shot(0.1, 0.3)}},
    ]
    _plot_evaluations(evaluations, tmp_path / "evaluations.png", {"tasks": {"coco": retrieval(0.8)}})
    panels = panels_of(figures[0])
    assert list(panels) == [
        "image to text recall\ncoco: owner/coco",
        "text to image recall\ncoco: owner/coco",
        "zero-shot accuracy\ndrawn: synthetic\n1,500 images",
    ]
    to_text, to_image, accuracy = panels.values()
    assert [points_of(line) for line in accuracy.lines] == [[(100, 0.1), (200, 0.2)], [(100, 0.3), (200, 0.4)]]
    assert [points_of(line) for line in to_text.lines if line.get_linestyle() == "-"] == [[(200, 0.6)]] * 3
    dashed = [line for line in to_image.lines if line.get_linestyle() == "--"]
    solid = [line for line in to_image.lines if line.get_linestyle() == "-"]
    assert [line.get_ydata()[0] for line in dashed] == [0.4] * 3
    assert [line.get_color() for line in dashed] == [line.get_color() for line in solid]
    # One scale for both directions, reaching the teacher; another for the lower task.
    assert to_text.get_ylim() == to_image.get_ylim() == pytest.approx((0, 0.88))
    assert accuracy.get_ylim() == pytest.approx((0, 0.44))
    _plot_evaluations([{"step": 1, "tasks": {"a": zero_shot(0.0, 0.0)}}], tmp_path / "evaluations.png")
    shown = [[text.get_text() for text in figure.legends[0].texts] for figure in figures]
    assert shown == [["top-1 or R@1", "top-5 or R@5", "R@10", "teacher"], ["top-1", "top-5"]]


def test_similarities_share_colours_and_are_compared_off_the_diagonal(tmp_path, figures):
    rng = np.random.default_rng(0)
    teacher = rng.uniform(-0.2, 0.4, (5, 5))
    np.fill_diagonal(teacher, 0.9)
    before = np.full((5, 5), 0.1)
    after = 0.5 * teacher + 0.1
    np.fill_diagonal(after, [0.9, 0.9, 0.9, -0.9, -0.9])  # ruins a correlation that reads the diagonal
    after[0, 1] += 0.3
    off = ~np.eye(5, dtype=bool)
    expected = np.corrcoef(teacher[off], after[off])[0, 1]
    _plot_similarity(teacher, before, after, tmp_path / "similarity.png")
    panels = panels_of(figures[0])
    images = [panels[name].images[0] for name in ("teacher", "student before training", "student after training")]
    for image, matrix in zip(images, (teacher, before, after), strict=True):
        assert np.array_equal(np.asarray(image.get_array()), matrix)
        assert image.get_clim() == (-0.9, 0.9)
    assert panels["teacher"].get_xlabel() == "100% of rows have the diagonal largest"
    # Where all are equal none is the largest, and nothing correlates.
    assert panels["student before training"].get_xlabel().splitlines() == [
        "0% of rows have the diagonal largest",
        "correlation with the teacher off the diagonal: undefined",
    ]
    assert panels["student after training"].get_xlabel().splitlines() == [
        "60% of rows have the diagonal largest",
        f"correlation with the teacher off the diagonal: {expected:.3f}",
    ]


def test_equal_numbers_give_equal_files(tmp_path):
    first, second = (
        _plot_loss_terms([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], tmp_path / name)
        for name in ("first.png", "second.png")
    )
    assert first.read_bytes() == second.read_bytes()

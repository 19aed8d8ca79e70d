"""Plots of comparisons and ablations: their series can be told apart, and nothing covers anything."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from upl_ray.config.settings import Config, FewShotName, MethodName
from upl_ray.studies.plots import MOST_TICKS, plot_ablation, plot_comparison

FEW_SHOT = get_args(FewShotName)
WITHOUT_LABELS = [m for part in get_args(MethodName) for m in (get_args(part) or [part]) if m not in FEW_SHOT]


def spread(mean: float) -> dict[str, float]:
    return {"mean": mean, "deviation": 0.01}


def test_any_two_methods_differ_in_more_than_colour_and_lie_at_their_accuracies() -> None:
    """Every method that a comparison knows, at three numbers of shots."""
    records = [{"title": m, "shots": None, "accuracy": spread(0.5 + 0.05 * i)} for i, m in enumerate(WITHOUT_LABELS)]
    records += [
        {"title": m, "shots": k, "accuracy": spread(0.5 + 0.04 * i + 0.01 * k)}
        for i, m in enumerate(FEW_SHOT)
        for k in (1, 4, 16)
    ]
    (axes,) = plot_comparison([*records, {"title": "CoOp", "shots": 2, "accuracy": None}], "a title").axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "4", "16"]
    looks: dict[str, tuple[Any, ...]] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        line = handle.lines[0] if hasattr(handle, "lines") else handle
        method = label.partition(":")[0]
        looks[method] = (to_hex(line.get_color()), line.get_marker(), line._unscaled_dash_pattern)
        if method in FEW_SHOT:
            expected = [50 + 4 * FEW_SHOT.index(method) + k for k in (1, 4, 16)]
        else:
            expected = [50 + 5 * WITHOUT_LABELS.index(method)] * 2
            assert label == f"{method}: {expected[0]:.1f}"
        assert line.get_ydata() == pytest.approx(expected)
    assert list(looks) == [*WITHOUT_LABELS, *FEW_SHOT]
    for (_, *one), (_, *other) in itertools.combinations(looks.values(), 2):
        assert one != other
    for group in (WITHOUT_LABELS, FEW_SHOT):  # and in colour, where they are of a kind
        assert len({looks[m][0] for m in group}) == len(group)


def ablation(every_set: bool, precision: bool = True) -> Figure:
    """Every factor with its default values, and the paper's backbones as labelers, alone or in every combination."""
    given = {"backbones": "upl-star", "corpus": {"uri": "x"}, "classnames": ["a", "b"], "storage_path": "y"}
    names = [b.label for b in Config.model_validate(given).backbones]
    sets = ["+".join(s) for n in range(1, len(names)) for s in itertools.combinations(names, n)]
    values = {
        "top-K": ["1", "2", "4", "8", "16", "32", "64"],
        "selection": ["top-K, own", "≥ 0.9, own", "top-K, fused", "≥ 0.9, fused"],
        "labels": [*(sets if every_set else names), "all fused"],
        "context length": ["1", "2", "4", "8", "16"],
        "views": ["0", "1", "10", "50"],
        "members": ["1", "2", "4", "8", "16"],
        "averaged": ["probabilities", "logits"],
    }
    records = [
        {
            "factor": factor,
            "value": value,
            "accuracy": spread(0.6 + 0.01 * i),
            "precision": 0.9 + 0.01 * i * (factor in ("top-K", "selection", "labels")) if precision else None,
        }
        for factor, of_factor in values.items()
        for i, value in enumerate(of_factor)
    ]
    figure = plot_ablation(records, "a title")
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("every_set", [False, True])
def test_panels_keep_their_size_beside_the_names_of_the_paper_s_backbones(every_set: bool) -> None:
    figure = ablation(every_set)
    whole = [axes.get_tightbbox() for axes in figure.axes]  # with names and titles
    assert not any(a.overlaps(b) for a, b in itertools.combinations(whole, 2))
    assert all(figure.bbox.x0 <= box.x0 and figure.bbox.y0 <= box.y0 for box in whole)
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.width / figure.dpi > 4, axes.get_title()  # of ten inches, in two columns
        assert box.height / figure.dpi > 2, axes.get_title()  # of 3.2 inches
        labels = [t for t in axes.get_xticklabels() if t.get_text()]
        assert len(labels) <= MOST_TICKS
        assert axes.get_title() != "labels" or labels[-1].get_text() == "all fused"
        level = [t.get_window_extent() for t in labels if t.get_rotation() == 0]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(level, 2)), axes.get_title()


@pytest.mark.parametrize(
    ("precision", "names"), [(True, ["accuracy", "pseudo-label precision"]), (False, ["accuracy"])]
)
def test_one_legend_names_every_series_and_covers_no_panel(precision: bool, names: list[str]) -> None:
    figure = ablation(False, precision)
    assert [axes.get_legend() for axes in figure.axes] == [None] * 7
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == names
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)

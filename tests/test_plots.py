"""Plots of comparisons and ablations: their series can be told apart, and nothing covers anything."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from upl_ray.config import Backbone, Config
from upl_ray.plots import MOST_TICKS, ablation_figure, comparison_figure, to_png
from upl_ray.study_config import FewShotName, MethodName

FEW_SHOT = get_args(FewShotName)
FREE = [m for part in get_args(MethodName) for m in (get_args(part) or [part]) if m not in FEW_SHOT]


def spread(mean: float) -> dict[str, float]:
    return {"mean": mean, "deviation": 0.01}


@pytest.fixture
def comparison() -> Figure:
    """Every method that a comparison knows, at three numbers of shots."""
    records = [{"title": m, "shots": None, "accuracy": spread(0.5 + 0.05 * i)} for i, m in enumerate(FREE)]
    records += [
        {"title": m, "shots": k, "accuracy": spread(0.5 + 0.04 * i + 0.01 * k)}
        for i, m in enumerate(FEW_SHOT)
        for k in (1, 4, 16)
    ]
    return comparison_figure([*records, {"title": "CoOp", "shots": 2, "accuracy": None}], "a title")


def looks(figure: Figure) -> dict[str, tuple[Any, ...]]:
    """Colour, marker and dashes of each series; matplotlib calls every pattern of dashes `--`."""
    found = {}
    for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True):
        line = handle.lines[0] if hasattr(handle, "lines") else handle
        found[label] = (to_hex(line.get_color()), line.get_marker(), line._unscaled_dash_pattern)
    return found


def test_any_two_methods_differ_in_more_than_colour(comparison: Figure) -> None:
    series = looks(comparison)
    assert [name.partition(":")[0] for name in series] == [*FREE, *FEW_SHOT]
    for (_, *one), (_, *other) in itertools.combinations(series.values(), 2):
        assert one != other
    for group in (FREE, FEW_SHOT):  # and in colour, where they are of a kind
        of_group = [look[0] for name, look in series.items() if name.partition(":")[0] in group]
        assert len(set(of_group)) == len(group)


def test_lines_are_at_the_accuracies_that_were_run(comparison: Figure) -> None:
    (axes,) = comparison.axes
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    for i, method in enumerate(FREE):
        assert handles[f"{method}: {50 + 5 * i:.1f}"].get_ydata() == pytest.approx([50 + 5 * i] * 2)
    for i, method in enumerate(FEW_SHOT):
        assert handles[method].lines[0].get_ydata() == pytest.approx([50 + 4 * i + k for k in (1, 4, 16)])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "4", "16"]


def paper_backbones() -> list[str]:
    given = {"backbones": "upl-star", "corpus": {"uri": "x"}, "classnames": ["a", "b"], "storage_path": "y"}
    backbones: Sequence[Backbone] = Config.model_validate(given).backbones
    return [b.label for b in backbones]


def ablation(labelers: list[str], precision: bool = True) -> Figure:
    """Every factor with its default values, and these labelers."""
    values = {
        "top-K": ["1", "2", "4", "8", "16", "32", "64"],
        "selection": ["top-K, own", "≥ 0.9, own", "top-K, fused", "≥ 0.9, fused"],
        "labels": labelers,
        "context length": ["1", "2", "4", "8", "16"],
        "views": ["0", "1", "10", "50"],
        "members": ["1", "2", "4", "8", "16"],
        "averaged": ["probabilities", "logits"],
    }
    varies = ("top-K", "selection", "labels")
    records = [
        {
            "factor": factor,
            "value": value,
            "accuracy": spread(0.6 + 0.01 * i),
            "precision": (0.9 + 0.01 * i * (factor in varies)) if precision else None,
        }
        for factor, of_factor in values.items()
        for i, value in enumerate(of_factor)
    ]
    return ablation_figure(records, "a title")


def all_combinations() -> list[str]:
    names = paper_backbones()
    sets = ["+".join(s) for n in range(1, len(names)) for s in itertools.combinations(names, n)]
    return [*sets, "all fused"]


@pytest.mark.parametrize("many", [False, True])
def test_panels_keep_their_size_beside_the_names_of_the_paper_s_backbones(many: bool) -> None:
    figure = ablation(all_combinations() if many else [*paper_backbones(), "all fused"])
    figure.draw_without_rendering()
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


def test_one_legend_names_every_series_and_covers_no_panel() -> None:
    for precision, names in ((True, ["accuracy", "pseudo-label precision"]), (False, ["accuracy"])):
        figure = ablation([*paper_backbones(), "all fused"], precision)
        figure.draw_without_rendering()
        assert [axes.get_legend() for axes in figure.axes] == [None] * 7
        (legend,) = figure.legends
        assert [t.get_text() for t in legend.get_texts()] == names
        box = legend.get_window_extent()
        assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_a_plot_becomes_a_picture_with_ink_on_it(comparison: Figure) -> None:
    picture = np.asarray(Image.open(io.BytesIO(to_png(comparison))).convert("RGB"))
    colours = {to_hex(c / 255) for c in picture.reshape(-1, 3)[::7]}
    assert {look[0] for look in looks(comparison).values()} <= colours

"""The figures of a report, each from plain numbers (matplotlib, without a display).

Shapes: C classes, B labelers, S members, E epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from upl_ray.report.figures import INK, LINES, MARKERS, MUTED, SERIES, new_figure, percent_axis, shorten

FloatArray = npt.NDArray[np.float64]
MOST_BARS = 24  # classes that get a bar and a name of their own
MOST_NAMES = 8  # points that are named in a cloud


@dataclass(frozen=True)
class Estimate:
    """A share with its interval [0-1]."""

    label: str
    value: float
    low: float
    high: float


def estimates(groups: dict[str, list[Estimate]], xlabel: str) -> Figure:
    """Dots with intervals, one line each; groups (corpora) differ by marker and colour."""
    labels = [e.label for e in next(iter(groups.values()))]
    figure, axes = new_figure(1.1 + 0.34 * len(labels) + 0.2 * (len(groups) > 1))
    for g, (name, rows) in enumerate(groups.items()):
        shift = (g - (len(groups) - 1) / 2) * 0.26
        y = np.arange(len(rows)) + shift
        values = np.array([e.value for e in rows])
        errors = np.array([[e.value - e.low for e in rows], [e.high - e.value for e in rows]])
        style: dict[str, Any] = {
            "color": SERIES[g],
            "fmt": MARKERS[g],
            "markersize": 5.5,
            "capsize": 2.5,
            "elinewidth": 1.3,
        }
        axes.errorbar(values, y, xerr=np.clip(errors, 0, None), label=name, **style)
    axes.set_yticks(range(len(labels)), [shorten(label, 26) for label in labels])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    percent_axis(axes.xaxis)
    if len(groups) > 1:
        figure.legend(loc="outside upper right", ncols=len(groups))
    return figure


def heat(values: FloatArray, rows: Sequence[str], columns: Sequence[str], unit: str, diverging: bool) -> Figure:
    """A table of shares as colours with numbers in it: [rows, columns]; diverging ones have their white at 0."""
    figure, axes = new_figure(1.5 + 0.36 * len(rows))
    bound = float(np.nanmax(np.abs(values))) or 1.0
    colours, low = ("PuOr_r", -bound) if diverging else ("cividis", 0.0)
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=bound, aspect="auto", interpolation="none")
    axes.set_xticks(range(len(columns)), [shorten(c, 14) for c in columns], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [shorten(r) for r in rows])
    axes.grid(visible=False)
    if values.shape[1] <= 12:
        for (i, j), value in np.ndenumerate(values):
            r, g, b, _ = image.to_rgba(np.array([value]))[0]
            dark = 0.299 * r + 0.587 * g + 0.114 * b < 0.5
            points = round(100 * value)
            axes.text(
                j,
                i,
                _points(points, diverging),
                ha="center",
                va="center",
                fontsize=8,
                color="#ffffff" if dark else "#000000",
            )
    bar = figure.colorbar(image, ax=axes, location="top", fraction=0.06, pad=0.03, aspect=40)
    bar.set_label(unit)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    percent_axis(bar.ax.xaxis)
    return figure


def _points(points: int, signed: bool) -> str:
    """A number in a cell; none where there is nothing."""
    if not points:
        return "0" if signed else ""
    return f"{points:+d}" if signed else str(points)


def cloud(x: FloatArray, y: FloatArray, names: Sequence[str], xlabel: str, ylabel: str) -> Figure:
    """One point a class [C] in the unit square; those farthest from the diagonal are named."""
    figure, axes = new_figure(4.2)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2)
    shown = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    axes.scatter(x[shown], y[shown], s=34 if len(shown) < 100 else 12, color=SERIES[0], alpha=0.85, linewidths=0)
    far = shown[np.argsort(-np.abs(x[shown] - y[shown]), kind="stable")]
    far = far if len(shown) <= 12 else _apart(far, x, y)
    middle = float(x[shown].mean()) if len(shown) else 0.5
    for i in far.tolist():
        left = bool(x[i] > middle)
        place: dict[str, Any] = {
            "xytext": (-6 if left else 6, 0),
            "textcoords": "offset points",
            "ha": "right" if left else "left",
        }
        axes.annotate(shorten(names[i], 16), (x[i], y[i]), va="center", fontsize=8.5, **place)
    _around(axes, x[shown], y[shown])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    return figure


def _apart(order: npt.NDArray[np.int64], x: FloatArray, y: FloatArray) -> npt.NDArray[np.int64]:
    """The first MOST_NAMES of these points that leave each other room for a name."""
    scale = [max(float(v[order].max() - v[order].min()), 1e-9) for v in (x, y)]
    kept: list[int] = []
    for i in order.tolist():
        if all(abs(x[i] - x[k]) > 0.4 * scale[0] or abs(y[i] - y[k]) > 0.06 * scale[1] for k in kept):
            kept.append(i)
        if len(kept) == MOST_NAMES:
            break
    return np.array(kept, np.int64)


def _around(axes: Axes, x: FloatArray, y: FloatArray) -> None:
    """Limits that leave no half of the square empty."""
    for values, set_limits in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        margin = max(0.04, 0.12 * (high - low))
        set_limits(max(-0.02, low - margin), min(1.03, high + margin))


def images_per_class(series: dict[str, list[int]], names: Sequence[str], ylabel: str) -> Figure:
    """Images of each class [C] by several rules, classes ordered by the first; bars, or curves for many classes."""
    figure, axes = new_figure(3.6)
    first = np.array(next(iter(series.values())))
    order = np.argsort(-first, kind="stable")
    many = len(order) > MOST_BARS
    width = 0.8 / len(series)
    for i, (label, counts) in enumerate(series.items()):
        values = np.array(counts)[order]
        if many:
            axes.plot(values, drawstyle="steps-mid", color=SERIES[i], linestyle=LINES[i], label=label)
        else:
            x = np.arange(len(order)) + (i - (len(series) - 1) / 2) * width
            hatch: dict[str, Any] = (
                {"hatch": "////", "edgecolor": SERIES[i], "facecolor": "none"} if i % 2 else {"color": SERIES[i]}
            )
            axes.bar(x, values, width * 0.92, label=label, linewidth=1.0, **hatch)
    if many:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("classes, from most to fewest images")
    else:
        axes.set_xticks(range(len(order)), [shorten(names[i], 16) for i in order], rotation=45, ha="right")
        axes.grid(axis="x", visible=False)
    if not many:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(ylabel)
    figure.legend(loc="outside upper right", ncols=1 if sum(map(len, series)) > 46 else 2)
    return figure


def losses(history: dict[str, FloatArray]) -> Figure:
    """Training loss of each member [S, E] of each variant: thin lines, and their mean."""
    figure, axes = new_figure(3.4)
    for i, (label, values) in enumerate(history.items()):
        epochs = np.arange(1, values.shape[1] + 1)
        marker = "." if values.shape[1] == 1 else None
        axes.plot(epochs, values.T, color=SERIES[i], linewidth=0.6, alpha=0.3, marker=marker)
        axes.plot(
            epochs, values.mean(axis=0), color=SERIES[i], linestyle=LINES[i], label=f"{label}, mean", marker=marker
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("cross-entropy [nats]")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def member_spread(spread: dict[str, tuple[FloatArray, float]], xlabel: str, reference: float | None) -> Figure:
    """Each member's share [S] as a dot, the ensemble's as a bar across; `reference` is zero-shot's."""
    figure, axes = new_figure(1.3 + 0.55 * len(spread))
    for i, (members, ensemble) in enumerate(spread.values()):
        jitter = (np.arange(len(members)) * 0.618 % 1 - 0.5) * 0.5  # spread evenly, the same in every report
        axes.scatter(members, i + jitter, s=26, color=SERIES[i], marker=MARKERS[i], alpha=0.75, linewidths=0)
        if np.isfinite(ensemble):
            axes.plot(
                [ensemble] * 2, [i - 0.38, i + 0.38], color=INK, linewidth=2.6, label="ensemble" if i == 0 else None
            )
    if reference is not None:
        axes.axvline(reference, color=MUTED, linestyle="--", linewidth=1.4, label="target, zero-shot")
    axes.set_yticks(range(len(spread)), list(spread))
    axes.set_ylim(len(spread) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    percent_axis(axes.xaxis)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def votes(curves: dict[str, tuple[FloatArray, float]], ylabel: str) -> Figure:
    """Share of right votes of the first 1 ... S members, in several orders [orders, S]; beside it the ensemble's."""
    figure, axes = new_figure(3.4)
    for i, (label, (values, ensemble)) in enumerate(curves.items()):
        n = np.arange(1, values.shape[1] + 1)
        axes.fill_between(n, values.min(axis=0), values.max(axis=0), color=SERIES[i], alpha=0.18, linewidth=0)
        axes.plot(n, values.mean(axis=0), color=SERIES[i], marker=MARKERS[i], markersize=4, label=f"{label}, vote")
        if np.isfinite(ensemble):
            axes.axhline(ensemble, color=SERIES[i], linestyle="--", linewidth=1.3, label=f"{label}, ensemble")
    axes.set_xlabel("members that vote")
    axes.set_ylabel(ylabel)
    percent_axis(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def reliability(curves: dict[str, FloatArray]) -> Figure:
    """Accuracy against mean confidence of each bin [bins, 3], and below it the share of images in each."""
    figure, _ = new_figure(4.4)
    figure.clear()
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    top.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2)
    for i, (label, bins) in enumerate(curves.items()):
        used = bins[:, 0] > 0
        images, confidence, right = bins[used].T
        top.plot(confidence / images, right / images, color=SERIES[i], marker=MARKERS[i], markersize=5, label=label)
        edges = np.linspace(0, 1, len(bins) + 1)
        bottom.stairs(bins[:, 0] / bins[:, 0].sum(), edges, color=SERIES[i], linestyle=LINES[i], linewidth=1.6)
    top.set_ylabel("accuracy")
    bottom.set_ylabel("images")
    bottom.set_xlabel("confidence")
    for axis in (top.yaxis, bottom.yaxis, bottom.xaxis):
        percent_axis(axis)
    top.set_ylim(0, 1.03)
    bottom.set_xlim(0, 1.01)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def confidences(curves: dict[str, FloatArray]) -> Figure:
    """Share of images in each bin of confidence [bins, 3]."""
    figure, axes = new_figure(3.2)
    for i, (label, bins) in enumerate(curves.items()):
        edges = np.linspace(0, 1, len(bins) + 1)
        axes.stairs(
            bins[:, 0] / max(bins[:, 0].sum(), 1),
            edges,
            color=SERIES[i],
            linestyle=LINES[i],
            label=label,
            linewidth=1.8,
        )
    axes.set_xlabel("confidence")
    axes.set_ylabel("images")
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def pairs(rows: Sequence[tuple[str, int]], xlabel: str) -> Figure:
    """Horizontal bars: what, and how many images."""
    figure, axes = new_figure(0.9 + 0.26 * max(len(rows), 1))
    axes.barh(range(len(rows)), [n for _, n in rows], color=SERIES[0], height=0.7)
    axes.set_yticks(range(len(rows)), [shorten(label, 34) for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    return figure

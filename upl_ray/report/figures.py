"""How every figure is drawn: the common style, one function for each kind of chart, and SVG or PNG of the result.

Charts take plain numbers and need no display. Colours are Okabe and Ito's (2008), which colour-blind readers can tell
apart; markers and line styles differ as well. Which figures a report has is decided in `exhibits.py`.

Shapes: C classes, S members, E epochs.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from upl_ray.report.findings import Estimate

FloatArray = npt.NDArray[np.float64]

WIDTH = 5.0  # inches: 360 units of SVG, so that text of 10 units can be read on a phone
PNG_DPI = 160
INK, MUTED, GRID = "#1b1e24", "#5a626c", "#d8dce1"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe-Ito without black and yellow
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (9, 3)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))
MOST_BARS = 24  # classes that each get a bar and a name
MOST_NAMES = 8  # points of a cloud that are named
# Colours that the page replaces by its own, which differ between light and dark.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {c: f"series-{i + 1}" for i, c in enumerate(SERIES)}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "upl_ray",  # equal figures make equal files
    "text.parse_math": False,  # a class name may hold dollar signs
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style to all figures made and saved inside; matplotlib's settings are restored afterwards."""
    with warnings.catch_warnings(), mpl.rc_context():
        mpl.rcdefaults()  # a person's own settings may need LaTeX, or fonts that are not there
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]  # its type names every key
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class name in the PNG; the browser draws the SVG's
        yield


def new_figure(height: float = 3.4) -> tuple[Figure, Axes]:
    """An empty figure of the common width [inches]."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def percent_axis(axis: Any) -> None:
    """Label an axis of shares [0-1] in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 4):g} %"))


def shorten(name: str, length: int = 22) -> str:
    """A name that fits beside an axis; the figure's table has it in full."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    half = length // 2
    return name if len(name) <= length else f"{name[: length - half - 1]}…{name[-half:]}"


# Kinds of charts.


def estimates(groups: dict[str, list[Estimate]], xlabel: str) -> Figure:
    """Dots with intervals, one line each; groups (corpora) differ by marker and colour."""
    labels = [e.label for e in next(iter(groups.values()))]
    figure, axes = new_figure(1.1 + 0.34 * len(labels) + 0.2 * (len(groups) > 1))
    for g, (name, rows) in enumerate(groups.items()):
        shift = (g - (len(groups) - 1) / 2) * 0.26
        y = np.arange(len(rows)) + shift
        values = np.array([e.value for e in rows])
        errors = np.array([[e.value - e.low for e in rows], [e.high - e.value for e in rows]])
        style: dict[str, Any] = {"color": SERIES[g], "fmt": MARKERS[g], "markersize": 5.5}
        axes.errorbar(values, y, xerr=np.clip(errors, 0, None), label=name, capsize=2.5, elinewidth=1.3, **style)
    axes.set_yticks(range(len(labels)), [shorten(label, 26) for label in labels])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    percent_axis(axes.xaxis)
    if len(groups) > 1:
        figure.legend(loc="outside upper right", ncols=len(groups))
    return figure


def heat(values: FloatArray, rows: Sequence[str], columns: Sequence[str], unit: str, diverging: bool) -> Figure:
    """Shares [rows, columns] as colours, with numbers where they fit; a diverging scale is white at 0."""
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
            colour = "#ffffff" if dark else "#000000"
            text = _points(round(100 * value), diverging)
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, location="top", fraction=0.06, pad=0.03, aspect=40)
    bar.set_label(unit)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    percent_axis(bar.ax.xaxis)
    return figure


def _points(points: int, signed: bool) -> str:
    """The number in a cell [percentage points]; an unsigned zero stays empty."""
    if not points:
        return "0" if signed else ""
    return f"{points:+d}" if signed else str(points)


def cloud(x: FloatArray, y: FloatArray, names: Sequence[str], xlabel: str, ylabel: str) -> Figure:
    """One point for each class [C] in the unit square; those farthest from the diagonal are named."""
    figure, axes = new_figure(4.2)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2)
    shown = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    axes.scatter(x[shown], y[shown], s=34 if len(shown) < 100 else 12, color=SERIES[0], alpha=0.85, linewidths=0)
    far = shown[np.argsort(-np.abs(x[shown] - y[shown]), kind="stable")]
    far = far if len(shown) <= 12 else _apart(far, x, y)
    middle = float(x[shown].mean()) if len(shown) else 0.5
    for i in far.tolist():
        left = bool(x[i] > middle)
        place: dict[str, Any] = {"xytext": (-6, 0), "ha": "right"} if left else {"xytext": (6, 0), "ha": "left"}
        label = shorten(names[i], 16)
        axes.annotate(label, (x[i], y[i]), va="center", fontsize=8.5, textcoords="offset points", **place)
    _limit_to(axes, x[shown], y[shown])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    return figure


def _apart(order: npt.NDArray[np.int64], x: FloatArray, y: FloatArray) -> npt.NDArray[np.int64]:
    """The first MOST_NAMES of these points whose names do not overlap."""
    scale = [max(float(v[order].max() - v[order].min()), 1e-9) for v in (x, y)]
    kept: list[int] = []
    for i in order.tolist():
        if all(abs(x[i] - x[k]) > 0.4 * scale[0] or abs(y[i] - y[k]) > 0.06 * scale[1] for k in kept):
            kept.append(i)
        if len(kept) == MOST_NAMES:
            break
    return np.array(kept, np.int64)


def _limit_to(axes: Axes, x: FloatArray, y: FloatArray) -> None:
    """Set the limits of both axes to the points, with a margin."""
    for values, set_limits in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        margin = max(0.04, 0.12 * (high - low))
        set_limits(max(-0.02, low - margin), min(1.03, high + margin))


def images_per_class(series: dict[str, list[int]], names: Sequence[str], ylabel: str) -> Figure:
    """Images of each class [C] by several rules, classes ordered by the first rule; curves above MOST_BARS classes."""
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
    """Training loss of each member [S, E] of each variant as thin lines, and their mean as a thick one."""
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
    """Each member's share [S] as a dot, the ensemble's as a bar, and `reference`, that of zero-shot, as a line."""
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
    """Share of right majority votes of the first 1 to S members, in several orders [orders, S], and the ensemble's."""
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
    """Accuracy against mean confidence of each bin [bins, 3], and below it the share of images in each bin."""
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
        shares = bins[:, 0] / max(bins[:, 0].sum(), 1)
        axes.stairs(shares, edges, color=SERIES[i], linestyle=LINES[i], label=label, linewidth=1.8)
    axes.set_xlabel("confidence")
    axes.set_ylabel("images")
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def known_shares(counts: Sequence[int], edges: FloatArray, threshold: float) -> Figure:
    """Numbers of images by share of probability, on a scale that is fine near 0 and 1."""
    figure, axes = new_figure(3.0)
    axes.set_xscale("logit")
    axes.stairs(counts, edges, color=SERIES[0], fill=True, alpha=0.7)
    if threshold:
        axes.axvline(threshold, color=SERIES[1], linestyle="--", label="label.min_known")
        figure.legend(loc="outside upper right")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("known")
    axes.set_ylabel("images")
    return figure


def pairs(rows: Sequence[tuple[str, int]], xlabel: str) -> Figure:
    """Numbers of images as horizontal bars with labels."""
    figure, axes = new_figure(0.9 + 0.26 * max(len(rows), 1))
    axes.barh(range(len(rows)), [n for _, n in rows], color=SERIES[0], height=0.7)
    axes.set_yticks(range(len(rows)), [shorten(label, 34) for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    return figure


# Files and elements of a page.


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file with a white ground."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an SVG element of a page, with the page's colours and ids that begin with `name`.

    Args:
        figure: made within `figure_style`.
        name: unique on the page.
        title: read first by a screen reader.
        description: read next.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.S)  # the page has a style
    svg = re.sub(r"<[^>]*>", lambda tag: _adapt_tag(tag[0], name), svg)  # not the text, which may be a class name
    labels = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    opening = re.match(r"<svg[^>]*>", svg)
    assert opening is not None
    view_box = re.search(r'viewBox="[^"]*"', opening[0])
    assert view_box is not None
    start = (
        f'<svg class="figure" role="img" {view_box[0]} aria-labelledby="{name}-t {name}-d" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return start + labels + re.sub(r">\s+<", "><", svg[opening.end() :]).strip()


def _adapt_tag(tag: str, name: str) -> str:
    """A tag with the page's colours and font, and with ids that begin with `name`."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", tag)

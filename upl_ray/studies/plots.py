"""Plots of a comparison and of an ablation.

Series differ in marker or line style as well as in colour, as the report's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from upl_ray.report.figures import INK, LINES, MARKERS, MUTED, SERIES, shorten

PANEL_COLUMNS = 2
MOST_TICKS = 12  # values with a name on the axis; the table has all
COLORS = (*SERIES, INK, MUTED)  # of methods without labels
STYLES = (*LINES, (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
LEVEL_TEXT = 60  # letters that fit side by side below a panel


def plot_comparison(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """Accuracy against labeled images a class; methods without labels as horizontal lines; nothing published."""
    run = [r for r in records if r["accuracy"]]
    shots = sorted({r["shots"] for r in run if r["shots"] is not None})
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for i, record in enumerate(r for r in run if r["shots"] is None):
        mean = 100 * record["accuracy"]["mean"]
        axes.axhline(mean, color=COLORS[i], linestyle=STYLES[i], label=f"{record['title']}: {mean:.1f}")
    by_title: dict[str, list[dict[str, Any]]] = {}
    for record in run:
        if record["shots"] is not None:
            by_title.setdefault(record["title"], []).append(record)
    for i, (name, of_method) in enumerate(by_title.items()):
        x = [shots.index(r["shots"]) for r in of_method]
        style = {"color": SERIES[i], "marker": MARKERS[i], "linestyle": "-"}
        _error_bars(axes, x, [r["accuracy"] for r in of_method], name, style)
    axes.set_xticks(range(len(shots)), [str(s) for s in shots])
    axes.set_xlabel("labeled images a class (lines without markers: none)")
    axes.set_ylabel("accuracy on held-out images [%]")
    axes.set_title(title)
    figure.legend(loc="outside right upper", fontsize=8, handlelength=4)
    return figure


def plot_ablation(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """One panel a factor: accuracy of the ensemble, and of the pseudo-labels where the factor changes them.

    Values that have an order are joined by a line.
    """
    factors = list(dict.fromkeys(r["factor"] for r in records))
    rows = -(-len(factors) // PANEL_COLUMNS)
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, PANEL_COLUMNS, squeeze=False).flatten()
    for axes, factor in zip(panels, factors, strict=False):
        points = [r for r in records if r["factor"] == factor]
        x = list(range(len(points)))
        line = "-" if all(p["value"].replace(".", "", 1).isdigit() for p in points) else ""
        style = {"color": SERIES[0], "marker": MARKERS[0], "linestyle": line}
        _error_bars(axes, x, [p["accuracy"] for p in points], "accuracy", style)
        precision = [100 * p["precision"] for p in points if p["precision"] is not None]
        if len(precision) == len(points) and max(precision) > min(precision):
            axes.plot(x, precision, MARKERS[1] + (line and ":"), color=SERIES[1], label="pseudo-label precision")
        _name_ticks(axes, [p["value"] for p in points])
        axes.set_title(factor)
        axes.set_ylabel("[%]")
    for axes in panels[len(factors) :]:
        axes.remove()
    series: dict[str, Any] = {}  # of all panels: some have only the first of them
    for axes in figure.axes:
        series |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(series)
    figure.legend([series[n] for n in names], names, loc="outside lower center", ncols=len(names), fontsize=8)
    figure.suptitle(title)
    return figure


def _name_ticks(axes: Axes, values: Sequence[str]) -> None:
    """Values below a panel: shortened, slanted where they would touch; of very many, the first, the last and some."""
    ticks = np.linspace(0, len(values) - 1, min(len(values), MOST_TICKS)).round().astype(int).tolist()
    names = [shorten(values[i]) for i in ticks]
    slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, fontsize=8, **(slant if sum(map(len, names)) > LEVEL_TEXT else {}))


def _error_bars(
    axes: Axes, x: Sequence[float], values: Sequence[dict[str, Any]], label: str, style: dict[str, Any]
) -> None:
    means = [100 * v["mean"] for v in values]
    deviations = [100 * (v["deviation"] or 0.0) for v in values]
    axes.errorbar(x, means, yerr=deviations, capsize=3, label=label, **style)

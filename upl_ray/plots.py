"""Plots of a comparison and of an ablation, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL_COLUMNS = 2


def comparison_png(records: Sequence[dict[str, Any]], title: str) -> bytes:
    """Accuracy against labeled images a class; methods without labels as horizontal lines. No published figures."""
    run = [r for r in records if r["accuracy"]]
    shots = sorted({r["shots"] for r in run if r["shots"] is not None})
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    free = [r for r in run if r["shots"] is None]
    for i, record in enumerate(free):
        mean = 100 * record["accuracy"]["mean"]
        axes.axhline(mean, color=f"C{i}", linestyle="--", label=f"{record['title']}: {mean:.1f}")
    by_title: dict[str, list[dict[str, Any]]] = {}
    for record in run:
        if record["shots"] is not None:
            by_title.setdefault(record["title"], []).append(record)
    for i, (name, of_method) in enumerate(by_title.items()):
        x = [shots.index(r["shots"]) for r in of_method]
        _error_bars(axes, x, [r["accuracy"] for r in of_method], name, f"C{len(free) + i}")
    axes.set_xticks(range(len(shots)), [str(s) for s in shots])
    axes.set_xlabel("labeled images a class (dashed: none)")
    axes.set_ylabel("accuracy on held-out images [%]")
    axes.set_title(title)
    figure.legend(loc="outside right upper", fontsize=8)
    return _png(figure)


def ablation_png(records: Sequence[dict[str, Any]], title: str) -> bytes:
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
        line = "-" if all(p["value"].isdigit() for p in points) else ""
        _error_bars(axes, x, [p["accuracy"] for p in points], "accuracy", "C0", line)
        precision = [100 * p["precision"] for p in points if p["precision"] is not None]
        if len(precision) == len(points) and max(precision) > min(precision):
            axes.plot(x, precision, "s" + (line and ":"), color="C1", label="pseudo-label precision")
        axes.set_xticks(x, [str(p["value"]) for p in points], rotation=30 if factor == "labels" else 0, fontsize=8)
        axes.set_title(factor)
        axes.set_ylabel("[%]")
    for axes in panels[len(factors) :]:
        axes.remove()
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    return _png(figure)


def _error_bars(
    axes: Axes, x: Sequence[float], values: Sequence[dict[str, Any]], label: str, color: str, line: str = "-"
) -> None:
    means = [100 * v["mean"] for v in values]
    deviations = [100 * (v["deviation"] or 0.0) for v in values]
    axes.errorbar(x, means, yerr=deviations, marker="o", linestyle=line, capsize=3, label=label, color=color)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()

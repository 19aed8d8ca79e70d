"""The table of a comparison: accuracies over seeds, paired intervals, published figures in columns of their own (pure).

Shapes: N scored images, R runs (seeds), S members.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from upl_ray.metrics import Labels, paired_interval
from upl_ray.published import published

REFERENCES = {"zero-shot": "one template", "upl*": "UPL*"}  # what every row is compared with, and its short name
COLUMNS = ("method", "shots", "runs", "accuracy", "single prompt", "transductive")
PUBLISHED = ("published, RN50, this set", "published, RN50, mean of 11 sets")


@dataclass(frozen=True)
class Row:
    """One method; without runs it has not been run, or had nothing to learn from."""

    method: str
    title: str
    shots: int | None = None
    predicted: Sequence[Labels] = ()  # of each run [N]
    members: Sequence[Labels] = ()  # of each run [N, S], if it learns prompts
    transductive: Sequence[float] = ()  # accuracy of each run on the images that it has learned from [0-1]
    chosen: Sequence[dict[str, float]] = field(default=())  # hyper-parameters of each run


def summarize(rows: Sequence[Row], true: Labels, dataset: str, resamples: int) -> list[dict[str, Any]]:
    """Figures of every row as JSON values; accuracies and differences are shares [0-1].

    A difference is paired: on the same images, each method averaged over its runs first.
    """
    correct = {(r.method, r.shots): np.mean([p == true for p in r.predicted], axis=0) for r in rows if r.predicted}
    references = {name: correct[name, None] for name in REFERENCES if (name, None) in correct}
    records = []
    for row in rows:
        here, mean = published(dataset, row.method, row.shots)
        mine = correct.get((row.method, row.shots))
        singles = [float((labels[:, m] == true).mean()) for labels in row.members for m in range(labels.shape[1])]
        record: dict[str, Any] = {
            "method": row.method,
            "title": row.title,
            "shots": row.shots,
            "runs": len(row.predicted),
            "accuracy": spread([float((p == true).mean()) for p in row.predicted]),
            "single_prompt": spread(singles),
            "transductive": spread(row.transductive),
            "published": {"this_dataset": here, "mean_of_11": mean},
            "chosen": list(row.chosen),
        }
        record["differences"] = {
            name: difference(mine, other, resamples)
            for name, other in references.items()
            if mine is not None and name != row.method
        }
        records.append(record)
    return records


def spread(values: Sequence[float]) -> dict[str, float | None] | None:
    """Mean and sample standard deviation; None without values, no deviation of a single one."""
    if not values:
        return None
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def difference(mine: npt.NDArray[Any], other: npt.NDArray[Any], resamples: int) -> dict[str, float]:
    """How much better than the other, and the paired 95 % bootstrap interval."""
    low, high = paired_interval(mine - other, resamples)
    return {"mean": float((mine - other).mean()), "low": low, "high": high}


def cells(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The header and one line of text cells for each record; what is not known is empty. Accuracies in percent."""
    present = [name for name in REFERENCES if any(name in r["differences"] for r in records)]
    shown = [c for c in COLUMNS if c != "transductive" or any(r["transductive"] for r in records)]
    lines = [[*shown, *(f"vs {REFERENCES[name]} [95 %]" for name in present), *PUBLISHED]]
    for r in records:
        values = {
            "method": r["title"],
            "shots": "" if r["shots"] is None else str(r["shots"]),
            "runs": str(r["runs"] or ""),
            "accuracy": spread_text(r["accuracy"]),
            "single prompt": spread_text(r["single_prompt"]),
            "transductive": spread_text(r["transductive"]),
        }
        gaps = [difference_text(r["differences"].get(name)) for name in present]
        known = [r["published"]["this_dataset"], r["published"]["mean_of_11"]]
        lines.append([*(values[c] for c in shown), *gaps, *("" if p is None else f"{100 * p:.2f}" for p in known)])
    return lines


def spread_text(value: dict[str, float | None] | None) -> str:
    """`70.11 ± 0.42`, in percent; empty where nothing was run."""
    if value is None or value["mean"] is None:
        return ""
    deviation = value["deviation"]
    return f"{100 * value['mean']:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def difference_text(value: dict[str, float] | None) -> str:
    """`+1.20 [-0.31, +2.70]`, in points."""
    if value is None:
        return ""
    return f"{100 * value['mean']:+.2f} [{100 * value['low']:+.2f}, {100 * value['high']:+.2f}]"


def to_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned in plain text; the first column to the left."""
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]

    def row(line: Sequence[str]) -> str:
        padded = [x.ljust(w) if c == 0 else x.rjust(w) for c, (x, w) in enumerate(zip(line, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w) if c == 0 else f"{'-' * (w - 1)}:" for c, w in enumerate(widths)]
    return "\n".join([row(lines[0]), row(rule), *(row(line) for line in lines[1:])])


def to_csv(lines: Sequence[Sequence[str]]) -> str:
    """The same cells as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()

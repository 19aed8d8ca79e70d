"""The table of a comparison: accuracies over seeds, paired intervals, published accuracies in separate columns (pure).

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

from upl_ray.upl.metrics import Labels, paired_interval

REFERENCES = {"zero-shot": "one template", "upl*": "UPL*"}  # methods that every row is compared with, and short names
COLUMNS = ("method", "shots", "runs", "accuracy", "single prompt", "transductive")
PUBLISHED_COLUMNS = ("published, RN50, this set", "published, RN50, mean of 11 sets")

# Published accuracies [%] of RN50, to stand beside the measured ones and never among them. CLIP and UPL are from UPL's
# paper (arXiv 2204.03649). The averages at 2, 4 and 8 shots are those of CoOp (arXiv 2109.01134) and Tip-Adapter (arXiv
# 2111.03930).

# data set -> (method, shots) -> accuracy
PUBLISHED_BY_DATASET: dict[str, dict[tuple[str, int | None], float]] = {
    "caltech101": {("zero-shot", None): 86.09, ("upl", None): 89.94},
    "oxford_pets": {("zero-shot", None): 85.83, ("upl", None): 88.28},
    "ucf101": {("zero-shot", None): 62.70, ("upl", None): 67.17},
    "sun397": {("zero-shot", None): 60.18, ("upl", None): 63.98},
    "stanford_cars": {("upl", None): 62.13},
}

# (method, shots) -> average over the 11 data sets
PUBLISHED_MEANS: dict[tuple[str, int | None], float] = {
    ("upl*", None): 68.37,
    ("coop", 2): 62.21,
    ("coop", 4): 66.84,
    ("coop", 8): 70.05,
    ("tip-adapter", 2): 64.62,
    ("tip-adapter", 4): 66.54,
    ("tip-adapter", 8): 68.50,
    ("tip-adapter-f", 2): 66.65,
    ("tip-adapter-f", 4): 69.67,
    ("tip-adapter-f", 8): 72.45,
}


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
    """One record of JSON values for each row; accuracies and differences are shares [0-1].

    A difference is paired: on the same images, each method averaged over its runs first.
    """
    correct = {(r.method, r.shots): np.mean([p == true for p in r.predicted], axis=0) for r in rows if r.predicted}
    references = {name: correct[name, None] for name in REFERENCES if (name, None) in correct}
    records = []
    for row in rows:
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
            "published": published_accuracies(dataset, row.method, row.shots),
            "chosen": list(row.chosen),
        }
        record["differences"] = {
            name: difference(mine, other, resamples)
            for name, other in references.items()
            if mine is not None and name != row.method
        }
        records.append(record)
    return records


def published_accuracies(dataset: str, method: str, shots: int | None) -> dict[str, float | None]:
    """Published accuracy on this data set and average of 11 [0-1]; None where it is not known here."""
    found = {
        "this_dataset": PUBLISHED_BY_DATASET.get(dataset, {}).get((method, shots)),
        "mean_of_11": PUBLISHED_MEANS.get((method, shots)),
    }
    return {name: None if percent is None else percent / 100 for name, percent in found.items()}


def spread(values: Sequence[float]) -> dict[str, float | None] | None:
    """Mean and sample standard deviation; None without values, no deviation of a single one."""
    if not values:
        return None
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def difference(mine: npt.NDArray[Any], other: npt.NDArray[Any], resamples: int) -> dict[str, float]:
    """Mean of `mine - other` [N] and its paired 95 % bootstrap interval."""
    low, high = paired_interval(mine - other, resamples)
    return {"mean": float((mine - other).mean()), "low": low, "high": high}


def comparison_cells(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The header and one line of text cells for each record; unknown values are empty. Accuracies in percent."""
    present = [name for name in REFERENCES if any(name in r["differences"] for r in records)]
    columns = [c for c in COLUMNS if c != "transductive" or any(r["transductive"] for r in records)]
    lines = [[*columns, *(f"vs {REFERENCES[name]} [95 %]" for name in present), *PUBLISHED_COLUMNS]]
    for r in records:
        values = {
            "method": r["title"],
            "shots": "" if r["shots"] is None else str(r["shots"]),
            "runs": str(r["runs"] or ""),
            "accuracy": spread_text(r["accuracy"]),
            "single prompt": spread_text(r["single_prompt"]),
            "transductive": spread_text(r["transductive"]),
        }
        differences = [difference_text(r["differences"].get(name)) for name in present]
        published = [r["published"]["this_dataset"], r["published"]["mean_of_11"]]
        percents = ["" if p is None else f"{100 * p:.2f}" for p in published]
        lines.append([*(values[c] for c in columns), *differences, *percents])
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

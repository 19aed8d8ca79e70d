"""What is known of a run, gathered from its storage as plain data for figures, tables and the page.

Shapes: C classes, S members, E epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from upl_ray.metrics import paired_difference, wilson
from upl_ray.report.analysis import analyse
from upl_ray.report.charts import Estimate
from upl_ray.report.finished import FinishedRun, Variant, word_artifact


@dataclass(frozen=True)
class Findings:
    """What is known of one variant."""

    variant: Variant
    parts: dict[str, Any]  # `corpus`, `scored`: results of `tally.Tally`
    selected: list[dict[str, Any]]  # rows of `schema.SELECTED`
    confusion: list[tuple[int, int, int]]  # of the judged part: true class, what the ensemble says, images
    losses: npt.NDArray[np.float64]  # [S, E]
    words: dict[str, Any]  # manifest of the nearest words; empty if nobody looked for them
    scores: dict[str, Any]  # the variant's part of run.json

    @property
    def title(self) -> str:
        """UPL or UPL*."""
        return self.variant.title

    @property
    def slug(self) -> str:
        """The variant's name in file names and ids."""
        return self.variant.slug

    @property
    def corpus(self) -> dict[str, Any]:
        """The numbers of the corpus."""
        return dict(self.parts["corpus"])

    @property
    def judged_part(self) -> str | None:
        """The images that accuracies are best told on: held-out ones, or else the corpus; None without labels."""
        return judged_part(self.parts)

    @property
    def shown_part(self) -> str:
        """The judged images, or without labels the corpus."""
        return self.judged_part or "corpus"


def gather(run: FinishedRun) -> list[Findings]:
    """Everything about each variant of a run, the exported one first."""
    found, recipe = [], run.config["train"]
    for variant in run.variants:
        parts, selected, confusion = analyse(run, variant)
        history = variant.members.read_table("history.parquet")
        losses = history.sort_by([("member", "ascending"), ("epoch", "ascending")])["loss"].to_numpy()
        found.append(
            Findings(
                variant,
                parts,
                selected.to_pylist(),
                _pairs(confusion, judged_part(parts)),
                losses.astype(np.float64).reshape(-1, recipe["epochs"])[: recipe["members"]],
                word_artifact(variant.classifier).manifest() or {},
                run.summary["scores"][variant.name],
            )
        )
    return found


def judged_part(parts: dict[str, Any]) -> str | None:
    """See `Findings.judged_part`."""
    return next((p for p in ("scored", "corpus") if p in parts and parts[p]["labeled"]), None)


def _pairs(confusion: pa.Table, part: str | None) -> list[tuple[int, int, int]]:
    """Rows of `schema.CONFUSION` of one part."""
    rows = confusion.filter(pc.field("part") == part) if part else confusion.slice(0, 0)
    columns = (rows[name].to_pylist() for name in ("true", "predicted", "images"))
    return list(zip(*columns, strict=True))


def estimate(label: str, right: int, n: int) -> Estimate:
    """A share with its 95 % interval."""
    low, high = wilson(right, n)
    return Estimate(label, right / n, low, high)


def accuracies(found: list[Findings], part: str) -> list[Estimate]:
    """Zero-shot accuracy of each labeler and of all fused, and of each variant's members (mean) and ensemble."""
    widest = max(found, key=lambda f: len(f.variant.labelers))
    numbers, n = widest.parts[part], widest.parts[part]["labeled"]
    rows = [
        estimate(f"zero-shot, {name}", sum(numbers["right"][f"labeler {name}"]), n) for name in widest.variant.labelers
    ]
    if len(rows) > 1:
        rows.append(estimate("zero-shot, all fused", sum(numbers["right"]["fused"]), n))
    for f in found:
        members = [right / n for right in f.parts[part]["members_right"]]
        rows.append(Estimate(f"{f.title}, members (range)", float(np.mean(members)), min(members), max(members)))
        rows.append(estimate(f"{f.title}, ensemble", sum(f.parts[part]["right"]["ensemble"]), n))
    return rows


def agreements(found: list[Findings], part: str) -> list[Estimate]:
    """What can be said without labels: how often models agree with each other. None of it is an accuracy."""
    widest = max(found, key=lambda f: len(f.variant.labelers))
    numbers, n = widest.parts[part], widest.parts[part]["images"]
    pairs = numbers["pairs_agree"]
    rows = []
    if len(widest.variant.labelers) > 1:
        rows = [estimate(f"{name} with all fused", pairs[i][-1], n) for i, name in enumerate(widest.variant.labelers)]
    for f in found:
        members = [agree / n for agree in f.parts[part]["members_agree"]]
        title = f"{f.title}, members (range)"
        rows.append(Estimate(title, float(np.mean(members)), min(members), max(members)))
        rows.append(estimate(f"{f.title}, unchanged label", n - f.parts[part]["change"]["changed"], n))
    return rows


def gain(f: Findings, part: str) -> tuple[float, float, float]:
    """The ensemble's accuracy less the target's zero-shot, on the same images, with its 95 % interval [-1, 1]."""
    change, n = f.parts[part]["change"], f.parts[part]["labeled"]
    low, high = paired_difference(change["corrected"], change["broken"], n)
    return (change["corrected"] - change["broken"]) / n, low, high


def zero_shot_accuracy(f: Findings, part: str) -> float:
    """Accuracy of the target's own zero-shot prompt [0-1]."""
    change, n = f.parts[part]["change"], int(f.parts[part]["labeled"])
    return float(sum(f.parts[part]["right"]["ensemble"]) - change["corrected"] + change["broken"]) / n


def mean_confidence(f: Findings, part: str, who: str) -> float:
    """Mean confidence of `fused`, `ensemble` or `target`, the target's own zero-shot [0-1]."""
    images, confidence, _ = np.array(f.parts[part]["bins"][who]).sum(axis=0)
    return float(confidence / max(images, 1))

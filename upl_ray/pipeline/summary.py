"""The results of a run: a table that a person reads on a terminal, and one line that a program reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from upl_ray.errors import Damaged
from upl_ray.storage.store import Store
from upl_ray.upl.verdict import describe

DETAILS = ("scores", "classifiers", "sources", "folders", "steps", "config")  # of run.json, too long for one line
NAMES = {"upl*": "UPL*", "upl": "UPL", "refined": "Refined"}


def results_table(summary: dict[str, Any]) -> str:
    """Zero-shot, pseudo-labels and learned prompts of every variant, one line each; accuracies where labels exist."""
    variants: dict[str, Any] = summary["scores"]
    parts = list(next(iter(variants.values()))["predictions"])
    labeled = any(s["zero_shot"][p]["accuracy"] for s in variants.values() for p in parts)
    lines = _accuracies(variants, parts) if labeled else ["no labels were given: no accuracies"]
    lines += ["", _row("pseudo-labels", "precision", "images", "fewest/class", "most/class", "starved")]
    for variant, scores in variants.items():
        chosen, threshold = scores["selection"], scores["zero_shot"]["corpus"]["threshold"]
        how = "sample" if variant == "refined" else "top-K"
        lines.append(_labels_row(f"{NAMES[variant]}, {how}", chosen["precision"], chosen["images_per_class"]))
        title = f"{NAMES[variant]}, confidence >= {threshold['confidence']}"
        lines.append(_labels_row(title, threshold["precision"], threshold["images_per_class"]))
    for variant, scores in variants.items():
        each = next(scores["predictions"][p]["accuracy"] or {} for p in parts[-1:])
        values = " ".join(f"{100 * each[m]:.1f}" for m in sorted(each) if m != "ensemble")
        if values:
            lines += ["", f"{NAMES[variant]}, each member on {parts[-1]} [%]: {values}"]
    return "\n".join([*lines, "", *_verdicts(summary)])


def _verdicts(summary: dict[str, Any]) -> list[str]:
    """The verdicts in sentences, with the true gain where it is known, and the classes that are not there."""
    lines = [f"better than the template of {summary['target']}? judged on the corpus, without labels"]
    for variant, found in summary["verdict"].items():
        for what in ("labels", "classifier"):
            if found[what]:
                truth = found[what]["truth"]
                beside = "" if truth is None else f"  [true: {100 * truth:+.1f}]"
                lines.append(f"{NAMES[variant] + ', ' + what:<32}{describe(found[what])}{beside}")
    if summary["absent_classes"]:
        names = ", ".join(summary["absent_classes"][:10])
        lines.append(f"No image looks like {len(summary['absent_classes'])} class(es), so what is said of them is")
        lines[-1] += f" untested: {names}"
    return lines


def with_truth(verdicts: dict[str, dict[str, Any]], scores: dict[str, Any], target: str) -> dict[str, dict[str, Any]]:
    """Verdicts with, as `truth`, what true labels of the corpus say: the gain in accuracy [-1, 1]; None without."""
    verdicts_with_truth = {}
    for variant, found in verdicts.items():
        zero_shot = scores[variant]["zero_shot"]["corpus"]["accuracy"]
        learned = scores[variant]["predictions"]["corpus"]["accuracy"]
        of = {"labels": (zero_shot or {}).get("fused"), "classifier": (learned or {}).get("ensemble")}
        verdicts_with_truth[variant] = {
            what: found[what] and {**found[what], "truth": of[what] - zero_shot[target] if zero_shot else None}
            for what in ("labels", "classifier")
        }
    return verdicts_with_truth


def _accuracies(variants: dict[str, Any], parts: list[str]) -> list[str]:
    lines = [_row("", *(f"on {p}" for p in parts))]
    name = max(variants, key=lambda v: (len(variants[v]["labelers"]), v != "refined"))  # with every other's labelers
    widest = variants[name]
    accuracies = [widest["zero_shot"][p]["accuracy"] or {} for p in parts]
    for labeler in widest["labelers"]:
        lines.append(_row(f"zero-shot, {labeler}", *(_percent(a.get(labeler)) for a in accuracies)))
    if len(widest["labelers"]) > 1 and name != "refined":
        lines.append(_row("zero-shot, all fused", *(_percent(a.get("fused")) for a in accuracies)))
    for variant, scores in variants.items():
        if variant == "refined":
            accuracies = [scores["zero_shot"][p]["accuracy"] or {} for p in parts]
            lines.append(_row("Refined labels", *(_percent(a.get("fused")) for a in accuracies)))
        accuracies = [scores["predictions"][p]["accuracy"] or {} for p in parts]
        members = [[a[m] for m in sorted(a) if m != "ensemble"] for a in accuracies]
        lines.append(_row(f"{NAMES[variant]}, members", *(_spread(m) for m in members)))
        lines.append(_row(f"{NAMES[variant]}, ensemble", *(_percent(a.get("ensemble")) for a in accuracies)))
        if variant == "refined":
            even = (scores["predictions"][p]["accuracy_even"] for p in parts)
            lines.append(_row("Refined, classes even", *map(_percent, even)))
    for part in parts:
        judged, images = (widest["predictions"][part][key] for key in ("labeled", "images"))
        if 0 < judged < images:
            lines.append(f"on {part}: {judged} of {images} images count: with a class as label, not corrected")
    return lines


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without its details: status, places, counts, and accuracies of the last labeled image set [0-1]."""
    accuracies: dict[str, float] = {}
    for variant, scores in summary["scores"].items():
        labeled = [p for p, s in scores["predictions"].items() if s["accuracy"]]
        if labeled:
            zero_shot, learned = scores["zero_shot"][labeled[-1]], scores["predictions"][labeled[-1]]
            accuracies["zero_shot"] = zero_shot["accuracy"][summary["target"]]
            labels = "refined labels" if variant == "refined" else f"{variant} zero_shot fused"
            accuracies[labels] = zero_shot["accuracy"]["fused"]
            accuracies[f"{variant} ensemble"] = learned["accuracy"]["ensemble"]
            if variant == "refined":
                accuracies["refined classes even"] = learned["accuracy_even"]
    return {k: v for k, v in summary.items() if k not in DETAILS} | {"accuracy": accuracies or None}


def earlier_seconds(store: Store) -> dict[str, float]:
    """How long steps took in earlier runs into this storage: what is there already keeps its time [s]."""
    try:
        return dict(store.read_json("run.json").get("steps", {}))
    except (FileNotFoundError, Damaged):  # the first run, or a file that was cut: this run writes it again
        return {}


def _row(title: str, *cells: str) -> str:
    return f"{title:<32}" + "".join(f"{c:>22}" if len(cells) < 4 else f"{c:>14}" for c in cells)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{100 * np.mean(values):.2f} % ({100 * min(values):.1f}-{100 * max(values):.1f})"


def _labels_row(title: str, precision: float | None, counts: list[int]) -> str:
    starved = sum(1 for c in counts if c == 0)
    return _row(title, _percent(precision), str(sum(counts)), str(min(counts)), str(max(counts)), str(starved))

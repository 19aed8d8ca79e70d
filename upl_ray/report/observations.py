"""The paper's three observations on the user's own images: bias, confidence, balance.

Shapes: C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from upl_ray.report import charts
from upl_ray.report.exhibit import Exhibit, share
from upl_ray.report.findings import Findings

COLUMNS = 24  # classes of a heat map


def class_bias(found: list[Findings], names: tuple[str, ...]) -> Exhibit:
    """How many images each model gives to each class, against the truth or against the mean of the models."""
    widest = max(found, key=lambda f: len(f.variant.labelers))
    numbers = widest.corpus
    labeled = numbers["labeled"] > 0
    counts, n = (numbers["known"], numbers["labeled"]) if labeled else (numbers["predicted"], numbers["images"])
    shares = {name: np.array(counts[f"labeler {name}"]) / n for name in widest.variant.labelers}
    reference = np.array(numbers["true"]) / n if labeled else np.mean(list(shares.values()), axis=0)
    if len(shares) > 1:
        shares["all fused"] = np.array(counts["fused"]) / n
    for f in found:
        shares[f"{f.title}, ensemble"] = np.array(f.corpus["known" if labeled else "predicted"]["ensemble"]) / n
    bias = np.stack(list(shares.values())) - reference  # [models, C]
    shown = np.sort(np.argsort(-np.abs(bias).max(axis=0), kind="stable")[:COLUMNS])
    against = "true share" if labeled else "mean of the backbones"
    some = f" The {COLUMNS} most biased of {len(names)} classes." if len(names) > COLUMNS else ""
    figure = charts.heat(
        bias[:, shown], list(shares), [names[c] for c in shown], f"share of images less {against} [points]", True
    )
    rows = [[names[c], float(reference[c]), *(float(s[c]) for s in shares.values())] for c in range(len(names))]
    caption = (
        "How much more (orange) or less (purple) often each model names a class than "
        + ("the class occurs. " if labeled else "the backbones do on average; the truth is unknown. ")
        + "Look for columns in which backbones differ in sign: their errors cancel when they are fused (the paper's "
        + f"figure 5).{some}"
    )
    return Exhibit("class-bias", "Class bias of each model", caption, figure, ["class", against, *shares], rows)


def labeler_agreement(found: list[Findings]) -> Exhibit | None:
    """How often any two backbones say the same; None with one backbone."""
    widest = max(found, key=lambda f: len(f.variant.labelers))
    names = [*widest.variant.labelers, "all fused"]
    if len(names) == 2:
        return None
    shares = np.array(widest.corpus["pairs_agree"]) / max(widest.corpus["images"], 1)
    figure = charts.heat(shares, names, names, "share of images with the same label", False)
    caption = (
        "Look for a backbone that agrees with none: it is either the only one that is right, or the odd one out. "
        "Agreement is no accuracy."
    )
    rows = [[names[i], *map(float, shares[i])] for i in range(len(names))]
    return Exhibit("agreement-of-backbones", "Agreement of backbones", caption, figure, ["backbone", *names], rows)


def confidence_accuracy(f: Findings, names: tuple[str, ...]) -> Exhibit:
    """Mean confidence of each class' pseudo-labels against their accuracy (labeled images), or how stable they are."""
    numbers = f.corpus
    images, known = np.array(numbers["predicted"]["fused"]), np.array(numbers["known"]["fused"])
    if numbers["labeled"]:  # confidence and accuracy of the same images
        x = _ratio(numbers["class_confidence_labeled"], known)
        y = _ratio(numbers["right"]["fused"], known)
        ylabel, what = "accuracy of its pseudo-labels", "accuracy"
        caption = (
            "One point a class. If confidence said how right a class is, all would lie on the dashed line. Look for "
            "classes far below it: a threshold on confidence would let their wrong labels in (the paper's figure 4)."
        )
    else:
        x = _ratio(numbers["class_confidence"], images)
        y = _ratio(numbers["class_kept"], images)
        ylabel, what = "kept by the ensemble", "kept"
        caption = (
            "One point a class; no labels, so no accuracy. Look for classes of high confidence whose images the "
            "ensemble moves elsewhere: confidence and stability disagree there."
        )
    figure = charts.cloud(x, y, names, "mean confidence of a class", ylabel)
    rows = [[n, *map(int, (images[c], known[c])), _number(x[c]), _number(y[c])] for c, n in enumerate(names)]
    title = f"{f.title}: confidence and {'accuracy' if numbers['labeled'] else 'stability'} of pseudo-labels"
    header = ["class", "images", "labeled", "confidence", what]
    return Exhibit(f"confidence-{f.slug}", title, caption, figure, header, rows)


def imbalance(f: Findings, names: tuple[str, ...], top_k: int) -> Exhibit:
    """Images that a threshold selects of each class, against the top-K."""
    threshold = f.scores["zero_shot"]["corpus"]["threshold"]
    chosen, above = f.scores["selection"]["images_per_class"], threshold["images_per_class"]
    series = {f"confidence ≥ {threshold['confidence']}": above, f"top {top_k}": chosen}
    figure = charts.images_per_class(series, names, "images selected")
    precision = [threshold["precision"], f.scores["selection"]["precision"]]
    right = ""
    if None not in precision:
        right = f" Right are {share(precision[0])} above the threshold and {share(precision[1])} of the top {top_k}."
    caption = (
        f"Look for the slope: a threshold selects {max(above):,} images of one class and {min(above):,} of another, "
        f"top-K never more than {top_k} (the paper's figure 3).{right}"
    )
    rows = [[names[c], above[c], chosen[c]] for c in range(len(names))]
    title = f"{f.title}: balance of the selection"
    return Exhibit(f"imbalance-{f.slug}", title, caption, figure, ["class", *series], rows)


def _ratio(sums: list[float], n: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """A mean of each class [C]; NaN where there is no image."""
    return np.where(n > 0, np.array(sums) / np.maximum(n, 1), np.nan)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

"""Every figure of the page with its caption and the table behind it, in the order of the page.

First the results, then the paper's three observations on these images (bias, confidence, balance), the members, the
changes and the calibration. How each chart is drawn is in `figures.py`.

Shapes: C classes, S members.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from upl_ray.report import figures
from upl_ray.report.findings import (
    NAMES_OF_PARTS,
    Estimate,
    Findings,
    accuracies,
    agreements,
    describe_part,
    estimate,
    mean_per_class,
    name_of_labels,
    share,
    widest_of,
    zero_shot_accuracy,
)
from upl_ray.upl.agreement import estimated_accuracies
from upl_ray.upl.known import share_edges
from upl_ray.upl.metrics import calibration_error

HEAT_COLUMNS = 24  # classes of a heat map
MATRIX = 20  # classes up to which all pairs are drawn
BARS = 14  # most frequent pairs that are drawn
MISTAKES = 200  # rows of the figure's table; `confusion-matrix-*` has all


@dataclass(frozen=True)
class Exhibit:
    """A figure that explains itself."""

    name: str  # unique; its files are called so, too
    title: str
    caption: str  # how to read it
    figure: Figure
    header: list[str]
    rows: list[list[Any]]


def all_exhibits(found: list[Findings], names: tuple[str, ...], top_k: int) -> Iterator[tuple[str, Exhibit]]:
    """Every figure with its section of the page."""
    yield "verdict", results(found)
    yield "observations", class_bias(found, names)
    for exhibit in (labeler_agreement(found), labeler_accuracy(found, len(names))):
        if exhibit:
            yield "observations", exhibit
    for f in found:
        yield "observations", confidence_accuracy(f, names)
    for f in found:
        yield "observations", imbalance(f, names, top_k)
    yield from (("observations", e) for e in [known(found[0])] if e)
    yield from (("members", e) for e in (training(found), members(found), ensemble_gain(found)) if e)
    for f in found:
        yield from (("changes", e) for e in (changes(f, names), confusion(f, names)) if e)
    yield from (("calibration", calibration(f)) for f in found)


def results(found: list[Findings]) -> Exhibit:
    """The verdict as a figure: accuracies, or without labels agreements."""
    parts = [p for p, numbers in found[0].parts.items() if numbers["labeled"]]
    if parts:
        groups = {NAMES_OF_PARTS[p]: accuracies(found, p) for p in parts}
        title, name, xlabel = "Accuracy", "accuracy", "accuracy"
        caption = (
            "Look for the distance between the target's zero-shot prompt and the ensemble, and whether it is "
            "larger than the bars: 95 % intervals (Wilson) for the choice of images; for members, the range."
        )
    else:
        groups = {NAMES_OF_PARTS[p]: agreements(found, p) for p in found[0].parts}
        title, name, xlabel = "Agreement (no accuracy)", "agreement", "share of images with the same label"
        caption = (
            "There are no labels, so this is not accuracy: models can agree and be wrong together. Backbones are "
            "compared with all fused, members with their ensemble, the ensemble with zero-shot. Look for a "
            "backbone that agrees much less than the others, and for how much learning changed. Bars: 95 % "
            "intervals (Wilson); for members, the range."
        )
    rows = [[g, e.label, e.value, e.low, e.high] for g, of in groups.items() for e in of]
    header = ["images", "what", "share", "low", "high"]
    return Exhibit(name, title, caption, figures.estimates(groups, xlabel), header, rows)


def class_bias(found: list[Findings], names: tuple[str, ...]) -> Exhibit:
    """Share of images that each model gives to each class, less the true share or the backbones' mean."""
    widest = widest_of(found)
    numbers = widest.corpus
    labeled = numbers["labeled"] > 0
    counts, n = (numbers["known"], numbers["labeled"]) if labeled else (numbers["predicted"], numbers["images"])
    shares = {name: np.array(counts[f"labeler {name}"]) / n for name in widest.variant.labelers}
    reference = np.array(numbers["true"]) / n if labeled else np.mean(list(shares.values()), axis=0)
    if len(shares) > 1 and not widest.refined:
        shares["all fused"] = np.array(counts["fused"]) / n
    for f in found:
        own = f.corpus["known" if labeled else "predicted"]
        if f.refined:
            shares[f"{f.title} labels"] = np.array(own["fused"]) / n
        shares[f"{f.title}, ensemble"] = np.array(own["ensemble"]) / n
    bias = np.stack(list(shares.values())) - reference  # [models, C]
    shown = np.sort(np.argsort(-np.abs(bias).max(axis=0), kind="stable")[:HEAT_COLUMNS])
    against = "true share" if labeled else "mean of the backbones"
    some = f" The {HEAT_COLUMNS} most biased of {len(names)} classes." if len(names) > HEAT_COLUMNS else ""
    figure = figures.heat(
        bias[:, shown], list(shares), [names[c] for c in shown], f"share of images less {against} [points]", True
    )
    rows = [[names[c], float(reference[c]), *(float(s[c]) for s in shares.values())] for c in range(len(names))]
    caption = (
        "How much more (orange) or less (purple) often each model predicts a class than "
        + ("the class occurs. " if labeled else "the backbones do on average; the true share is unknown. ")
        + "Look for columns in which backbones differ in sign: their errors cancel when they are fused (the paper's "
        + f"figure 5).{some}"
    )
    return Exhibit("class-bias", "Class bias of each model", caption, figure, ["class", against, *shares], rows)


def labeler_agreement(found: list[Findings]) -> Exhibit | None:
    """How often any two backbones give the same label; None with one backbone."""
    widest = widest_of(found)
    names = [*widest.variant.labelers, "refined labels" if widest.refined else "all fused"]
    if len(names) == 2:
        return None
    shares = np.array(widest.corpus["pairs_agree"]) / max(widest.corpus["images"], 1)
    figure = figures.heat(shares, names, names, "share of images with the same label", False)
    caption = (
        "Look for a backbone that agrees with none: it is either the only one that is right, or the odd one out. "
        "Agreement is no accuracy."
    )
    rows = [[names[i], *map(float, shares[i])] for i in range(len(names))]
    return Exhibit("agreement-of-backbones", "Agreement of backbones", caption, figure, ["backbone", *names], rows)


def labeler_accuracy(found: list[Findings], n_classes: int) -> Exhibit | None:
    """Accuracy of each backbone, estimated from how often they agree; None where that does not tell it."""
    widest = widest_of(found)
    labelers, numbers = widest.variant.labelers, widest.corpus
    if n_classes < 2 or not numbers["images"]:
        return None
    agreement = np.array(numbers["pairs_agree"])[: len(labelers), : len(labelers)] / numbers["images"]
    guesses = estimated_accuracies(agreement, n_classes)
    if guesses is None:
        return None
    groups = {"estimated": [Estimate(name, p, p, p) for name, p in zip(labelers, guesses, strict=True)]}
    n = numbers["labeled"]
    if n:
        groups["true"] = [estimate(name, sum(numbers["right"][f"labeler {name}"]), n) for name in labelers]
    caption = (
        "Estimated without labels, from how often the backbones agree, as if each erred by itself. Those that err "
        "together agree when they are wrong, and all of them look better than they are. Look for the order of the "
        "backbones, and for one that is far below the others."
    )
    truth: list[float | None] = [e.value for e in groups["true"]] if n else [None] * len(labelers)
    rows = [list(row) for row in zip(labelers, guesses, truth, strict=True)]
    figure = figures.estimates(groups, "accuracy on the corpus")
    title = "Estimated accuracy of backbones, without labels"
    return Exhibit("estimated-accuracy", title, caption, figure, ["backbone", "estimated", "true"], rows)


def confidence_accuracy(f: Findings, names: tuple[str, ...]) -> Exhibit:
    """Mean confidence of each class' pseudo-labels against their accuracy, or without labels their stability."""
    numbers = f.corpus
    images, known = np.array(numbers["predicted"]["fused"]), np.array(numbers["known"]["fused"])
    if numbers["labeled"]:  # confidence and accuracy of the same images
        x = _ratio(numbers["class_confidence_labeled"], known)
        y = _ratio(numbers["right"]["fused"], known)
        ylabel, what = "accuracy of its pseudo-labels", "accuracy"
        caption = (
            "One point for each class. If confidence equalled accuracy, all would lie on the dashed line. Look for "
            "classes far below it: a threshold on confidence would let their wrong labels in (the paper's figure 4)."
        )
    else:
        x = _ratio(numbers["class_confidence"], images)
        y = _ratio(numbers["class_kept"], images)
        ylabel, what = "kept by the ensemble", "kept"
        caption = (
            "One point for each class; no labels, so no accuracy. Look for classes of high confidence whose images "
            "the ensemble gives to other classes: confidence and stability disagree there."
        )
    figure = figures.cloud(x, y, names, "mean confidence of a class", ylabel)
    rows = [[n, *map(int, (images[c], known[c])), _number(x[c]), _number(y[c])] for c, n in enumerate(names)]
    title = f"{f.title}: confidence and {'accuracy' if numbers['labeled'] else 'stability'} of pseudo-labels"
    header = ["class", "images", "labeled", "confidence", what]
    return Exhibit(f"confidence-{f.slug}", title, caption, figure, header, rows)


def imbalance(f: Findings, names: tuple[str, ...], top_k: int) -> Exhibit:
    """Images of each class that a threshold selects, beside the top-K or the uniform sample."""
    threshold = f.scores["zero_shot"]["corpus"]["threshold"]
    chosen, above = f.scores["selection"]["images_per_class"], threshold["images_per_class"]
    rule = "uniform sample" if f.refined else f"top {top_k}"
    series = {f"confidence ≥ {threshold['confidence']}": above, rule: chosen}
    figure = figures.images_per_class(series, names, "images selected")
    precision = [threshold["precision"], f.scores["selection"]["precision"]]
    right = ""
    if None not in precision:
        right = f" Right are {share(precision[0])} above the threshold and {share(precision[1])} of the {rule}."
    caption = (
        f"Look for the slope: a threshold selects {max(above):,} images of one class and {min(above):,} of another, "
    )
    if f.refined:
        caption += (
            f"the sample {max(chosen):,} and {min(chosen):,}, by their most probable class: it is uniform over the "
            f"corpus, {mean_per_class(f):.0f} a class on average, and as uneven as these labels are.{right}"
        )
    else:
        caption += f"top-K at most {top_k} of each (the paper's figure 3).{right}"
    rows = [[names[c], above[c], chosen[c]] for c in range(len(names))]
    title = f"{f.title}: balance of the selection"
    return Exhibit(f"imbalance-{f.slug}", title, caption, figure, ["class", *series], rows)


def known(f: Findings) -> Exhibit | None:
    """How far the images show one of the classes at all; None where no words compete."""
    scores, counts = (f.scores.get("known") or {}).get("corpus"), f.corpus.get("known_bins", [])
    if not scores:
        return None
    edges, threshold = share_edges(), scores["min_known"]
    figure = figures.known_shares(counts, edges, threshold)
    caption = (
        "The share of probability that stays on the classes while other words compete. Look for a hill on the left: "
        "images of something else. Which value sets them apart differs with the model and the words."
    )
    if threshold:
        caption += f" {scores['below']:,} images are left of label.min_known, {threshold:g}, and selected for no class."
    rows = [[low, high, n] for low, high, n in zip(edges.tolist(), edges[1:].tolist(), counts, strict=False)]
    return Exhibit("known", "Known images", caption, figure, ["from", "to", "images"], rows)


def training(found: list[Findings]) -> Exhibit:
    """Loss curves of all members."""
    figure = figures.losses({f.title: f.losses for f in found})
    rows = [
        [f.title, m, e + 1, float(loss)] for f in found for m, of in enumerate(f.losses) for e, loss in enumerate(of)
    ]
    caption = (
        "Cross-entropy against the pseudo-labels: thin lines are members, the thick one their mean. Look for a member "
        "whose loss does not fall as the others'. A low loss means that pseudo-labels are reproduced, right or wrong."
    ) + (" Refined labels are soft, so that their loss ends above zero." if any(f.refined for f in found) else "")
    return Exhibit("losses", "Training loss", caption, figure, ["variant", "member", "epoch", "loss"], rows)


def members(found: list[Findings]) -> Exhibit:
    """Accuracy of each member beside the ensemble's; without labels, agreement with the ensemble."""
    part, judged = found[0].shown_part, found[0].judged_part is not None
    spread, rows = {}, []
    for f in found:
        numbers = f.parts[part]
        n = max(numbers["labeled" if judged else "images"], 1)
        shares = np.array(numbers["members_right" if judged else "members_agree"]) / n
        spread[f.title] = (shares, sum(numbers["right"]["ensemble"]) / n if judged else float("nan"))
        rows += [[f.title, m, float(s)] for m, s in enumerate(shares)]
    what = "accuracy" if judged else "agreement with the ensemble"
    reference = zero_shot_accuracy(found[0], part) if judged else None
    figure = figures.member_spread(spread, f"{what}, {NAMES_OF_PARTS[part]}", reference)
    caption = "Each dot is a member, the same recipe from another random start. " + (
        "Look for how much luck a single prompt would need: the ensemble should lie among the better members or beyond."
        if judged
        else "Look for stragglers. Agreement is no accuracy."
    )
    return Exhibit("members", "Spread of the members", caption, figure, ["variant", "member", what], rows)


def ensemble_gain(found: list[Findings]) -> Exhibit | None:
    """Majority votes of the first 1 to S members; None if the random sample holds no image."""
    part, judged = found[0].shown_part, found[0].judged_part is not None
    curves, rows, images = {}, [], found[0].parts[part]["votes"]["images"]
    if not images:
        return None
    for f in found:
        counts = f.parts[part]["votes"]
        values = np.array(counts["right"]) / images  # [orders, S]
        curves[f.title] = (values, counts["ensemble"] / images if judged else float("nan"))
        rows += [[f.title, n + 1, float(c.mean()), float(c.min()), float(c.max())] for n, c in enumerate(values.T)]
    what = "accuracy" if judged else "agreement with the ensemble"
    caption = (
        f"Majority votes of the first members in {len(next(iter(curves.values()))[0])} random orders, on {images:,} "
        "images: mean and range. Look for where the curve is flat: more members than that gain nothing."
    ) + (" The dashed line averages probabilities instead of votes, as the classifier does." if judged else "")
    header = ["variant", "members", "mean", "lowest", "highest"]
    figure = figures.votes(curves, f"{what}, {NAMES_OF_PARTS[part]}")
    return Exhibit("ensemble-gain", "Gain from more members", caption, figure, header, rows)


def confusion(f: Findings, names: tuple[str, ...]) -> Exhibit | None:
    """True against predicted classes of the ensemble; None without labels."""
    part = f.judged_part
    if part is None:
        return None
    mistakes = sorted((-n, a, b) for a, b, n in f.confusion if a != b)[:MISTAKES]
    rows: list[list[Any]] = [[names[a], names[b], -n] for n, a, b in mistakes]
    if len(names) <= MATRIX:
        table = np.zeros((len(names), len(names)))
        for a, b, n in f.confusion:
            table[a, b] = n
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        unit = "share of the images of a class (rows: true, columns: predicted)"
        figure = figures.heat(shares, names, names, unit, False)
        caption = "Look for bright squares beside the diagonal: pairs that the ensemble mixes up."
    else:
        figure = figures.pairs([(f"{a} → {b}", n) for a, b, n in rows[:BARS]], "images")
        caption = f"The {min(BARS, len(rows))} most frequent mistakes: true class → predicted class."
    caption += f" On {describe_part(part, f.parts[part]['labeled'])}."
    title = f"{f.title}: mistakes of the ensemble"
    return Exhibit(f"confusion-{f.slug}", title, caption, figure, ["true", "predicted", "images"], rows)


def changes(f: Findings, names: tuple[str, ...]) -> Exhibit | None:
    """The most frequent changes of labels; None if there are none, or too many classes to count pairs."""
    moves = f.corpus["moves"]
    if not moves:
        return None
    rows = [[names[a], names[b], n] for a, b, n in moves]
    figure = figures.pairs([(f"{a} → {b}", n) for a, b, n in rows[:BARS]], "images of the corpus")
    caption = (
        "From the target's zero-shot label to the ensemble's. Look for changes in one direction only: classes that "
        "zero-shot predicts too often lose images to those that it overlooks."
    )
    title = f"{f.title}: changed labels"
    return Exhibit(f"changes-{f.slug}", title, caption, figure, ["zero-shot", "ensemble", "images"], rows)


def calibration(f: Findings) -> Exhibit:
    """Reliability of confidences where labels exist, else their distribution."""
    part = f.judged_part
    field = "bins_labeled" if part else "bins"
    labels = name_of_labels(f)
    tables = {
        label: np.array(f.parts[f.shown_part][field][who])
        for label, who in (("ensemble", "ensemble"), (labels, "fused"))
    }
    rows = []
    for label, bins in tables.items():
        n, confidence, right = bins.T
        means = zip(n, _ratio(confidence, n), _ratio(right, n), strict=True)
        rows += [
            [label, i / len(bins), (i + 1) / len(bins), int(images), _number(x), _number(y) if part else None]
            for i, (images, x, y) in enumerate(means)
        ]
    name, header = f"calibration-{f.slug}", ["model", "from", "to", "images", "mean confidence", "accuracy"]
    if part is None:
        caption = "How sure the models are; without labels it is unknown how often they are right."
        return Exhibit(name, f"{f.title}: confidence", caption, figures.confidences(tables), header, rows)
    errors = {label: calibration_error(bins) for label, bins in tables.items()}
    caption = (
        "Points below the dashed line are overconfident, those above underconfident. Expected "
        f"calibration error (15 bins): ensemble {100 * errors['ensemble']:.1f} points, {labels} "
        f"{100 * errors[labels]:.1f}. Below: the share of images in each bin. On "
        f"{describe_part(part, f.parts[part]['labeled'])}."
    )
    return Exhibit(name, f"{f.title}: calibration", caption, figures.reliability(tables), header, rows)


def _ratio(sums: npt.ArrayLike, n: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean of each class or bin; NaN where there is no image."""
    return np.where(n > 0, np.array(sums) / np.maximum(n, 1), np.nan)


def _number(value: float) -> float | None:
    """The value for a table; None for NaN."""
    return float(value) if np.isfinite(value) else None

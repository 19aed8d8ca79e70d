"""What came out: results, members, changes, mistakes, calibration."""

from __future__ import annotations

import numpy as np

from upl_ray.metrics import calibration_error
from upl_ray.report import charts
from upl_ray.report.exhibit import NAMES_OF_PARTS, Exhibit, Row, of_part
from upl_ray.report.findings import Findings, accuracies, agreements, zero_shot_accuracy

MATRIX = 20  # classes up to which all pairs are drawn
BARS = 14  # most frequent pairs that are drawn
MISTAKES = 200  # that stand in the figure's table; all lie in a table of their own


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
            "held against all fused, members against their ensemble, the ensemble against zero-shot. Look for a "
            "backbone that agrees much less than the others, and for how much learning changed. Bars: 95 % "
            "intervals (Wilson); for members, the range."
        )
    rows = [[g, e.label, e.value, e.low, e.high] for g, of in groups.items() for e in of]
    return Exhibit(
        name, title, caption, charts.estimates(groups, xlabel), ["images", "what", "share", "low", "high"], rows
    )


def training(found: list[Findings]) -> Exhibit:
    """Loss curves of all members."""
    figure = charts.losses({f.title: f.losses for f in found})
    rows = [
        [f.title, m, e + 1, float(loss)] for f in found for m, of in enumerate(f.losses) for e, loss in enumerate(of)
    ]
    caption = (
        "Cross-entropy against the pseudo-labels: thin lines are members, the thick one their mean. Look for a member "
        "that does not fall with the others. A low loss means that pseudo-labels are reproduced, right or wrong."
    )
    return Exhibit("losses", "Training loss", caption, figure, ["variant", "member", "epoch", "loss"], rows)


def members(found: list[Findings]) -> Exhibit:
    """Spread of the members around their ensemble."""
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
    figure = charts.member_spread(spread, f"{what}, {NAMES_OF_PARTS[part]}", reference)
    caption = "Each dot is a member, the same recipe from another random start. " + (
        "Look for how much luck a single prompt would need: the ensemble should lie among the better members or beyond."
        if judged
        else "Look for stragglers. Agreement is no accuracy."
    )
    return Exhibit("members", "Spread of the members", caption, figure, ["variant", "member", what], rows)


def ensemble_gain(found: list[Findings]) -> Exhibit | None:
    """Votes of few and of many members; None if chance left no image in the sample."""
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
        "images: mean and range. Look for where the curve is flat: more members than that buy nothing."
    ) + (" The dashed line averages probabilities instead of votes, as the classifier does." if judged else "")
    header = ["variant", "members", "mean", "lowest", "highest"]
    figure = charts.votes(curves, f"{what}, {NAMES_OF_PARTS[part]}")
    return Exhibit("ensemble-gain", "What more members bring", caption, figure, header, rows)


def confusion(f: Findings, names: tuple[str, ...]) -> Exhibit | None:
    """What the ensemble takes for what; None without labels."""
    part = f.judged_part
    if part is None:
        return None
    mistakes = sorted((-n, a, b) for a, b, n in f.confusion if a != b)[:MISTAKES]
    rows: list[Row] = [[names[a], names[b], -n] for n, a, b in mistakes]
    if len(names) <= MATRIX:
        table = np.zeros((len(names), len(names)))
        for a, b, n in f.confusion:
            table[a, b] = n
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        figure = charts.heat(shares, names, names, "share of the images of a class (rows: true, columns: said)", False)
        caption = "Look for bright squares beside the diagonal: pairs that the ensemble mixes up."
    else:
        figure = charts.pairs([(f"{a} → {b}", n) for a, b, n in rows[:BARS]], "images")
        caption = f"The {min(BARS, len(rows))} most frequent mistakes, true class → what the ensemble says."
    caption += f" On {of_part(part, f.parts[part]['labeled'])}."
    title = f"{f.title}: what the ensemble confuses"
    return Exhibit(f"confusion-{f.slug}", title, caption, figure, ["true", "said", "images"], rows)


def changes(f: Findings, names: tuple[str, ...]) -> Exhibit | None:
    """Which labels learning changed most often; None if none, or if there are too many classes to count pairs."""
    moves = f.corpus["moves"]
    if not moves:
        return None
    rows = [[names[a], names[b], n] for a, b, n in moves]
    figure = charts.pairs([(f"{a} → {b}", n) for a, b, n in rows[:BARS]], "images of the corpus")
    caption = (
        "From the target's zero-shot label to the ensemble's. Look for one-way streets: classes that zero-shot names "
        "too often lose images to those it overlooks."
    )
    title = f"{f.title}: where images move"
    return Exhibit(f"changes-{f.slug}", title, caption, figure, ["zero-shot", "ensemble", "images"], rows)


def calibration(f: Findings) -> Exhibit:
    """Reliability of confidences where labels exist, else their distribution."""
    part = f.judged_part
    field = "bins_labeled" if part else "bins"
    tables = {
        label: np.array(f.parts[f.shown_part][field][who])
        for label, who in (("ensemble", "ensemble"), ("zero-shot, fused", "fused"))
    }
    rows = [
        [label, i / len(bins), (i + 1) / len(bins), int(n), _ratio(c, n), _ratio(r, n) if part else None]
        for label, bins in tables.items()
        for i, (n, c, r) in enumerate(bins)
    ]
    header = ["model", "from", "to", "images", "mean confidence", "accuracy"]
    if part is None:
        caption = "How sure the models are; without labels nobody knows whether rightly. Confidence is no accuracy."
        title = f"{f.title}: confidence"
        return Exhibit(f"calibration-{f.slug}", title, caption, charts.confidences(tables), header, rows)
    errors = {label: calibration_error(bins) for label, bins in tables.items()}
    caption = (
        "Points below the dashed line are overconfident, those above underconfident. Expected "
        f"calibration error (15 bins): ensemble {100 * errors['ensemble']:.1f} points, zero-shot "
        f"{100 * errors['zero-shot, fused']:.1f}. Below: where the images lie. On "
        f"{of_part(part, f.parts[part]['labeled'])}."
    )
    return Exhibit(
        f"calibration-{f.slug}", f"{f.title}: calibration", caption, charts.reliability(tables), header, rows
    )


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b else None

"""The conclusions of a report: the numbers of each variant, read from storage, and the verdicts in words.

Shapes: C classes, S members, E epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from upl_ray.report.finished import FinishedRun, Variant
from upl_ray.upl.metrics import paired_difference, wilson

NAMES_OF_PARTS = {"corpus": "corpus", "scored": "held-out images"}


@dataclass(frozen=True)
class Estimate:
    """A share with its interval [0-1]."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Findings:
    """The numbers of one variant."""

    variant: Variant
    parts: dict[str, Any]  # `corpus`, `scored`: see `tally.numbers`
    selected: list[dict[str, Any]]  # rows of `schema.SELECTED`
    confusion: list[tuple[int, int, int]]  # of the judged part: true class, predicted class, images
    losses: npt.NDArray[np.float64]  # [S, E]
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
    def refined(self) -> bool:
        """True if its labels are refined ones, and its selection a uniform sample of the corpus."""
        return self.variant.refined

    @property
    def corpus(self) -> dict[str, Any]:
        """The numbers of the corpus."""
        return dict(self.parts["corpus"])

    @property
    def judged_part(self) -> str | None:
        """The images whose accuracies are reported: held-out ones, or else the corpus; None without labels."""
        return judged_part(self.parts)

    @property
    def shown_part(self) -> str:
        """The judged images, or without labels the corpus."""
        return self.judged_part or "corpus"


def gather(run: FinishedRun) -> list[Findings]:
    """The findings of each variant of a run, the exported one first."""
    found = []
    for variant in run.variants:
        scores = variant.chain.scores
        parts = scores.manifest()["parts"]
        selected, confusion = (scores.read_table(f"{name}.parquet") for name in ("selected", "confusion"))
        found.append(
            Findings(
                variant,
                parts,
                selected.to_pylist(),
                _pairs(confusion, judged_part(parts)),
                losses_of(run, variant),
                run.summary["scores"][variant.name],
            )
        )
    return found


def losses_of(run: FinishedRun, variant: Variant) -> npt.NDArray[np.float64]:
    """Mean loss of each member in each epoch [S, E]."""
    recipe, history = run.config["train"], variant.chain.members.read_table("history.parquet")
    losses = history.sort_by([("member", "ascending"), ("epoch", "ascending")])["loss"].to_numpy()
    by_member: npt.NDArray[np.float64] = losses.astype(np.float64).reshape(-1, recipe["epochs"])
    return by_member[: recipe["members"]]


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


def widest_of(found: list[Findings]) -> Findings:
    """The variant with most labelers; of equals one whose labels are fused and not refined."""
    return max(found, key=lambda f: (len(f.variant.labelers), not f.refined))


def name_of_labels(f: Findings) -> str:
    """What the pseudo-labels of a variant are, which sums call `fused`."""
    return "refined labels" if f.refined else "zero-shot, fused"


def accuracies(found: list[Findings], part: str) -> list[Estimate]:
    """Accuracy of each labeler, of fused and refined labels, and of each variant's members (mean) and ensemble."""
    widest = widest_of(found)
    numbers, n = widest.parts[part], widest.parts[part]["labeled"]
    rows = [
        estimate(f"zero-shot, {name}", sum(numbers["right"][f"labeler {name}"]), n) for name in widest.variant.labelers
    ]
    if len(rows) > 1 and not widest.refined:
        rows.append(estimate("zero-shot, all fused", sum(numbers["right"]["fused"]), n))
    for f in found:
        if f.refined:
            rows.append(estimate(f"{f.title} labels", sum(f.parts[part]["right"]["fused"]), n))
        members = [right / n for right in f.parts[part]["members_right"]]
        rows.append(Estimate(f"{f.title}, members (range)", float(np.mean(members)), min(members), max(members)))
        rows.append(estimate(f"{f.title}, ensemble", sum(f.parts[part]["right"]["ensemble"]), n))
        even = accuracy_even(f, part)
        if even is not None:
            rows.append(estimate(f"{f.title}, classes even", *even))
    return rows


def accuracy_even(f: Findings, part: str) -> tuple[int, int] | None:
    """Images that a refined ensemble has right where no class is taken to be more frequent, and of how many.

    None without labels, and where the ensemble takes classes to be even anyhow.
    """
    scores = f.scores["predictions"][part]
    value = scores["accuracy_even"] if f.refined else None
    return None if value is None else (round(value * scores["labeled"]), scores["labeled"])


def agreements(found: list[Findings], part: str) -> list[Estimate]:
    """How often models agree with each other, for runs without labels. None of it is an accuracy."""
    widest = widest_of(found)
    numbers, n = widest.parts[part], widest.parts[part]["images"]
    pairs, labels = numbers["pairs_agree"], "refined" if widest.refined else "all fused"
    rows = []
    if len(widest.variant.labelers) > 1:
        rows = [estimate(f"{name} with {labels}", pairs[i][-1], n) for i, name in enumerate(widest.variant.labelers)]
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


def share(value: float | None) -> str:
    """A share [0-1] as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def describe_part(part: str, n: int) -> str:
    """The number of images in a part, in words."""
    return f"{n:,} held-out images" if part == "scored" else f"{n:,} images of the corpus"


def verdict(run: FinishedRun, found: list[Findings]) -> list[str]:
    """The verdict: one sentence for each variant, and last its limits."""
    part = found[0].judged_part
    if part is None:
        return [
            *(_verdict_without_labels(run, f) for f in found),
            "No labels were given, so nothing on this page is an accuracy. Agreement shows that models give the same "
            "label, confidence how sure they are; both can be high and the label wrong. A few hundred labeled images, "
            "named in the field scored, would measure the accuracy.",
        ]
    sentences = [_verdict_with_labels(run, f, part) for f in found]
    return [*sentences, "True labels are used for scores only; nothing is learned from them."]


def _verdict_with_labels(run: FinishedRun, f: Findings, part: str) -> str:
    n = f.parts[part]["labeled"]
    right = sum(f.parts[part]["right"]["ensemble"])
    low, high = wilson(right, n)
    difference, worst, best = gain(f, part)
    if worst > 0:
        judgement = "better than"
    elif best < 0:
        judgement = "worse than"
    else:
        judgement = "not distinguishable from"
    return (
        f"{f.title} classifies {share(right / n)} of {describe_part(part, n)} right (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}): {judgement} the zero-shot prompt of {run.target}, which has "
        f"{share(zero_shot_accuracy(f, part))}. "
        f"On the same images they differ by {100 * difference:+.1f} points ({100 * worst:+.1f} to {100 * best:+.1f})."
        f"{_told_of_even_classes(f, part)}"
    )


def _told_of_even_classes(f: Findings, part: str) -> str:
    even = accuracy_even(f, part)
    if even is None:
        return ""
    return (
        f" That is with the class shares of the corpus; where no class is taken to be more frequent, it classifies "
        f"{share(even[0] / even[1])} right."
    )


def _verdict_without_labels(run: FinishedRun, f: Findings) -> str:
    numbers = f.corpus
    n = max(numbers["images"], 1)
    agree = sum(numbers["members_agree"]) / len(numbers["members_agree"]) / n
    return (
        f"{f.title} gives {share(numbers['change']['changed'] / n)} of {numbers['images']:,} images another label than "
        f"the zero-shot prompt of {run.target}. Its members agree with their ensemble on {share(agree)}; its mean "
        f"confidence is {share(mean_confidence(f, 'corpus', 'ensemble'))}, that of zero-shot "
        f"{share(mean_confidence(f, 'corpus', 'target'))}."
    )


def key_numbers(run: FinishedRun, found: list[Findings]) -> list[tuple[str, str, str]]:
    """The numbers below the verdict: value, name, and a remark."""
    summary, config = run.summary, run.config
    selection = found[0].scores["selection"]
    held_out = found[0].parts.get("scored")
    return [
        (f"{summary['images']:,}", "images", "in the corpus"),
        *([(f"{held_out['images']:,}", "held-out images", "scored, never learned from")] if held_out else []),
        (f"{len(run.classnames):,}", "classes", f"{len(selection['starved'])} starved: no image selected"),
        (f"{summary['rejected']:,}", "rejected", "images that could not be read"),
        (f"{sum(selection['images_per_class']):,}", "pseudo-labels", _remark_on_selection(run, found[0])),
        (f"{config['train']['members']}", "members", f"{config['train']['epochs']} epochs each"),
    ]


def in_words(titles: list[str]) -> str:
    """Names in a sentence: `a, b and c`."""
    return " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)


def describe_selections(found: list[Findings], top_k: int) -> list[str]:
    """What the prompts were learned on, a sentence or two for each kind of selection."""
    told, best = [], [f.title for f in found if not f.refined]
    if best:
        told.append(
            f"{in_words(best)}: the {top_k} most confident images of each class, which the prompts were learned on."
        )
    for f in found:
        if f.refined:
            told.append(
                f"{f.title}: a uniform sample of the corpus, {mean_per_class(f):.0f} images a class on average, which "
                "the prompts were learned on with soft labels, a probability for every class. A card counts the "
                "images whose most probable class it is, and shows some of them that were drawn by chance."
            )
    return told


def _remark_on_selection(run: FinishedRun, f: Findings) -> str:
    if f.refined:
        return f"soft ones of a uniform sample, {mean_per_class(f):.0f} a class on average"
    return f"top {run.config['label']['top_k']} of each class"


def mean_per_class(f: Findings) -> float:
    """Selected images of a class, on average."""
    return float(np.mean(f.scores["selection"]["images_per_class"]))


# The verdict without labels.


@dataclass(frozen=True)
class Judgement:
    """What referees say of the labels or the classifier of a variant, see `upl.verdict`."""

    subject: str  # what is judged
    answer: str  # better, worse, cannot tell
    estimate: str  # the referees' [points]
    truth: str | None  # what true labels of the corpus say [points]; None without
    advice: str  # what to do if it is worse, what would tell if nobody can
    loud: bool  # it is worse, and no true labels say the opposite


def judgements(run: FinishedRun) -> list[Judgement]:
    """The verdicts without labels in `run.json`, for each variant on labels and classifier; none in older runs."""
    told = []
    for variant in run.variants:
        found = run.summary.get("verdict", {}).get(variant.name, {})
        for what in ("labels", "classifier"):
            if found.get(what):
                told.append(_judgement(run, variant, what, found[what]))
    return told


def _judgement(run: FinishedRun, variant: Variant, what: str, found: dict[str, Any]) -> Judgement:
    answer, advice = found["answer"], ""
    refuted = {"better": -1, "worse": 1}.get(answer, 0) * (found["truth"] or 0) > 0
    if refuted:
        advice = "True labels say the opposite: trust them."
    elif answer == "worse":
        advice = f"The template of {run.target} is the better choice: " + (
            "the variant upl learns from its labels." if what == "labels" else "classify with it."
        )
    elif answer == "cannot tell":
        advice = _what_would_tell(run, variant, what, found)
    truth = None if found["truth"] is None else _points(found["truth"])
    loud = answer == "worse" and not refuted
    return Judgement(f"{variant.title}, {what}", answer, _points_of_referees(found), truth, advice, loud)


def _points_of_referees(found: dict[str, Any]) -> str:
    if found["gain"] is None:
        return "no referee"
    each = [f"{name} {_points(of['gain'])}" for name, of in found["referees"].items() if of["gain"] is not None]
    return f"{_points(found['gain'])} ± {100 * found['error']:.1f} ({', '.join(each)})"


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f}"


def _what_would_tell(run: FinishedRun, variant: Variant, what: str, found: dict[str, Any]) -> str:
    backbones = [name for name in run.summary["folders"]["features"] if name != run.target]
    if not backbones:
        return "A second backbone could judge; there is only one."
    if found["changed"]:
        return "Within two standard errors: more images, or a further backbone as referee, would tell."
    if what == "labels":
        return "A further backbone would tell: without the referee's own part, these are the template's labels."
    if found["gain"] is not None:
        return "There is nothing to judge: no label differs from the template's."
    return f"Every backbone has labeled; one that labels nothing would tell: label.referee: {' or '.join(backbones)}."


def absent_classes(run: FinishedRun) -> list[str]:
    """Names of the classes that no image of the corpus looks like, where labels were refined; none in older runs."""
    return list(run.summary.get("absent_classes", []))

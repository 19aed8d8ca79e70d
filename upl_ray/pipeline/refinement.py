"""The refinement step: a mixture over the features of a sample of the corpus, which refines fused labels (ours).

    read       groups of sampled images        tasks, once; see `sample.py`
    start      most confident images, sums     tasks, added up
    sweep      memberships, sums               tasks, added up; the driver updates the mixture

Labels are refined again only if the fit has moved: when the corpus has changed, a new mixture is fitted, and where it
gives another label to fewer than `MOVED` of the sampled images, that of before is kept, with all labels it has made.
The verdict on refined labels: each labeler is left out in turn, and judges those of the others. It judges by its own
labels, refined by its own features: its zero-shot labels err like those that it would judge.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import torch

from upl_ray.config.settings import Refine
from upl_ray.corpus.shards import Corpus
from upl_ray.errors import Damaged, JobError
from upl_ray.pipeline.pseudo_labels import Labeler, read_mixture, write_mixture, zero_shot
from upl_ray.pipeline.sample import Group, Sample, add_up, map_groups
from upl_ray.progress import Progress
from upl_ray.storage.step import Step, fingerprint, open_step
from upl_ray.upl import refine
from upl_ray.upl.fusion import assign, fuse
from upl_ray.upl.refine import Mixture, Statistics, class_shares, memberships, statistics
from upl_ray.upl.top_k import top_k
from upl_ray.upl.verdict import Votes, count_votes, verdict

log = logging.getLogger(__name__)

MOVED = 0.005  # share of the sampled images that get another label, from which a new fit replaces that of before


def refinement_step(
    corpus: Corpus, labelers: Sequence[Labeler], recipe: Refine, corrections: Step | None = None
) -> Step:
    """The mixture of the labelers' features for a corpus as it is now, and as a person has corrected it."""
    return Step.of(
        corpus.step.store,
        "refinement",
        version=1,
        inputs={"corpus": corpus.digest, **_identity(labelers, recipe)},
        needs=[*(s for x in labelers for s in (x.features, x.text)), *([corrections] if corrections else [])],
    )


def _identity(labelers: Sequence[Labeler], recipe: Refine) -> dict[str, Any]:
    fields = ("beta", "kappa", "sweeps", "sample_per_class")
    names = [x.spec.name for x in labelers]
    return {"refine": refine.VERSION, "labelers": names, **{f: getattr(recipe, f) for f in fields}}


def kept_refinement(step: Step) -> Step:
    """The refinement that labels are made with: the step itself, or an earlier one that its fit has not moved from."""
    manifest = step.find_manifest()
    return open_step(step.store, manifest["kept"]) if manifest else step


def last_refinement(corpus: Corpus, labelers: Sequence[Labeler], recipe: Refine) -> Step | None:
    """The refinement that labels of a corpus were last made with; None if there is none, or it is damaged."""
    folder = _noted(corpus, labelers, recipe)
    if not folder:
        return None
    found = open_step(corpus.step.store, folder)
    try:
        read_mixture(found)
    except (FileNotFoundError, JobError, KeyError):
        return None
    return found


def _noted(corpus: Corpus, labelers: Sequence[Labeler], recipe: Refine) -> str:
    """Folder of the refinement that labels of a corpus were last made with, whether it is whole or not; empty: none."""
    try:
        return str(corpus.step.read_json(_last(labelers, recipe)).get("kept", ""))
    except (FileNotFoundError, Damaged):
        return ""


def estimated_shares(step: Step) -> list[float]:
    """Estimated share of each class in the corpus [C], by the refinement that labels are made with."""
    shares: list[float] = kept_refinement(step).manifest()["class_shares"]
    return shares


def make_refinement(step: Step, sample: Sample, recipe: Refine) -> None:
    """Fit the mixture, and decide whether it replaces the one of before.

    Raises:
        JobError: there is no image to fit it on.
    """
    before = last_refinement(sample.corpus, sample.labelers, recipe)
    progress = Progress("refinement", recipe.sweeps, "sweeps")
    fit = _fit(sample.groups, recipe, progress)
    progress.finish()
    files = write_mixture(step, fit.mixture)
    moved = _moved(sample, recipe, fit.mixture, before) if before else 1.0
    kept = before if before and moved < MOVED else step
    step.finish(
        files=files,
        beta=recipe.beta,
        images=round(float(fit.total.counts.sum())),
        class_shares=class_shares(fit.total).tolist(),
        class_images=(fit.total.counts / sample.rate).tolist(),
        moved=moved,
        kept=kept.folder,
    )
    note_refinement(step, sample, recipe)
    if kept is before:
        log.info("%-12s the fit of before stays: %.2f %% of the labels would change", "refinement", 100 * moved)


def note_refinement(step: Step, sample: Sample, recipe: Refine) -> None:
    """Remember that labels are made with a finished refinement, unless that is known: see `last_refinement`."""
    kept = kept_refinement(step)
    if _noted(sample.corpus, sample.labelers, recipe) != kept.folder:
        sample.corpus.step.write_json(_last(sample.labelers, recipe), {"kept": kept.folder})


def _last(labelers: Sequence[Labeler], recipe: Refine) -> str:
    """File of a corpus that names the refinement which its labels were last made with."""
    inputs = [s.fingerprint for x in labelers for s in (x.features, x.text)]
    return f"refinements/{fingerprint([_identity(labelers, recipe), inputs])}.json"


@dataclass(frozen=True)
class Fit:
    """A fitted mixture, and the sums of the memberships that it gives."""

    mixture: Mixture
    total: Statistics


@dataclass(frozen=True)
class Start:
    """Sums that the first sweep needs."""

    anchors: Statistics
    everything: Statistics
    prior: torch.Tensor  # [C] sum of the fused probabilities

    def __add__(self, other: Start) -> Start:
        """The sums over the images of both."""
        return Start(self.anchors + other.anchors, self.everything + other.everything, self.prior + other.prior)


def _fit(groups: Sequence[ray.ObjectRef[Group]], recipe: Refine, progress: Progress) -> Fit:
    """The same as `refine`, with every sum over images made in groups."""
    anchors = top_k(ray.get(map_groups(groups, _most_confident)), refine.ANCHORS)
    if not len(anchors):
        raise JobError("No image could be read, so nothing can be refined; see rejected.parquet in its snapshot.")
    labels = dict(zip(anchors["image_id"].to_pylist(), anchors["pseudo_label"].to_pylist(), strict=True))
    start: Start = add_up(map_groups(groups, _start, labels))
    anchor_means = refine.means_of_anchors(start.anchors, start.everything)
    total, shares = start.anchors, start.prior / start.everything.counts
    for _ in range(recipe.sweeps):
        mixture = refine.update(total, anchor_means, shares, recipe.kappa)
        total = add_up(map_groups(groups, _sweep, mixture, recipe.beta))
        shares = class_shares(total)
        progress.advance(1)
    return Fit(mixture, total)


def _most_confident(group: Group) -> pa.Table:
    label, confidence = assign(group.fused)
    columns = {"image_id": group.image_ids, "pseudo_label": label, "confidence": confidence, "shard": group.shards}
    return top_k([pa.table(columns)], refine.ANCHORS)


def _start(group: Group, labels: dict[str, int]) -> Start:
    anchors = torch.zeros(group.fused.shape)
    for i, image_id in enumerate(group.image_ids):
        if image_id in labels:
            anchors[i, labels[image_id]] = 1
    weights = torch.from_numpy(group.weights).double()
    prior = weights @ group.probabilities.double()
    return Start(statistics(group.features, anchors), group.statistics(torch.ones(len(anchors), 1)), prior)


def _sweep(group: Group, mixture: Mixture, beta: float) -> Statistics:
    return group.statistics(group.memberships(mixture, beta))


def _moved(sample: Sample, recipe: Refine, fitted: Mixture, before: Step) -> float:
    """Share of the sampled images that a fit labels otherwise than the one before [0-1]."""
    mixture, _ = read_mixture(before)
    counts = ray.get(map_groups(sample.groups, _count_changes, fitted, mixture, recipe.beta))
    changed, images = (sum(of) for of in zip(*counts, strict=True))
    return float(changed / images)


def _count_changes(group: Group, first: Mixture, second: Mixture, beta: float) -> tuple[int, int]:
    one, other = (group.memberships(m, beta).argmax(dim=1) for m in (first, second))
    return int((one != other).sum()), len(one)


# The verdict on the labels.


def find_verdict(step: Step, target: str) -> dict[str, Any] | None:
    """The verdict on refined labels, against the target's own: None if it was not made yet."""
    try:
        return step.read_json(f"verdict-{target}.json")
    except FileNotFoundError:
        return None


def judge_labels(step: Step, sample: Sample, recipe: Refine, target: str) -> None:
    """Judge refined labels: each labeler in turn judges those that all others give, held against the target's own."""
    names, votes = [x.spec.name for x in sample.labelers], {}
    referees = [(b, x.alone) for b, x in enumerate(sample.labelers) if x.alone]
    progress = Progress("verdict", len(referees) * recipe.sweeps, "sweeps")
    for b, alone in referees:
        groups = map_groups(sample.groups, _without, b, sample.labelers)
        mixture = _fit(groups, recipe, progress).mixture
        judge, _ = read_mixture(alone)
        pairs = list(zip(sample.groups, groups, strict=True))
        arguments = (mixture, judge, recipe.beta, b, names.index(target), sample.labelers)
        votes[names[b]] = sum(ray.get(map_groups(pairs, _votes, *arguments)), Votes())
    progress.finish()
    step.write_json(f"verdict-{target}.json", verdict(votes))


def _without(group: Group, b: int, labelers: Sequence[Labeler]) -> Group:
    """The group as it would be without one labeler."""
    others = [i for i in range(len(labelers)) if i != b]
    own = [zero_shot(labelers[i], group.image_features[i]) for i in others]
    _, fused = fuse([group.image_ids] * len(own), own)
    fused[group.corrected] = group.fused[group.corrected]
    return replace(group, image_features=[group.image_features[i] for i in others], fused=fused)


def _votes(
    group: Group,
    without: Group,
    mixture: Mixture,
    judge: Mixture,
    beta: float,
    b: int,
    target: int,
    labelers: Sequence[Labeler],
) -> Votes:
    own = torch.from_numpy(zero_shot(labelers[b], group.image_features[b]))
    referee = memberships(group.features[b : b + 1], own, judge, beta)
    old = torch.from_numpy(zero_shot(labelers[target], group.image_features[target])).argmax(dim=1)
    refined = without.memberships(mixture, beta).argmax(dim=1)
    free = ~group.corrected
    return count_votes(referee[free], old[free], refined[free])

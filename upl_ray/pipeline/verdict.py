"""The verdict step: is what was learned better than the template? Judged on the corpus, without labels (ours).

    from_items       index                     one row a shard
    map (CPU)        votes of each referee     committed; the driver adds them up in the order of shards

Referees are backbones whose labels did not flow into what is judged: for a classifier those that label nothing of its
variant; for fused labels each labeler in turn, with the labels that the others give. Refined labels were judged when
they were fitted. A referee judges by its own labels, refined by its own features. Everything is held against the
target's own zero-shot labels.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from upl_ray.config.settings import Compute
from upl_ray.corpus.corrections import corrections_of
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.pipeline.pseudo_labels import Labeler, label_each, read_mixture
from upl_ray.pipeline.refinement import find_verdict
from upl_ray.pipeline.shardwise import map_shards, unfinished_shards
from upl_ray.storage.chain import Chain
from upl_ray.storage.step import Step
from upl_ray.upl.fusion import Probabilities, fuse
from upl_ray.upl.refine import memberships
from upl_ray.upl.verdict import Votes, count_votes, verdict

Judged = dict[str, dict[str, Votes]]  # `fused`, `classifier` -> referee -> votes


def verdict_step(predictions: Step, labelers: Sequence[Labeler], referees: Sequence[Labeler], target: str) -> Step:
    """The verdict on a classifier and on the labels that it was learned from; it grows with the corpus."""
    names = {"labelers": [x.spec.name for x in labelers], "referees": [x.spec.name for x in referees]}
    needs = [predictions, *(s for x in (*labelers, *referees) for s in (x.features, x.text, x.alone) if s)]
    return Step.of(predictions.store, "verdict", version=1, inputs={"target": target, **names}, needs=needs)


@dataclass(frozen=True)
class Bench:
    """Who judges a variant."""

    step: Step  # the verdict
    labelers: Sequence[Labeler]
    referees: Sequence[Labeler]  # of the classifier
    target: str  # name of the labeler that everything is held against

    def leave_out(self, chain: Chain) -> list[str]:
        """Names of the labelers that judge the labels of all others; refined ones were judged when they were fitted."""
        return [] if chain.refinement else [x.spec.name for x in self.labelers if x.alone]

    def unjudged_shards(self, chain: Chain, corpus: Corpus) -> list[Shard]:
        """The shards of the corpus that have no votes yet; none where nobody can judge."""
        return unfinished_shards([corpus], self.step) if self.referees or self.leave_out(chain) else []


def make_verdict(
    chain: Chain,
    corpus: Corpus,
    bench: Bench,
    todo: list[Shard],
    compute: Compute,
    corrections: Step | None = None,
) -> dict[str, Any]:
    """Judge a variant on all images of the corpus: its `labels` (None for the target's own) and its `classifier`.

    Args:
        chain: the variant.
        corpus: as it is now.
        bench: who judges.
        todo: the shards without votes.
        compute: settings of Ray Data.
        corrections: labels of images that are not judged.
    """
    corrected = corrections_of(corrections)
    step, leave_out = bench.step, bench.leave_out(chain)
    before = step.find_manifest()
    if before and before["corpus"] == corpus.digest and not todo:
        return {name: before[name] for name in ("labels", "classifier")}

    def judge(index: int) -> dict[str, Any]:
        votes = judge_shard(todo[index], chain, bench, corrected.get(todo[index].id, {}).keys())
        step.commit(todo[index].state, votes={k: {r: v.to_json() for r, v in of.items()} for k, of in votes.items()})
        return {}

    for _ in map_shards("verdict", todo, judge, compute) if todo else ():
        pass
    judged: Judged = {"classifier": {}, "fused": {}}
    for commit in step.read_commits(s.state for s in corpus.shards) if bench.referees or leave_out else ():
        for what, of in commit["votes"].items():
            for referee, votes in of.items():
                judged[what][referee] = judged[what].get(referee, Votes()) + Votes.from_json(votes)
    labels = verdict(judged["fused"]) if len(bench.labelers) > 1 else None
    if chain.refinement:
        labels = find_verdict(chain.refinement, bench.target)
    found = {"labels": labels, "classifier": verdict(judged["classifier"])}
    step.finish(corpus=corpus.digest, **found)
    return found


def judge_shard(shard: Shard, chain: Chain, bench: Bench, corrected: Set[str] = frozenset()) -> Judged:
    """Votes on the images of a shard of the corpus, but for corrected ones."""
    judged: Judged = {"classifier": {}, "fused": {}}
    labelers, leave_out = bench.labelers, bench.leave_out(chain)
    names = [x.spec.name for x in labelers]
    own = names.index(bench.target)
    if bench.referees:
        pseudo = chain.pseudo_labels.read_shard(shard.state, ["image_id", "backbone_labels"])
        predicted = chain.predictions.read_shard(shard.state, ["image_id", "label"])
        given = np.asarray(pseudo["backbone_labels"].combine_chunks().flatten()).reshape(len(pseudo), -1)
        old = dict(zip(pseudo["image_id"].to_pylist(), given[:, own].tolist(), strict=True))
        new = dict(zip(predicted["image_id"].to_pylist(), predicted["label"].to_pylist(), strict=True))
        for referee in bench.referees:
            ids, features, p = label_each(
                shard,
                [referee],
                lambda ids: [i for i, x in enumerate(ids) if x in old and x in new and x not in corrected],
            )
            labels = (torch.tensor([of[i] for i in ids], dtype=torch.int64) for of in (old, new))
            judged["classifier"][referee.spec.name] = count_votes(_refined(referee, features[0], p[0]), *labels)
    if leave_out:
        ids, features, each = label_each(
            shard, labelers, lambda ids: [i for i, x in enumerate(ids) if x not in corrected]
        )
        before = torch.from_numpy(each[own]).argmax(dim=1)
        for name in leave_out:
            b = names.index(name)
            _, fused = fuse([ids] * (len(each) - 1), [p for i, p in enumerate(each) if i != b])
            after = torch.from_numpy(fused).argmax(dim=1)
            judged["fused"][name] = count_votes(_refined(labelers[b], features[b], each[b]), before, after)
    return judged


def _refined(referee: Labeler, features: npt.NDArray[np.float16], own: Probabilities) -> torch.Tensor:
    """Probabilities [n, C] by a referee, refined by its own features."""
    assert referee.alone
    mixture, beta = read_mixture(referee.alone)
    return memberships([torch.from_numpy(features)], torch.from_numpy(own), mixture, beta)

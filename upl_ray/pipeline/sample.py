"""A uniform sample of the corpus, held in Ray's object store for as long as labels are refined.

Every shard is read once, in tasks; a group holds the sampled images of some shards. Groups depend on the corpus alone,
and results of theirs are added in their order, so that nothing depends on how many workers there are. What does not
fit into memory is spilled to disks by Ray.

Shapes: n images of a group, C classes, B labelers, D_b feature width of labeler b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

from upl_ray.config.settings import Compute
from upl_ray.corpus.corrections import NONE, ByShard, corrections_of
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.pipeline.pseudo_labels import Labeler, known_of, label_each
from upl_ray.progress import Progress
from upl_ray.storage.step import Step
from upl_ray.upl.fusion import fuse
from upl_ray.upl.known import is_known
from upl_ray.upl.refine import Mixture, Statistics, memberships, statistics
from upl_ray.upl.sampling import sampled, sampling_rate

BYTES_OF_GROUP = 2**27  # of the features and probabilities of a group, on average
SHARDS_OF_GROUP = 256


@dataclass(frozen=True)
class Group:
    """Sampled images of some shards."""

    image_ids: list[str]
    shards: list[str]  # id of the shard of each image
    image_features: list[npt.NDArray[np.float16]]  # B x [n, D_b]
    fused: npt.NDArray[np.float32]  # [n, C] probabilities; of corrected images, those of their class
    corrected: npt.NDArray[np.bool_]  # [n]
    known: npt.NDArray[np.bool_]  # [n] enough to be learned from, see `is_known`
    weights: npt.NDArray[np.float32]  # [n] 1; of corrected images that were not drawn the rate, as of all others

    @property
    def features(self) -> list[Tensor]:
        """The features as tensors."""
        return [torch.from_numpy(x) for x in self.image_features]

    @property
    def probabilities(self) -> Tensor:
        """The fused probabilities as a tensor."""
        return torch.from_numpy(self.fused)

    def memberships(self, mixture: Mixture, beta: float) -> Tensor:
        """Refined probabilities [n, C]; corrected images are of their class."""
        return memberships(self.features, self.probabilities, mixture, beta, torch.from_numpy(self.corrected))

    def statistics(self, z: Tensor) -> Statistics:
        """Sums over the images with memberships [n, C], each with its weight."""
        return statistics(self.features, z * torch.from_numpy(self.weights)[:, None])

    def rows(self, rows: list[int]) -> Group:
        """Some of the images."""
        ids, shards = ([of[i] for i in rows] for of in (self.image_ids, self.shards))
        features = [x[rows] for x in self.image_features]
        rest = (self.fused[rows], self.corrected[rows], self.known[rows], self.weights[rows])
        return Group(ids, shards, features, *rest)

    def sampled(self, rate: float) -> list[int]:
        """Positions of the known images of a smaller sample, and of all corrected ones."""
        known = (i for i in sampled(self.image_ids, rate) if self.known[i])
        return sorted({*known, *np.flatnonzero(self.corrected).tolist()})


class Sample:
    """The sampled images of a corpus under some labelers, read when they are first used.

    With corrections it holds every corrected image that shows a class, and none that shows none.
    """

    def __init__(
        self,
        corpus: Corpus,
        labelers: Sequence[Labeler],
        per_class: int,
        n_classes: int,
        compute: Compute,
        corrections: Step | None = None,
        min_known: float = 0.0,
    ) -> None:
        self.corpus, self.labelers, self.n_classes, self.compute = corpus, labelers, n_classes, compute
        self.corrections, self.min_known = corrections, min_known
        self.rate = sampling_rate(per_class, n_classes, corpus.images)

    @cached_property
    def groups(self) -> list[ray.ObjectRef[Group]]:
        """The groups, in the order of the corpus' shards."""
        task, corrected = ray.remote(num_cpus=1)(_read_group), corrections_of(self.corrections)
        refs = [
            task.remote(shards, self.labelers, self.rate, _of_shards(corrected, shards), self.min_known)
            for shards in self._shards()
        ]
        progress, pending = Progress("sample", len(refs), "groups"), refs
        while pending:
            ready, pending = ray.wait(pending, fetch_local=False)
            progress.advance(len(ready))
        progress.finish()
        return refs

    def _shards(self) -> Iterator[list[Shard]]:
        image = 4 * self.n_classes + sum(2 * x.spec.dim for x in self.labelers)  # bytes
        group: list[Shard] = []
        for shard in self.corpus.shards:
            group.append(shard)
            expected = self.rate * image * sum(s.rows for s in group)
            if expected >= BYTES_OF_GROUP or len(group) == SHARDS_OF_GROUP:
                yield group
                group = []
        if group:
            yield group


def map_groups(groups: Sequence[Any], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """References to `function(group, *arguments)` of every group, in Ray tasks of one thread.

    A `group` may be a tuple of references, which then come first.
    """
    task = ray.remote(num_cpus=1)(_on_one_thread)
    shared = [ray.put(a) for a in arguments]
    return [task.remote(function, *(g if isinstance(g, tuple) else (g,)), *shared) for g in groups]


def add_up(refs: Sequence[Any]) -> Any:
    """The sum of values behind references, in pairs and always in the same order."""
    add = ray.remote(num_cpus=0)(_add)
    while len(refs) > 1:
        pairs = [refs[i : i + 2] for i in range(0, len(refs), 2)]
        refs = [add.remote(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return ray.get(refs[0])


def _add(first: Any, second: Any) -> Any:
    return first + second


def _on_one_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(1)
    return function(*arguments)


def _of_shards(corrected: ByShard, shards: list[Shard]) -> ByShard:
    return {s.id: corrected[s.id] for s in shards if s.id in corrected}


def _read_group(
    shards: list[Shard], labelers: Sequence[Labeler], rate: float, corrected: ByShard, min_known: float
) -> Group:
    torch.set_num_threads(1)
    parts = []
    for shard in shards:
        labels = corrected.get(shard.id, {})

        def choose(ids: list[str], labels: Mapping[str, int] = labels) -> list[int]:
            rows = {*sampled(ids, rate), *(i for i, image_id in enumerate(ids) if image_id in labels)}
            return sorted(i for i in rows if labels.get(ids[i]) != NONE)

        ids, features, own = label_each(shard, labelers, choose)
        image_ids, fused = fuse([ids] * len(own), own)
        for i, image_id in enumerate(image_ids):
            if image_id in labels:
                fused[i] = 0
                fused[i, labels[image_id]] = 1
        shares = known_of(labelers, features) if min_known else None
        known = np.ones(len(ids), np.bool_) if shares is None else is_known(shares, min_known)
        by_image = np.array([i in labels for i in image_ids], np.bool_)
        drawn = np.isin(np.arange(len(image_ids)), sampled(image_ids, rate))
        weights = np.where(drawn, 1, rate).astype(np.float32)
        parts.append((image_ids, [shard.id] * len(image_ids), features, fused, by_image, known, weights))
    ids_of, shards_of, features_of, *of_shards = zip(*parts, strict=True)
    return Group(
        [i for ids in ids_of for i in ids],
        [s for of_shard in shards_of for s in of_shard],
        [np.concatenate([features[b] for features in features_of]) for b in range(len(labelers))],
        *map(np.concatenate, of_shards),
    )

"""The pseudo-label step: zero-shot probabilities of the labelers, fused, for every image (paper, section 3.2).

Refined ones (ours) come from the same probabilities and the features that they were made of.

Shapes: n images of a shard, C classes, B labelers, D_b feature width of labeler b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from upl_ray.config.settings import Compute
from upl_ray.corpus.shards import Shard
from upl_ray.pipeline.features import read_features, rejected_of
from upl_ray.pipeline.shardwise import apply_in_slices, commit_each_shard
from upl_ray.pipeline.text import read_text_features
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.fusion import Probabilities, assign, fuse
from upl_ray.upl.refine import Mixture, memberships
from upl_ray.upl.zero_shot import competing, known, probabilities


@dataclass(frozen=True)
class Labeler:
    """A backbone that labels images, and the two steps that it labels from."""

    spec: ClipSpec
    features: Step
    text: Step
    negatives: Step | None = None  # text features of words that compete with the classes
    alone: Step | None = None  # the refinement of its labels by its own features, with which it judges


def pseudo_label_step(store: Store, labelers: Sequence[Labeler], refinement: Step | None = None) -> Step:
    """Pseudo-labels of some fused labelers, for all corpora; labelers are in the order of their names.

    The order is fixed so that the same labelers sum alike. With a refinement, labels are refined by it.
    """
    return Step.of(
        store,
        "pseudo_labels",
        version=3,
        inputs={"labelers": [x.spec.name for x in labelers]},
        needs=[
            *(step for x in labelers for step in (x.features, x.text, x.negatives) if step),
            *([refinement] if refinement else []),
        ],
    )


def make_pseudo_labels(
    step: Step,
    todo: list[Shard],
    labelers: Sequence[Labeler],
    classnames: tuple[str, ...],
    compute: Compute,
    refinement: Step | None = None,
) -> None:
    """Label shards with the labelers' fused probabilities, refined if there is a refinement."""
    commit_each_shard("labels", todo, step, lambda shard: label_shard(shard, labelers, refinement), compute)
    if not step.finished:
        step.finish(labelers=[x.spec.name for x in labelers], classnames=list(classnames))


_read_text_features = lru_cache(maxsize=16)(read_text_features)  # tasks of one process need the same ones


def label_each(
    shard: Shard, labelers: Sequence[Labeler], choose: Callable[[list[str]], list[int]] | None = None
) -> tuple[list[str], list[npt.NDArray[np.float16]], list[Probabilities]]:
    """Zero-shot labels of each labeler by itself, for the images that all of them could read.

    Args:
        shard: the images.
        labelers: the backbones.
        choose: gives the positions of the wanted images among sorted ids; None: all.

    Returns:
        The ids [n] in their order; features B x [n, D_b]; probabilities B x [n, C].

    Raises:
        ValueError: the labelers have features of different images.
    """
    ids: list[str] = []
    features: list[npt.NDArray[np.float16]] = []
    rejected = {i for x in labelers for i in rejected_of(x.features, shard)}  # by any of the labelers
    for labeler in labelers:
        found, image_features = read_features(labeler.features, shard, rejected)
        if features and found != ids:
            raise ValueError(f"Labelers have features of different images of the shard {shard.id}.")
        ids = found
        features.append(image_features)
    if choose:
        rows = choose(ids)
        ids, features = [ids[i] for i in rows], [x[rows] for x in features]
    own = [zero_shot(x, image_features) for x, image_features in zip(labelers, features, strict=True)]
    return ids, features, own


def zero_shot(labeler: Labeler, image_features: npt.NDArray[np.float16]) -> Probabilities:
    """Probabilities [n, C] by one labeler, from its features [n, D_b]."""
    text_features, logit_scale = _read_text_features(labeler.text)
    classify = partial(probabilities, text_features=text_features, logit_scale=logit_scale)
    return apply_in_slices(image_features, classify, len(text_features))


@lru_cache(maxsize=16)
def read_negatives(labeler: Labeler) -> Tensor:
    """Features [J, D_b] of the words that compete with the classes of a labeler; those near a class do not."""
    assert labeler.negatives
    negatives, text_features = (read_text_features(step)[0] for step in (labeler.negatives, labeler.text))
    return negatives[competing(negatives, text_features)]


def known_of(
    labelers: Sequence[Labeler], features: Sequence[npt.NDArray[np.float16]]
) -> npt.NDArray[np.float32] | None:
    """Share of the fused probability that falls on the classes [n], from features B x [n, D_b].

    None if no words compete.
    """
    if not all(x.negatives for x in labelers):
        return None
    shares = [_known(x, image_features) for x, image_features in zip(labelers, features, strict=True)]
    fused: npt.NDArray[np.float64] = np.stack(shares).mean(axis=0, dtype=np.float64)
    return fused.astype(np.float32)


def _known(labeler: Labeler, image_features: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    text_features, logit_scale = _read_text_features(labeler.text)
    negatives = read_negatives(labeler)
    return apply_in_slices(image_features, lambda x: known(x, text_features, negatives, logit_scale)[:, None], 1)[:, 0]


def label_shard(shard: Shard, labelers: Sequence[Labeler], refinement: Step | None = None) -> pa.Table:
    """Rows of `schema.PSEUDO_LABELS`: fused labels, or refined ones, and those of each labeler by itself."""
    ids, features, own = label_each(shard, labelers)
    image_ids, fused = fuse([ids] * len(own), own)
    if refinement:
        mixture, beta = _read_mixture(refinement)
        fused = memberships([torch.from_numpy(x) for x in features], torch.from_numpy(fused), mixture, beta).numpy()
    label, confidence = assign(fused)
    alone, shares = [assign(p) for p in own], known_of(labelers, features)
    columns = [
        pa.array(image_ids, pa.string()),
        label,
        confidence,
        list(np.stack([x for x, _ in alone], axis=1)),
        list(np.stack([x for _, x in alone], axis=1)),
        pa.nulls(len(image_ids), pa.float32()) if shares is None else shares,
    ]
    return pa.table(columns, schema=schema.PSEUDO_LABELS)


# The mixture of a refinement, see `refinement.py`.

MIXTURE = "mixture.safetensors"


def write_mixture(step: Step, mixture: Mixture) -> dict[str, str]:
    """Store a fitted mixture; returns its entry for `files` of the manifest."""
    tensors = {"class_shares": mixture.class_shares}
    for b, (mean, variance) in enumerate(zip(mixture.means, mixture.variances, strict=True)):
        tensors |= {f"mean_{b}": mean.contiguous(), f"variance_{b}": variance.contiguous()}
    return step.write_file(MIXTURE, safetensors.torch.save(tensors))


def read_mixture(step: Step) -> tuple[Mixture, float]:
    """The mixture of a finished refinement, and the weight of its likelihood."""
    tensors = safetensors.torch.load(step.read_file(MIXTURE))
    labelers = range(sum(name.startswith("mean_") for name in tensors))
    means, variances = (tuple(tensors[f"{what}_{b}"] for b in labelers) for what in ("mean", "variance"))
    return Mixture(means, variances, tensors["class_shares"]), float(step.manifest()["beta"])


_read_mixture = lru_cache(maxsize=4)(read_mixture)

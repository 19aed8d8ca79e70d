"""Selection and views of refined labels: a uniform sample of the corpus, with soft targets and features in storage.

Not the most confident images: these are the easy ones, and where classes are uneven they are wrong. The sample lies in
the one that the mixture was fitted on, so no image is read again and none is encoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from upl_ray.config.settings import Refine
from upl_ray.corpus.shards import Corpus
from upl_ray.pipeline.pseudo_labels import read_mixture
from upl_ray.pipeline.sample import Group, Sample, map_groups
from upl_ray.pipeline.selection import write_selection
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.fusion import assign
from upl_ray.upl.refine import Mixture
from upl_ray.upl.sampling import sampling_rate
from upl_ray.upl.top_k import top_k


def soft_selection_step(
    corpus: Corpus, pseudo_labels: Step, recipe: Refine, min_known: float = 0.0, corrections: Step | None = None
) -> Step:
    """The images of a corpus that prompts are learned on, by refined labels and what a person has corrected."""
    sizes = {"train_per_class": recipe.train_per_class, "of": recipe.sample_per_class}
    inputs = {"corpus": corpus.digest, "min_known": min_known, **sizes}
    needs = [pseudo_labels, *([corrections] if corrections else [])]
    return Step.of(pseudo_labels.store, "selection", version=8, inputs=inputs, needs=needs)


def soft_view_step(selection: Step, spec: ClipSpec, recipe: Refine) -> Step:
    """The target's clean features of a soft selection, and the targets."""
    inputs = {"clip": spec.identity(), "targets": recipe.targets}
    return Step.of(selection.store, "views", version=3, inputs=inputs, needs=[selection])


def _rate(sample: Sample, recipe: Refine) -> float:
    return min(sample.rate, sampling_rate(recipe.train_per_class, sample.n_classes, sample.corpus.images))


def make_soft_selection(step: Step, sample: Sample, refinement: Step, recipe: Refine) -> None:
    """Choose the images, and label them with the refinement."""
    mixture, beta = read_mixture(refinement)
    tables = ray.get(map_groups(sample.groups, _chosen, mixture, beta, _rate(sample, recipe)))
    chosen = top_k(tables, max(1, sum(map(len, tables))))  # all, ordered by class and confidence
    write_selection(step, chosen, sample.n_classes, train_per_class=recipe.train_per_class)


def make_soft_views(step: Step, sample: Sample, refinement: Step, target: str, recipe: Refine) -> None:
    """Copy the target's features of the chosen images, with their probabilities unless targets are hard."""
    mixture, beta = read_mixture(refinement)
    own = next(i for i, x in enumerate(sample.labelers) if x.spec.name == target)
    soft, rate = recipe.targets == "soft", _rate(sample, recipe)
    parts = ray.get(map_groups(sample.groups, _write_views, step, mixture, beta, rate, own, soft))
    images = 0
    for i, (part, image_ids) in enumerate(parts):
        step.commit(f"{i:05d}", parts=[part], image_ids=image_ids)
        images += len(image_ids)
    step.finish(images=images, views=1, backbone=target, soft_classes=sample.n_classes if soft else 0)


def _probabilities(group: Group, mixture: Mixture, beta: float, rate: float) -> tuple[list[int], Any]:
    rows = group.sampled(rate)
    return rows, group.rows(rows).memberships(mixture, beta).numpy()


def _chosen(group: Group, mixture: Mixture, beta: float, rate: float) -> pa.Table:
    rows, z = _probabilities(group, mixture, beta, rate)
    label, confidence = assign(z)
    ids, shards = ([of[i] for i in rows] for of in (group.image_ids, group.shards))
    columns = {"image_id": ids, "pseudo_label": label, "confidence": confidence, "shard": shards}
    return pa.table({k: pa.array(v, schema.SELECTION.field(k).type) for k, v in columns.items()})


def _write_views(
    group: Group, step: Step, mixture: Mixture, beta: float, rate: float, own: int, soft: bool
) -> tuple[str, list[str]]:
    rows, z = _probabilities(group, mixture, beta, rate)
    features = group.image_features[own][rows]
    ids, dim = [group.image_ids[i] for i in rows], features.shape[1]
    columns = [pa.array(ids, pa.string()), _fixed(features, dim), *([_fixed(z, z.shape[1])] if soft else [])]
    table = pa.table(columns, schema=schema.views(1, dim, z.shape[1] if soft else None))
    return step.write_part(f"{len(ids):06d}", table), ids


def _fixed(array: Any, width: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).reshape(-1)), width)

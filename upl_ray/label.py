"""Classification of cached features shard by shard with Ray Data: pseudo-labels from labelers, predictions at the end.

    from_items        shard                       one row a shard without a commit
    map (CPU tasks)   shard, rows                 reads features, writes one part, commits the shard

Everything a task needs is in storage, everything it makes goes there; only counts come back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from torch import Tensor

from upl_ray import figures, pseudo_labels, schema
from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute
from upl_ray.corpus import Corpus, Shard
from upl_ray.ensemble import Ensemble, load_ensemble
from upl_ray.features import feature_artifact, read_features, rejected_of
from upl_ray.pools import configure_data
from upl_ray.progress import Progress
from upl_ray.text_features import read_text_features, text_artifact
from upl_ray.zero_shot import all_prompts, probabilities

VERSION = 1  # raise when the same features give other pseudo-labels
Facts = dict[str, Any]  # what a commit says beside its parts
ROWS_AT_ONCE = 512  # rows whose logits are held together: 512 x 16 members x 1,000 classes are 32 MB


def pseudo_label_artifact(
    store: Store, labelers: list[ClipSpec], classnames: tuple[str, ...], template: str | tuple[str, ...]
) -> Artifact:
    """Where the pseudo-labels of some fused labelers lie, for all corpora."""
    identity = {
        "version": VERSION,
        "features": sorted([s.name, feature_artifact(store, s).fingerprint] for s in labelers),
        "prompts": all_prompts(template, classnames),
    }
    return Artifact(store, "pseudo_labels", fingerprint(identity))


def pseudo_label(
    todo: list[Shard],
    artifact: Artifact,
    labelers: list[ClipSpec],
    classnames: tuple[str, ...],
    template: str | tuple[str, ...],
    compute: Compute,
) -> None:
    """Label shards with the labelers' fused probabilities."""
    store = artifact.store
    labelers = sorted(labelers, key=lambda s: s.name)  # a fixed order, so that the same labelers sum alike
    inputs = [(feature_artifact(store, s), text_artifact(store, s, classnames, template)) for s in labelers]
    _each_shard("labels", todo, artifact, lambda shard: fuse_shard(shard, inputs), compute)
    if artifact.manifest() is None:
        artifact.finish(labelers=[s.name for s in labelers], classnames=list(classnames), template=template)


def fuse_shard(shard: Shard, inputs: list[tuple[Artifact, Artifact]]) -> pa.Table:
    """Zero-shot probabilities of each labeler, fused: rows of `schema.PSEUDO_LABELS`."""
    ids, probs = [], []
    rejected = {i for features, _ in inputs for i in rejected_of(features, shard)}  # by any of the labelers
    for features, text in inputs:
        text_features, logit_scale = _text_features(text)
        labeler_ids, image_features = read_features(features, shard, rejected)
        classify = partial(probabilities, text_features=text_features, logit_scale=logit_scale)
        ids.append(labeler_ids)
        probs.append(in_slices(image_features, classify, len(text_features)))
    image_ids, fused = pseudo_labels.fuse(ids, probs)
    label, confidence = pseudo_labels.assign(fused)
    order = [{image_id: i for i, image_id in enumerate(labeler_ids)} for labeler_ids in ids]
    own = [pseudo_labels.assign(p[[o[i] for i in image_ids]]) for p, o in zip(probs, order, strict=True)]
    columns = [
        pa.array(image_ids, pa.string()),
        label,
        confidence,
        list(np.stack([x for x, _ in own], axis=1)),
        list(np.stack([x for _, x in own], axis=1)),
    ]
    return pa.table(columns, schema=schema.PSEUDO_LABELS)


def predict(todo: list[Shard], artifact: Artifact, classifier: Artifact, spec: ClipSpec, compute: Compute) -> None:
    """Classify shards from the target's cached features, and commit each with its figures."""
    features = feature_artifact(artifact.store, spec)

    def work(shard: Shard) -> pa.Table:
        return predict_shard(shard, features, classifier.uri)

    def facts(shard: Shard, table: pa.Table) -> Facts:
        return {"figures": figures.figures_of(table, shard.rows - len(shard.removed))}

    _each_shard("predictions", todo, artifact, work, compute, facts)


_ensemble = lru_cache(maxsize=2)(load_ensemble)  # one task after another in the same process needs the same one
_text_features = lru_cache(maxsize=16)(read_text_features)


def predict_shard(shard: Shard, features: Artifact, classifier_uri: str) -> pa.Table:
    """Label, class name and confidence of each image: rows of `schema.PREDICTIONS`."""
    ensemble: Ensemble = _ensemble(classifier_uri)
    ids, image_features = read_features(features, shard)
    label, confidence = pseudo_labels.assign(
        in_slices(image_features, ensemble.probabilities, len(ensemble.classnames))
    )
    members = in_slices(image_features, ensemble.member_labels, len(ensemble.text_features), np.int32)
    names = [ensemble.classnames[i] for i in label.tolist()]
    return pa.table([pa.array(ids, pa.string()), label, names, confidence, list(members)], schema=schema.PREDICTIONS)


def in_slices(
    features: npt.NDArray[np.float16], classify: Callable[[Tensor], Tensor], width: int, dtype: Any = np.float32
) -> npt.NDArray[Any]:
    """Apply `classify` ([n, D] -> [n, width]) to all rows, a bounded number at once."""
    out = np.empty((len(features), width), dtype)
    for first in range(0, len(features), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        out[rows] = classify(torch.from_numpy(features[rows])).numpy()
    return out


def unfinished(corpora: list[Corpus], artifact: Artifact) -> list[Shard]:
    """The shards of these corpora that an artifact has no commit for, each once."""
    done = artifact.committed()
    return list({s.state: s for c in corpora for s in c.shards if s.state not in done}.values())


def without_rows(todo: list[Shard], artifact: Artifact) -> list[Shard]:
    """Those shards of which not even the rows before some of their images were removed are in storage."""
    done = artifact.committed() if any(s.removed for s in todo) else set()  # one listing less, on most nights
    return [s for s in todo if s.id not in done]


def _each_shard(
    step: str,
    todo: list[Shard],
    artifact: Artifact,
    work: Callable[[Shard], pa.Table],
    compute: Compute,
    facts: Callable[[Shard, pa.Table], Facts] = lambda shard, table: {},
) -> None:
    """Do, write and commit shards, a task each; `work` gives a shard's rows, `facts` more for its commit."""
    if not todo:
        return
    configure_data(compute)
    new = {s.id for s in without_rows(todo, artifact)}

    def process(row: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(1)
        shard = todo[row["index"]]
        table = work(shard) if shard.id in new else _remaining(artifact.read_shard(shard.id), shard)
        part = artifact.write_part(shard.state, table)
        artifact.commit(shard.state, parts=[part], rows=table.num_rows, **facts(shard, table))
        return {"rows": shard.rows}

    progress = Progress(step, sum(s.rows for s in todo), "images")
    indices = [{"index": i} for i in range(len(todo))]
    for row in ray.data.from_items(indices, override_num_blocks=min(len(todo), 4096)).map(process).iter_rows():
        progress.advance(row["rows"])
    progress.finish()


def _remaining(table: pa.Table, shard: Shard) -> pa.Table:
    """The rows of a whole shard without its removed images; no feature is read for them."""
    return table.filter(pa.array([i not in shard.removed for i in table["image_id"].to_pylist()], pa.bool_()))

"""The estimate of a run that is about to start: what the cost model (`estimate.py`) says of its inputs and cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from upl_ray import speeds
from upl_ray.artifacts import Store
from upl_ray.clip_spec import ClipSpec
from upl_ray.corpus import Shard
from upl_ray.estimate import estimate
from upl_ray.features import feature_artifact, missing_shards
from upl_ray.inputs import Inputs
from upl_ray.workload import Images, Learning, Machines

SAMPLE = 4  # shards whose listings are read for the mean size of an image


def forecast(inputs: Inputs, needed: Mapping[str, set[str]], resources: Mapping[str, float]) -> list[str]:
    """Log lines about time, bytes and requests of embedding the needed features, on a cluster with these resources."""
    config = inputs.config
    shards = {s.id: s for c in inputs.corpora for s in c.shards}
    missing = {
        name: missing_shards(feature_artifact(inputs.store, inputs.specs[name]), (shards[i] for i in ids))
        for name, ids in needed.items()
    }
    specs = [inputs.specs[name] for name, ids in missing.items() if ids]
    todo = [shards[i] for i in set().union(*missing.values())]
    rows = sum(s.rows for s in todo)
    images = Images(
        total=sum(s.rows for s in shards.values()),
        todo=rows,
        bytes_each=mean_bytes(inputs.store, todo, shards.values()),
        per_file=max(1, rows // max(1, len({(s.root, s.archive) for s in todo}))) if todo[0].archive else 1,
        remote=any("://" in s.root for s in todo),
    )
    learning = Learning(
        classes=len(inputs.classnames),
        views=config.views.count,
        top_k=config.label.top_k,
        **config.train.model_dump(include={"members", "epochs", "batch_size", "n_ctx", "precision"}),
    )
    known, gpu = known_gpu(resources)
    machines = Machines(
        cpus=resources.get("CPU", 1.0),
        gpus=resources.get("GPU", 0.0),
        gpu=gpu,
        shard_size=config.compute.shard_size,
        chunk_size=config.compute.chunk_size,
    )
    if inputs.target not in specs:
        specs.append(inputs.target)
    lines = estimate(images, [_model(s) for s in specs], inputs.target.name, learning, machines).lines()
    return lines if known else [*lines, f"the cluster's GPUs are not known to it, so it took them for {gpu}"]


def known_gpu(resources: Mapping[str, float]) -> tuple[bool, str]:
    """Whether the speed of the cluster's GPUs is known, and the name of the GPU that the estimate is for."""
    names = [speeds.named_gpu(r.partition(":")[2]) for r in resources if r.startswith("accelerator_type:")]
    found = next((name for name in names if name), None)
    return bool(found) or not resources.get("GPU"), found or speeds.REFERENCE


def mean_bytes(store: Store, todo: list[Shard], everything: Iterable[Shard]) -> float:
    """Mean size of the images that are still to do: their archives' share, or that of a sample of files [bytes].

    An archive's size is that of all its images, so those of finished shards count too.
    """
    archives = {(s.root, s.archive): _size(s.version) for s in todo if s.archive}
    if archives:
        return sum(archives.values()) / sum(s.rows for s in everything if (s.root, s.archive) in archives)
    versions = [v for s in todo[:SAMPLE] for v in store.read_hashed(s.listing, ["version"])["version"].to_pylist()]
    sizes = [_size(v) for v in versions]
    return sum(sizes) / len(sizes) or Images.bytes_each  # a manifest does not say


def _size(version: str) -> float:
    size = version.partition("-")[0]
    return float(size) if size.isdigit() else 0.0


def _model(spec: ClipSpec) -> speeds.Model:
    config, precision = json.loads(spec.model_cfg), spec.backbone.precision
    size = spec.geometry.height, spec.geometry.width
    return speeds.Model.from_config(spec.name, config, *size, spec.weights_bytes, precision=precision)

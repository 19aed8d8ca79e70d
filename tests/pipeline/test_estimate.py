"""The line about the size of a run, against real files and counts by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worlds import job_config

from upl_ray.corpus.shards import Shard
from upl_ray.pipeline.estimate import describe_embedding, feature_bytes, format_bytes, mean_bytes
from upl_ray.pipeline.features import feature_table
from upl_ray.pipeline.inputs import prepare
from upl_ray.pipeline.plan import needed_features, plan_run
from upl_ray.storage.store import Store


@pytest.mark.parametrize("dim", [512, 1024])
def test_features_are_as_large_as_the_files_that_are_written(tmp_path: Path, dim: int) -> None:
    features = np.random.default_rng(0).standard_normal((1024, dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = [f"class_{i % 7}/image_{i:05}.jpg" for i in range(1024)]
    Store(str(tmp_path)).write_table("part.parquet", feature_table(ids, features.astype(np.float16), set()))
    assert 1024 * feature_bytes(dim) == pytest.approx((tmp_path / "part.parquet").stat().st_size, rel=0.1)


def test_the_size_of_an_image_in_an_archive_does_not_depend_on_the_finished_shards(tmp_path: Path) -> None:
    shards = [Shard(str(i), 100, "/in", archive=f"{i // 10}.tar", version="500000-9") for i in range(20)]
    assert mean_bytes(Store(str(tmp_path)), shards, shards) == 500
    assert mean_bytes(Store(str(tmp_path)), shards[9:11], shards) == 500


def test_the_line_counts_the_images_and_backbones_that_are_missing(short_world: Path, tmp_path: Path) -> None:
    config = job_config(short_world, tmp_path, compute={"shard_size": 50}, backbones=["demo:vit_a", "demo:rn"])
    inputs = prepare(config)
    plan = plan_run(inputs)
    files = [p for part in ("corpus", "scored") for p in (short_world / part).rglob("*.png")]
    assert len(files) == 103
    size = sum(p.stat().st_size for p in files)
    widths = {name: 2 * spec.dim + 8 for name, spec in inputs.specs.items()}
    line = describe_embedding(inputs, plan.features, needed_features(inputs, plan))
    assert line == (
        f"103 of 103 images to embed: {format_bytes(size)} to read, "
        f"{format_bytes(103 * sum(widths.values()))} of features to store"
    )
    first = inputs.corpus.shards[0]  # done by one of two backbones: to read still, and half to store
    name, other = widths
    plan.features[name].commit(first.id, rows=first.rows, parts=[], rejected={})
    features = 103 * sum(widths.values()) - first.rows * widths[name]
    line = describe_embedding(inputs, plan.features, needed_features(inputs, plan))
    assert line.startswith("103 of 103 images")
    assert line.endswith(f"{format_bytes(features)} of features to store")
    plan.features[other].commit(first.id, rows=first.rows, parts=[], rejected={})
    assert describe_embedding(inputs, plan.features, needed_features(inputs, plan)).startswith("53 of 103 images")


def test_sizes_that_a_manifest_does_not_name_are_not_guessed(short_world: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "images.txt"
    manifest.write_text("\n".join(str(p) for p in sorted((short_world / "scored").rglob("*.png"))))
    corpus = {"uri": str(manifest), "labels": "none", "roots": [str(short_world)]}
    config = job_config(
        short_world, tmp_path / "run", backbones=["demo:vit_a"], corpus=corpus, scored={"uri": "", "labels": "none"}
    )
    inputs = prepare(config)
    plan = plan_run(inputs)
    line = describe_embedding(inputs, plan.features, needed_features(inputs, plan))
    assert line.startswith("20 of 20 images to embed: bytes to read unknown, ")


def test_sizes_are_written_with_three_digits() -> None:
    sizes = {0: "0 B", 999: "999 B", 1e3: "1 kB", 2.5e9: "2.5 GB", 1.2e16: "12,000 TB"}
    assert {n: format_bytes(n) for n in sizes} == sizes

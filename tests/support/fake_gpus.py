"""Embeds pictures on a Ray cluster with four CPUs and one T4 that is only declared; see test_actors.py.

A process of its own, as the tests have another cluster. Prints one line of JSON: for each scenario the features'
digests, the log and the error.

usage: python fake_gpus.py FOLDER one_pass|too_few          with FOLDER/pictures and models FOLDER/m0, FOLDER/m1, ...
"""

import hashlib
import json
import logging
import sys
from pathlib import Path

import ray

from upl_ray.config.settings import Backbone, Compute, PoolOptions, Source
from upl_ray.corpus.shards import list_corpus
from upl_ray.errors import JobError
from upl_ray.pipeline.features import feature_step, make_features, read_features
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import resolve_backbone

ROOT = Path(sys.argv[1])
SPECS = [resolve_backbone(Backbone(model=f"local-dir:{folder}")) for folder in sorted(ROOT.glob("m?"))]
NAMES = [s.name for s in SPECS]


class Lines(logging.Handler):
    """Keeps the log's lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def scenario(name: str, backbones: int, **compute: object) -> dict[str, object]:
    """Embed with the first backbones into a storage of its own."""
    lines = Lines()
    logger = logging.getLogger("upl_ray")
    logger.handlers, logger.level = [lines], logging.INFO
    corpus = list_corpus(Store(str(ROOT / "storage" / name)), Source(uri=str(ROOT / "pictures")), 10)
    error, digests = "", {}
    try:
        settings = Compute.model_validate({"chunk_size": 4, "device": "cpu"} | compute)
        specs, everything = SPECS[:backbones], {s.id for s in corpus.shards}
        steps = {s.name: feature_step(corpus.step.store, s) for s in specs}
        make_features([corpus], specs, steps, settings, dict.fromkeys(NAMES, everything))
        for spec in SPECS[:backbones]:
            digest = hashlib.sha256()
            for shard in corpus.shards:
                ids, features = read_features(feature_step(corpus.step.store, spec), shard)
                for image_id, row in sorted(zip(ids, features, strict=True), key=lambda pair: pair[0]):
                    digest.update(image_id.encode() + row.tobytes())
            digests[spec.name] = digest.hexdigest()
    except JobError as refusal:
        error = str(refusal)
    return {"digests": digests, "log": lines.lines, "error": error}


@ray.remote(num_cpus=0, num_gpus=1)
class Stranger:
    """Another job, which holds the GPU."""

    def here(self) -> bool:
        return True


def one_pass() -> dict[str, object]:
    return {"one pass": scenario("one", 4)}


def too_few() -> dict[str, object]:
    bound = PoolOptions(gpus=1, accelerator_type="T4", label_selector={"zone": "in(a, b)"})
    whole = {NAMES[0]: bound, NAMES[1]: PoolOptions(gpus=1)}
    results: dict[str, object] = {
        "three passes": scenario("three", 3, backbones_per_gpu=1, pools=whole),
        "no such node": scenario("type", 1, pools={NAMES[0]: PoolOptions(accelerator_type="H100")}),
    }
    stranger = Stranger.remote()
    ray.get(stranger.here.remote())
    return results | {"held by others": scenario("held", 1, wait_for_resources_s=3)}


if __name__ == "__main__":
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=4, num_gpus=1, resources={"accelerator_type:T4": 1}, labels={"zone": "a"}, **quiet)
    print(json.dumps({"one_pass": one_pass, "too_few": too_few}[sys.argv[2]]()))

"""Check every node of the cluster within seconds before work starts: software, storage, images, weights, GPUs."""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from upl_ray.config.settings import Compute
from upl_ray.corpus.read import read_images
from upl_ray.corpus.shards import Corpus
from upl_ray.errors import ConfigError, JobError
from upl_ray.progress import duration
from upl_ray.storage.step import versions
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import resolve_backbone, vocabulary_sha256
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.ensemble import load_ensemble
from upl_ray.upl.rejection import MISSING

log = logging.getLogger(__name__)

SAMPLE = 4  # images of each corpus that a node reads


@dataclass(frozen=True)
class Expected:
    """The facts of the driver, which every node must share."""

    store: Store
    token: str
    samples: list[tuple[str, pa.Table]]  # (root, some rows of schema.LISTING) of each corpus
    classifier: str  # its address, if one is needed
    specs: list[ClipSpec]
    versions: dict[str, str | None]
    code: str


def preflight(
    store: Store, corpora: list[Corpus], specs: list[ClipSpec], compute: Compute, classifier: str = ""
) -> None:
    """Check every node of a cluster that this process has not started itself.

    Raises:
        ConfigError: a node has other versions, cannot reach storage, images or weights, or torch does not see its GPUs;
            a line for each, with the remedy.
        JobError: a node does not answer in time.
    """
    started = time.monotonic()
    samples = [_sample(corpus) for corpus in corpora if corpus.shards]
    expected = Expected(store, uuid.uuid4().hex, samples, classifier, specs, versions(), code_digest())
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    asked = {
        _look.options(  # asks for no CPU, so that a busy node answers, too
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
        ).remote(expected, i, bool(n["Resources"].get("GPU")) and compute.device != "cpu"): (i, n)
        for i, n in enumerate(nodes)
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=compute.wait_for_resources_s)
    if late:
        names = ", ".join(asked[task][1]["NodeManagerHostname"] for task in late)
        raise JobError(
            f"{len(late)} node(s) do not answer within compute.wait_for_resources_s = {compute.wait_for_resources_s} s "
            f"({names}); look at them, or wait longer where they must first download weights."
        )
    problems: list[str] = []
    for task in done:
        i, node = asked[task]
        try:
            found = ray.get(task) + ([] if _arrived(expected, i) else [_elsewhere(store)])
        except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
            log.warning("%-12s a node went away: %s", "preflight", node["NodeManagerHostname"])
            continue
        except ray.exceptions.RayError as error:
            found = [f"it cannot run the check: {str(error).strip().splitlines()[-1]}"]
        problems += [f"Node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {p}" for p in found]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    log.info("%-12s %d node(s) are fit for work, %s", "preflight", len(done), duration(time.monotonic() - started))


def _sample(corpus: Corpus) -> tuple[str, pa.Table]:
    """Rows of some images that the driver finds, and the folder that their files are relative to."""
    shard = corpus.shards[0]
    listing = corpus.listing(shard)
    listed = [i for i, image_id in enumerate(listing["image_id"].to_pylist()) if image_id not in shard.removed]
    rows = listing.take(pa.array(listed[:SAMPLE], pa.int64()))
    try:
        there = [i for i, data in enumerate(read_images(shard.root, rows)) if data != MISSING]
    except JobError:  # the nodes report it, and whether it is so on all of them
        return shard.root, rows
    return shard.root, rows.take(pa.array(there, pa.int64()))


def _mark(expected: Expected, index: int) -> str:
    return f"preflight/{expected.token}-{index}.json"


def _arrived(expected: Expected, index: int) -> bool:
    """True if the driver finds the file that a node has written; the file is deleted where that is allowed."""
    try:
        expected.store.read(_mark(expected, index))
    except FileNotFoundError:
        return False
    with suppress(OSError):
        expected.store.delete(_mark(expected, index))
    return True


def _elsewhere(store: Store) -> str:
    return f"what it writes to {store.uri} is not found from the driver; use object storage or a shared folder."


@ray.remote(max_retries=0)
def _look(expected: Expected, index: int, gpu: bool) -> list[str]:
    """The problems of this node, in sentences."""
    return [
        *unlike(expected.versions, versions(), expected.code, code_digest()),
        *_storage(expected, index),
        *(problem for root, rows in expected.samples for problem in _images(root, rows)),
        *(problem for spec in expected.specs for problem in _weights(spec)),
        *(_classifier(expected.classifier) if expected.classifier else []),
        *([] if not gpu or torch.cuda.is_available() else ["torch sees no GPU; check its driver and torch's build."]),
    ]


def unlike(
    there: dict[str, str | None], here: dict[str, str | None], code_there: str = "", code_here: str = ""
) -> list[str]:
    """The differences between the software of a node (here) and that of the driver (there), in sentences."""
    other = [f"{p} {here[p]} instead of {v}" for p, v in there.items() if v and here.get(p) and here[p] != v]
    found = [f"it has {', '.join(other)}; install the driver's versions (constraints.txt)."] if other else []
    if code_there != code_here:
        found.append("its upl_ray is not the driver's; install the same, or submit with --working-dir.")
    return found


def code_digest() -> str:
    """SHA-256 of the source of this package, whether it was installed or came with the job."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _storage(expected: Expected, index: int) -> list[str]:
    try:
        expected.store.write_json(_mark(expected, index), {})
    except (OSError, ImportError) as error:
        return [f"it cannot write to {expected.store.uri} ({error}); give it the rights and the variables (AWS_...)."]
    return []


def _images(root: str, rows: pa.Table) -> list[str]:
    try:
        found = read_images(root, rows)
    except (OSError, RuntimeError, ImportError) as error:
        return [f"it cannot read the images: {error}"]
    if found and all(f == MISSING for f in found):
        example = rows["image_id"][0].as_py()
        return [f"it finds none of {len(found)} images under {root}, for example {example}; give it the same folder."]
    return []


def _classifier(uri: str) -> list[str]:
    try:
        load_ensemble(uri)
    except (OSError, ImportError) as error:
        return [f"it cannot read the classifier {uri} ({error}); put it where all nodes reach it."]
    return []


def _weights(spec: ClipSpec) -> list[str]:
    try:
        found = resolve_backbone(spec.backbone)
        vocabulary = vocabulary_sha256(found.source) if spec.vocabulary_sha256 else ""
    except (ConfigError, OSError) as error:
        return [f"the weights of {spec.name} are not there: {error}"]
    ours, theirs = (spec.weights_sha256, spec.vocabulary_sha256), (found.weights_sha256, vocabulary)
    other = [name for name, a, b in zip(("weights", "vocabulary"), ours, theirs, strict=True) if a != b]
    return [f"the {name} of {spec.name} differ from the driver's; copy the same file to all nodes." for name in other]

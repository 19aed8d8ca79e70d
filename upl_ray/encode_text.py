"""Encodes class names with the labelers' text towers, each in a Ray task of its own beside a GPU if there is one."""

from __future__ import annotations

import ray
import torch

from upl_ray.artifacts import Artifact, Store
from upl_ray.clip_model import ClipModel
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute
from upl_ray.passes import plan_passes
from upl_ray.pools import cluster_nodes, in_one_sentence, resources
from upl_ray.progress import Progress
from upl_ray.text_features import text_artifact, write_text_features
from upl_ray.zero_shot import fill_template


def encode_classnames(
    store: Store, specs: list[ClipSpec], classnames: tuple[str, ...], template: str, compute: Compute
) -> None:
    """Compute and store the zero-shot class features that are missing."""
    artifacts = [(s, text_artifact(store, s, classnames, template)) for s in specs]
    todo = [(s, a) for s, a in artifacts if a.manifest() is None]
    pools = {s.name: p for planned in plan_passes([s for s, _ in todo], cluster_nodes(), compute) for s, p in planned}
    pending = []
    for spec, artifact in todo:  # tasks wait for each other's resources, so passes do not matter here
        pool = pools[spec.name]
        task = ray.remote(**(resources(pool) | {"num_cpus": 1}))(_encode)
        pending.append(task.remote(artifact, spec, fill_template(template, classnames), pool.device))
    progress = Progress("text", len(pending), "backbones")
    while pending:
        ready, pending = ray.wait(pending)
        with in_one_sentence(compute):
            ray.get(ready)
        progress.advance(len(ready))
    progress.finish()


def _encode(artifact: Artifact, spec: ClipSpec, prompts: list[str], device: str) -> None:
    torch.set_num_threads(1)
    clip = ClipModel(spec, precision="fp32", device=device)
    write_text_features(artifact, clip.encode_texts(prompts), clip.logit_scale)

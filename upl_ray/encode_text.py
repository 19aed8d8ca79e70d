"""Encodes class names with the labelers' text towers, each in a Ray task of its own beside a GPU if there is one."""

from __future__ import annotations

import ray
import torch

from upl_ray.artifacts import Artifact, Store
from upl_ray.clip_model import ClipModel
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute
from upl_ray.pools import plan_pools
from upl_ray.progress import Progress
from upl_ray.text_features import text_artifact, write_text_features
from upl_ray.zero_shot import fill_template


def encode_classnames(
    store: Store, specs: list[ClipSpec], classnames: tuple[str, ...], template: str, compute: Compute
) -> None:
    """Compute and store the zero-shot class features that are missing."""
    artifacts = [(s, text_artifact(store, s, classnames, template)) for s in specs]
    todo = [(s, a) for s, a in artifacts if a.manifest() is None]
    pool = plan_pools(len(specs), ray.cluster_resources(), compute)
    task = ray.remote(num_cpus=1, num_gpus=pool.num_gpus)(_encode)
    pending = [task.remote(a, s, fill_template(template, classnames), pool.device) for s, a in todo]
    progress = Progress("text", len(pending), "backbones")
    while pending:
        ready, pending = ray.wait(pending)
        ray.get(ready)
        progress.advance(len(ready))
    progress.finish()


def _encode(artifact: Artifact, spec: ClipSpec, prompts: list[str], device: str) -> None:
    torch.set_num_threads(1)
    clip = ClipModel(spec, precision="fp32", device=device)
    write_text_features(artifact, clip.encode_texts(prompts), clip.logit_scale)

"""Encodes class names with the labelers' text towers, each in a Ray task of its own beside a GPU if there is one."""

from __future__ import annotations

from typing import Any

import ray
import torch

from upl_ray.artifacts import Artifact, Store
from upl_ray.clip_model import ClipModel
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute
from upl_ray.passes import plan_passes
from upl_ray.pools import finish_tasks, needs_of, resources
from upl_ray.text_features import text_artifact, write_text_features
from upl_ray.watch import cluster_nodes
from upl_ray.zero_shot import all_prompts, average_templates


def encode_classnames(
    store: Store, specs: list[ClipSpec], classnames: tuple[str, ...], template: str | tuple[str, ...], compute: Compute
) -> None:
    """Compute and store the zero-shot class features that are missing, averaged where there are several templates."""
    artifacts = [(s, text_artifact(store, s, classnames, template)) for s in specs]
    todo = [(s, a) for s, a in artifacts if a.manifest() is None]
    pools = {s.name: p for planned in plan_passes([s for s, _ in todo], cluster_nodes(), compute) for s, p in planned}
    tasks = []
    for spec, artifact in todo:  # tasks wait for each other's resources, so passes do not matter here
        pool = pools[spec.name]
        task = ray.remote(**(resources(pool) | {"num_cpus": 1}))(_encode)
        tasks.append(task.remote(artifact, spec, all_prompts(template, classnames), pool.device))
    finish_tasks("text", tasks, "backbones", compute, needs_of([(s, pools[s.name]) for s, _ in todo]))


def _encode(artifact: Artifact, spec: ClipSpec, prompts: list[Any], device: str) -> None:
    torch.set_num_threads(1)
    clip = ClipModel(spec, precision="fp32", device=device)
    if isinstance(prompts[0], str):
        text_features = clip.encode_texts(prompts)
    else:
        text_features = average_templates(torch.stack([clip.encode_texts(p) for p in prompts]))
    write_text_features(artifact, text_features, clip.logit_scale)

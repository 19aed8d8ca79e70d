"""The text step: zero-shot features of class names, or of other words, by one backbone (paper, equation 1).

Shapes: C classes, D feature width.
"""

from __future__ import annotations

from typing import Any

import ray
import safetensors.torch
import torch
from torch import Tensor

from upl_ray.cluster.actors import finish_tasks, needs_of, resources
from upl_ray.cluster.placement import plan_passes
from upl_ray.cluster.watch import cluster_nodes
from upl_ray.config.settings import Compute
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.zero_shot import average_templates

FILE = "text_features.safetensors"
Texts = list[tuple[Step, list[Any]]]  # steps of one backbone, each with its prompts, see `text_step`


def text_step(store: Store, spec: ClipSpec, prompts: list[str] | list[list[str]]) -> Step:
    """Class features of one backbone, of one prompt a class or averaged over several (see `all_prompts`)."""
    return Step.of(store, "text", version=2, inputs={"clip": spec.text_identity(), "prompts": prompts})


def make_text_features(texts: list[tuple[ClipSpec, Texts]], compute: Compute) -> None:
    """Encode prompts for unfinished steps, in one Ray task for each backbone, beside a GPU if there is one."""
    specs = [spec for spec, _ in texts]
    pools = {s.name: p for planned in plan_passes(specs, cluster_nodes(), compute) for s, p in planned}
    tasks = []
    for spec, steps in texts:  # tasks wait for each other's resources, so passes do not matter here
        pool = pools[spec.name]
        task = ray.remote(**(resources(pool) | {"num_cpus": 1}))(_encode)
        tasks.append(task.remote(spec, steps, pool.device))
    finish_tasks("text", tasks, "backbones", compute, needs_of([(s, pools[s.name]) for s in specs]))


def _encode(spec: ClipSpec, texts: Texts, device: str) -> None:
    from upl_ray.upl.clip_model import ClipModel  # with open_clip; all who read text features import this module

    torch.set_num_threads(1)
    clip = ClipModel(spec, precision="fp32", device=device)
    for step, prompts in texts:
        if isinstance(prompts[0], str):
            text_features = clip.encode_texts(prompts)
        else:
            text_features = average_templates(torch.stack([clip.encode_texts(p) for p in prompts]))
        write_text_features(step, text_features, clip.logit_scale, spec.name)


def write_text_features(step: Step, text_features: Tensor, logit_scale: float, backbone: str) -> None:
    """Store class features [C, D] and the model's logit scale, and finish the step."""
    tensors = {"text_features": text_features, "logit_scale": torch.tensor(logit_scale)}
    files = step.write_file(FILE, safetensors.torch.save(tensors))
    step.finish(files=files, backbone=backbone, classes=len(text_features))


def read_text_features(step: Step) -> tuple[Tensor, float]:
    """Class features [C, D] and the model's logit scale."""
    tensors = safetensors.torch.load(step.read_file(FILE))
    return tensors["text_features"], float(tensors["logit_scale"])

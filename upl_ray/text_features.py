"""Zero-shot class features of each backbone in storage (paper, equation 1).

Shapes: C classes, D feature width.
"""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.zero_shot import all_prompts

VERSION = 1  # raise when the same prompts give other features


def text_artifact(
    store: Store, spec: ClipSpec, classnames: tuple[str, ...], template: str | tuple[str, ...]
) -> Artifact:
    """Zero-shot class features of one backbone, of one template or averaged over several."""
    identity = {"version": VERSION, "clip": spec.identity(), "prompts": all_prompts(template, classnames)}
    return Artifact(store, f"text-{spec.name}", fingerprint(identity))


def write_text_features(artifact: Artifact, text_features: Tensor, logit_scale: float) -> None:
    """Store class features [C, D] and the model's logit scale, and finish the artifact."""
    tensors = {"text_features": text_features, "logit_scale": torch.tensor(logit_scale)}
    files = artifact.write_file("text_features.safetensors", safetensors.torch.save(tensors))
    artifact.finish(files=files, classes=len(text_features))


def read_text_features(artifact: Artifact) -> tuple[Tensor, float]:
    """Class features [C, D] and the model's logit scale."""
    tensors = safetensors.torch.load(artifact.read_file("text_features.safetensors"))
    return tensors["text_features"], float(tensors["logit_scale"])

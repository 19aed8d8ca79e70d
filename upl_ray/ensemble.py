"""The learned ensemble as one safetensors file that says everything about itself.

Shapes: S members, C classes, D feature width, M context tokens, W text width, N images.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from upl_ray import integrity
from upl_ray.artifacts import Store
from upl_ray.clip_spec import ClipSpec
from upl_ray.zero_shot import ensemble_probabilities

FILE = "classifier.safetensors"


@dataclass(frozen=True)
class Ensemble:
    """Prompts, their class features and how to apply them to image features; no image encoder."""

    text_features: Tensor  # [S, C, D] float32, normalised
    ctx: Tensor  # [S, M, W] float32
    metadata: dict[str, Any]

    @property
    def classnames(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of indices."""
        return tuple(self.metadata["classnames"])

    @property
    def average(self) -> Literal["probabilities", "logits"]:
        """What is averaged over members."""
        return "logits" if self.metadata["ensemble"] == "logits" else "probabilities"

    def probabilities(self, image_features: Tensor) -> Tensor:
        """Class probabilities [N, C] of normalised image features [N, D]."""
        return ensemble_probabilities(image_features, self.text_features, self.metadata["logit_scale"], self.average)

    def member_labels(self, image_features: Tensor) -> Tensor:
        """Class index that each member alone gives [N, S] int64."""
        return torch.einsum("nd,scd->nsc", image_features.float(), self.text_features).argmax(dim=-1)


def ensemble_bytes(spec: ClipSpec, text_features: Tensor, ctx: Tensor, **metadata: Any) -> bytes:
    """The file's content; `metadata` needs classnames, logit_scale and ensemble."""
    about = {
        "format": 1,
        "model": spec.backbone.model,
        "pretrained": spec.backbone.pretrained,
        "weights_sha256": spec.weights_sha256,
        "quick_gelu": spec.quick_gelu,
        "preprocess": {**asdict(spec.geometry), "mean": spec.mean, "std": spec.std},
        "backbone": spec.backbone.model_dump(),
        **metadata,
    }
    tensors = {"text_features": text_features.contiguous(), "ctx": ctx.contiguous()}
    data = safetensors.torch.save(tensors, {"upl_ray": json.dumps(about, sort_keys=True)})
    return integrity.seal_tensors(data)


def load_ensemble(uri: str) -> Ensemble:
    """Read the prompts and class features of a classifier folder, without its image encoder.

    Raises:
        FileNotFoundError: there is no classifier under `uri`.
        Damaged: the file is not what was written, or not the one that a manifest beside it names.
    """
    store = Store(uri)
    data = integrity.open_tensors(store.read(FILE), store.join(FILE))
    _check_manifest(store, data)
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return Ensemble(tensors["text_features"], tensors["ctx"], json.loads(header["__metadata__"]["upl_ray"]))


def _check_manifest(store: Store, data: bytes) -> None:
    try:
        text = store.read("manifest.json")
    except FileNotFoundError:
        return  # a classifier that was taken out of its storage
    manifest = integrity.open_json(text, store.join("manifest.json"), place=None)  # its folder may have another name
    integrity.check(data, manifest.get("files", {}).get(FILE, ""), store.join(FILE))

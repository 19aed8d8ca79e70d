"""A backbone's identity: weights, architecture and preprocessing.

Separate from `backbones.py`, which finds it, because plans, estimates and cluster modules need the identity alone, and
importing open_clip takes seconds.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from upl_ray.config.settings import Backbone
from upl_ray.upl.images import Geometry

VERSION = 1  # raise when features of the same weights change


@dataclass(frozen=True)
class ClipSpec:
    """A backbone whose weights are found, hashed and checked, before anything is loaded."""

    backbone: Backbone
    source: str  # open_clip's model name, hf-hub: or local-dir:
    weights_sha256: str
    model_cfg: str  # canonical JSON
    geometry: Geometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool
    weights_bytes: int  # in fp32, for estimates of memory; not part of the identity
    vocabulary_sha256: str = ""  # of a model that brings its own, where text is encoded

    @property
    def name(self) -> str:
        """The backbone's name in files and tables."""
        return self.backbone.label

    @property
    def dim(self) -> int:
        """D: width of its features."""
        return int(json.loads(self.model_cfg)["embed_dim"])

    @property
    def vocabulary(self) -> float:
        """How many tokens the model knows; those of Hugging Face's text towers stand elsewhere: infinity."""
        text_cfg = json.loads(self.model_cfg)["text_cfg"]
        return math.inf if "hf_model_name" in text_cfg else text_cfg.get("vocab_size", 49408)  # open_clip's default

    def text_identity(self) -> dict[str, Any]:
        """Everything that decides about features of text; open_clip's own vocabulary has no key for it."""
        vocabulary = {"vocabulary": self.vocabulary_sha256} if self.vocabulary_sha256 else {}
        return self.identity() | vocabulary

    def identity(self) -> dict[str, Any]:
        """Everything that decides about image features, for fingerprints; the place of the weights is not part of it.

        Compiling is: it keeps values in higher precision between operations. Uncompiled ones have no key for it, so
        features that are there keep their names.
        """
        identity = {
            "version": VERSION,
            "weights": self.weights_sha256,
            "model": json.loads(self.model_cfg),
            "preprocess": [self.geometry.key, self.geometry.fill_color, list(self.mean), list(self.std)],
            "quick_gelu": self.quick_gelu,
            "precision": self.backbone.precision,
        }
        return {**identity, "compile": True} if self.backbone.compile else identity

"""How much memory a backbone's actor takes, and how much work an image is: estimates, from what is known unloaded.

Good enough to choose how many actors share a GPU, no promise: allocators, drivers and other programs take memory too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from upl_ray.clip_spec import ClipSpec
from upl_ray.speeds import image_gflops

GIB = 2**30
HOST_BASE = 1.0 * GIB  # Python with torch, open_clip and Ray; measured 0.84 GiB (torch 2.14, Ray 2.60)
CUDA_HOST_BASE = 2.0 * GIB  # the same with CUDA's libraries; an assumption
CUDA_CONTEXT = 0.5 * GIB  # of each process on the GPU; an assumption
MARGIN = 1.25  # over weights and activations, for the allocator's fragments and cuDNN's workspaces; an assumption
UNKNOWN_VALUES = 128  # activation values a pixel of models that are neither CLIP ResNets nor ViTs; RN50x64 has 115
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Memory:
    """Of one actor [bytes]."""

    host: float
    gpu: float


def memory(spec: ClipSpec, chunk_size: int, on_gpu: bool) -> Memory:
    """Memory of one actor that encodes chunks of this many images.

    Weights count in the precision they compute in. Loading holds them twice in host memory: four models in fp32 files,
    loaded on a CPU, took 2.0 times the file above the base.
    """
    value = VALUE_BYTES[spec.backbone.precision]
    working = spec.weights_bytes / 4 * value + chunk_size * pixels(spec) * activation_values(spec) * value
    if on_gpu:
        return Memory(CUDA_HOST_BASE + 2 * spec.weights_bytes, CUDA_CONTEXT + MARGIN * working)
    return Memory(HOST_BASE + max(2 * spec.weights_bytes, working), 0.0)


def views_bytes(images: int, views: int, dim: int) -> int:
    """Features of so many views of each image, as they are stored and held: in float16 [bytes]."""
    return 2 * images * views * dim


def pixels(spec: ClipSpec) -> int:
    """Pixels of one crop."""
    return spec.geometry.height * spec.geometry.width


def activation_values(spec: ClipSpec) -> float:
    """Activation values that live at once for each pixel of a crop.

    A CLIP ResNet's peak is its stem, a ViT's one MLP. Counted over all operators of an inference by a dispatch mode:
    ResNets 59 (width 64) to 115 (width 128); ViTs 12.2 (B/32), 39.4 (B/16), 66.3 (L/14), 82.1 (H/14), which is 12.6 to
    16 times width / patch**2.
    """
    vision = json.loads(spec.model_cfg)["vision_cfg"]
    if isinstance(vision.get("layers"), list):
        return float(vision.get("width", 64))
    if vision.get("patch_size") and not vision.get("timm_model_name"):
        return float(16 * vision.get("width", 768) / vision["patch_size"] ** 2)
    return UNKNOWN_VALUES


def cost(spec: ClipSpec) -> float:
    """Work of one image [10^9 operations]; see `image_gflops` for its exactness. Operations are not quite seconds."""
    vision = json.loads(spec.model_cfg)["vision_cfg"]
    return image_gflops(vision, spec.geometry.height, spec.geometry.width, spec.weights_bytes)

"""How much work a backbone is and how fast machines do it: formulas, published figures and our own measurements.

H, W: height and width of the crop [pixels]; n: tokens of an image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """What an estimate needs to know of a backbone."""

    name: str  # in files and logs
    dim: int  # feature width
    height: int  # of the crop [pixels]
    width: int
    gflops: float  # image tower, forward pass of one image [10^9 floating-point operations]
    text_width: int = 512
    text_layers: int = 12
    weights_bytes: int = 0  # of the weights file
    precision: str = "fp32"  # arithmetic of the image tower
    arch: str = ""  # open_clip's model name, where `name` is another one; finds the published speed

    @classmethod
    def from_config(
        cls, name: str, config: Mapping[str, Any], height: int, width: int, weights_bytes: int = 0, **more: Any
    ) -> Model:
        """From open_clip's model configuration (`embed_dim`, `vision_cfg`, `text_cfg`)."""
        text = config.get("text_cfg", {})
        flops = image_gflops(config.get("vision_cfg", {}), height, width, weights_bytes)
        shape = int(text.get("width", 512)), int(text.get("layers", 12))
        return cls(name, int(config["embed_dim"]), height, width, flops, *shape, weights_bytes, **more)


def image_gflops(vision: Mapping[str, Any], height: int, width: int, weights_bytes: int = 0) -> float:
    """Operations of one image through an image tower of open_clip's `vision_cfg`, forward [10^9].

    Vision transformers: products of all layers, attention and patches included; equal to open_clip's own profile
    (docs/model_profile.csv) to 0.1 %. CLIP's ResNets: all bottlenecks cost alike (half the pixels, twice the channels)
    except the first of a stage; the constant is fitted to RN50 and right to 1 % for the other four of that profile.
    Others (timm towers): as if all weights (4 bytes each) were a transformer of 16-pixel patches. A guess.
    """
    layers, channels, patch = vision.get("layers"), vision.get("width"), vision.get("patch_size")
    if isinstance(layers, list | tuple) and channels:
        return float(channels**2 * height * width * (25.4 + 2.125 * sum(layers)) / 1e9)
    if isinstance(layers, int) and channels and patch and "timm_model_name" not in vision:
        patches = (height // patch) * (width // patch)
        n = patches + 1
        layer = (8 + 4 * vision.get("mlp_ratio", 4.0)) * n * channels**2 + 4 * n**2 * channels
        return float((2 * patches * 3 * patch**2 * channels + layers * layer) / 1e9)
    return 2 * weights_bytes / 4 * height * width / 16**2 / 1e9


# The paper's eight: name, feature width, pixels, image width, layers, patch, text width (open_clip's model_configs),
# millions of parameters (its docs/model_profile.csv). OpenAI's weights files hold 2 bytes a parameter, open_clip's 4.
_EIGHT: tuple[tuple[Any, ...], ...] = (
    ("RN50", 1024, 224, 64, [3, 4, 6, 3], None, 512, 102.01),
    ("RN101", 512, 224, 64, [3, 4, 23, 3], None, 512, 119.69),
    ("RN50x4", 640, 288, 80, [4, 6, 10, 6], None, 640, 178.30),
    ("RN50x16", 768, 384, 96, [6, 8, 18, 8], None, 768, 290.98),
    ("RN50x64", 1024, 448, 128, [3, 15, 36, 10], None, 1024, 623.26),
    ("ViT-B-32", 512, 224, 768, 12, 32, 512, 151.28),
    ("ViT-B-16", 512, 224, 768, 12, 16, 512, 149.62),
    ("ViT-L-14", 768, 224, 1024, 24, 14, 768, 427.62),
)


def paper_models(precision: str = "fp32") -> tuple[Model, ...]:
    """The paper's eight backbones (arXiv 2204.03649, section 4.1)."""
    return tuple(
        Model.from_config(
            name,
            {
                "embed_dim": dim,
                "vision_cfg": {"layers": layers, "width": width, "patch_size": patch},
                "text_cfg": {"width": text},
            },
            *(pixels, pixels, round(4e6 * parameters)),
            precision=precision,
        )
        for name, dim, pixels, width, layers, patch, text, parameters in _EIGHT
    )


# Dense peaks in fp16 with fp32 sums and in plain fp32 [10^12 operations/s], and memory bandwidth [10^9 bytes/s]: the
# makers' data sheets as commonly quoted (A100 with 40 GB, H100 SXM; halved where they count sparsity). Not checked
# against the originals, and only used to scale from one GPU to another.
GPUS = {
    "RTX 3090": (71.0, 35.6, 936.0),
    "T4": (65.0, 8.1, 320.0),
    "A10G": (70.0, 31.5, 600.0),
    "L4": (121.0, 30.3, 300.0),
    "A100": (312.0, 19.5, 1555.0),
    "H100": (989.0, 67.0, 3350.0),
}
REFERENCE = "RTX 3090"

# Published, not ours: images/s of that GPU with mixed precision and channels-last in batches of 384 to 1024
# (huggingface/pytorch-image-models, results/benchmark-infer-amp-nhwc-pt240-cu124-rtx3090.csv; the rows *_clip,
# with QuickGELU for the transformers).
PUBLISHED = {
    "RN50": 2836.87,
    "RN101": 1921.47,
    "RN50x4": 889.34,
    "RN50x16": 286.91,
    "RN50x64": 98.61,
    "ViT-B-32": 4629.11,
    "ViT-B-16": 1393.62,
    "ViT-L-14": 325.79,
}
FRACTION = 0.5  # of its peak for backbones without a published speed: the smallest of the eight (0.49 to 0.74)
TRAIN_FRACTION = 0.5  # of the peak, for training: assumed; 0.4 to 0.7 on CPUs (benchmarks/README.md)

# Ours: one core of a shared AMD EPYC (AVX-512), torch 2.14, fp32: 61 to 83 for RN50, RN50x4, ViT-B-32 and ViT-B-16,
# 63 to 75 for training steps of 100 and 1,000 classes (benchmarks/README.md).
CORE_GFLOPS = 70.0

# Ours: `images.decode` and `images.center_crop` with Pillow 13.0 on one such core, fitted to Caltech-101's photographs
# (15 kB, 0.08 megapixels: 1.8 ms for 224 pixels, 10 ms for the four sizes of the eight) and to mosaics of them up to
# 370 kB and 1.2 megapixels (50 ms). Single cases differ by up to 30 %.
DECODE_S_PER_BYTE = 8e-9
DECODE_S_PER_PIXEL = 2e-9
CROP_S_PER_SOURCE_PIXEL = 7e-9  # once for each size of crop
CROP_S_PER_PIXEL = 17e-9  # of the crop
BYTES_PER_PIXEL = 0.5  # of a photograph whose size in pixels is unknown; 0.2 in Caltech-101, up to 0.8 elsewhere


def named_gpu(device: str) -> str | None:
    """The GPU above that a device's name or Ray's accelerator type means: `NVIDIA L4` is `L4`, `L40S` is none."""
    words = f" {re.sub(r'[^A-Za-z0-9]+', ' ', device)} "
    return next((gpu for gpu in GPUS if f" {gpu} " in words), None)


def images_per_s(model: Model, gpu: str) -> float:
    """Images that one GPU, or one core where `gpu` is empty, encodes in a second.

    From the reference GPU's speed to another's: the smaller of the ratios of peak and of memory bandwidth, which is
    cautious for large transformers; fp32 has a lower peak and moves twice the bytes.
    """
    if not gpu:
        return CORE_GFLOPS / model.gflops
    arch = (model.arch or model.name).removesuffix("-quickgelu")
    peak, _, bandwidth = GPUS[REFERENCE]
    reference = PUBLISHED.get(arch, 1e3 * peak * FRACTION / model.gflops)
    half, full, moved = GPUS[gpu]
    if model.precision == "fp32":
        return reference * min(full / peak, moved / bandwidth / 2)
    return reference * min(half / peak, moved / bandwidth)


def decode_s(source_bytes: float, source_pixels: float, sizes: set[tuple[int, int]]) -> float:
    """Core seconds to decode one image and crop it to each of these (height, width)."""
    crops = sum(CROP_S_PER_SOURCE_PIXEL * source_pixels + CROP_S_PER_PIXEL * h * w for h, w in sizes)
    return DECODE_S_PER_BYTE * source_bytes + DECODE_S_PER_PIXEL * source_pixels + crops


def train_step_gflops(model: Model, classes: int, n_ctx: int, tokens_per_class: float) -> float:
    """Operations of one training step of one member [10^9]: forward, and backward to the context.

    The packed pass (packed_text.py) sends the shared prefix and each class' suffix through the frozen text tower; its
    gradient needs the products with the weights once more, but not their own gradients.
    """
    tokens = 1 + n_ctx + classes * tokens_per_class
    return 4 * 12 * model.text_width**2 * model.text_layers * tokens / 1e9

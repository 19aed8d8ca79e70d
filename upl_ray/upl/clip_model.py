"""One loaded, frozen open_clip model: crops and texts -> normalised features.

Shapes: N images or texts, H, W crop height and width, D feature width.
"""

from __future__ import annotations

import math
import platform
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.factory import parse_model_name
from torch import Tensor

from upl_ray.errors import JobError, first_line
from upl_ray.upl.backbones import file_sha256, find_weights, load_tokenizer
from upl_ray.upl.clip_spec import ClipSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DAMAGED_VALUES = "its weights hold values that are no numbers: save or download them again"

Begun = tuple[Tensor, torch.cuda.Event | None]  # features, and when they will have arrived; None: they have


class ClipModel:
    """A loaded, frozen model in evaluation mode.

    Args:
        spec: the backbone.
        precision: fp32, fp16 or bf16; None: the backbone's setting, which is meant for images. Texts and prompts are
            encoded in fp32.
        device: cpu or cuda; None: cuda where torch sees a GPU.

    Raises:
        ValueError: the weights found here are not those that the job was planned with.
        JobError: the device is a GPU and torch sees none.
    """

    def __init__(self, spec: ClipSpec, precision: str | None = None, device: str | None = None) -> None:
        self.spec = spec
        precision = precision or spec.backbone.precision
        self.dtype = DTYPES[precision]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise JobError(
                f"{spec.name} was given a GPU on {platform.node()}, but torch sees no CUDA device there; install "
                f"a torch for its driver, or set compute.device to cpu if the cluster's GPUs are only declared to Ray."
            )
        found = find_weights(spec.backbone)
        if file_sha256(found.path) != spec.weights_sha256:
            raise ValueError(
                f"The weights of {spec.name} on this machine are not those that the driver saw: {found.path}."
            )
        schema, _ = parse_model_name(found.source)
        self.model = open_clip.create_model(
            found.source,
            pretrained=None if schema else str(found.path),
            precision=precision,
            device=self.device,
            quick_gelu=spec.quick_gelu,
        )
        self.model.eval().requires_grad_(False)
        self.layout = memory_layout(self.model.visual, self.device)
        self.model.visual.to(memory_format=self.layout)
        self.batch = 0  # crops that a call of the image tower is padded to
        self.tokenizer = load_tokenizer(found.source)
        self._mean = torch.tensor(spec.mean, device=self.device).view(3, 1, 1)  # [3, 1, 1]
        self._std = torch.tensor(spec.std, device=self.device).view(3, 1, 1)

    @property
    def logit_scale(self) -> float:
        """1 / temperature of the model's softmax."""
        return float(self.model.logit_scale.float().exp().item())

    def compile_images(self, batch: int) -> None:
        """Compile the image tower for calls of `batch` crops.

        Fewer crops are padded: one program for every call, so that a feature does not depend on the calls before it.

        Raises:
            JobError: it cannot be compiled here. The plain tower rounds otherwise, so it does not stand in.
        """
        self.batch = batch
        self.model.visual.compile(dynamic=False)
        geometry = self.spec.geometry
        try:
            self.encode_crops(np.zeros((batch, geometry.height, geometry.width, 3), np.uint8))
        except (JobError, torch.OutOfMemoryError):  # the first of features that are not finite
            raise
        except RuntimeError as error:
            raise JobError(
                f"The image tower of {self.spec.name} cannot be compiled on {platform.node()} "
                f"({first_line(error).rstrip('.')}); install a C++ compiler (g++) there, or set its `compile` to "
                f"false, which computes its features again."
            ) from None

    def normalize_pixels(self, crops: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 crops [N, H, W, 3] -> the model's input [N, 3, H, W] float32, as open_clip's ToTensor and Normalize."""
        x = send_pixels(torch.from_numpy(np.ascontiguousarray(crops)), self.device).permute(0, 3, 1, 2)  # [N, 3, H, W]
        x = x.to(torch.float32, memory_format=self.layout)
        return x.div_(255).sub_(self._mean).div_(self._std)  # in place: new memory costs more than the arithmetic

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """L2-normalised image features [N, D] float32 of the model's input [N, 3, H, W], on the model's device."""
        return torch.nn.functional.normalize(self.model.encode_image(pixels.to(self.dtype)).float(), dim=-1)

    def encode_crops(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """L2-normalised image features [N, D] of uint8 crops [N, H, W, 3], rounded to half precision for storage.

        Raises:
            JobError: the features are not finite in the backbone's precision.
        """
        return self.finish_crops(self.begin_crops(crops))

    @torch.inference_mode()
    def begin_crops(self, crops: npt.NDArray[np.uint8]) -> Begun:
        """Begin to encode crops, for `finish_crops`. A GPU computes what has begun one after another, meanwhile."""
        n = len(crops)
        if n < self.batch:
            crops = np.concatenate([crops, np.zeros((self.batch - n, *crops.shape[1:]), np.uint8)])
        features = self.encode_pixels(self.normalize_pixels(crops))[:n]  # [N, D]
        features = features.half().to("cpu", non_blocking=True)  # from a GPU into pinned memory
        return features, torch.cuda.current_stream().record_event() if self.device.type == "cuda" else None

    def finish_crops(self, begun: Begun) -> npt.NDArray[np.float16]:
        """Wait for the features [N, D] of crops that `begin_crops` was called with; see `encode_crops`."""
        features, arrived = begun
        if arrived:
            arrived.synchronize()
        if not (features.isfinite().all() and features.any(dim=1).all()):
            remedy = "set its precision to fp32" if self.dtype != torch.float32 else DAMAGED_VALUES
            raise JobError(f"{self.spec.name} gives features that are zero or not finite in {self.dtype}; {remedy}.")
        return features.numpy()

    @torch.inference_mode()
    def encode_texts(self, texts: list[str], batch_size: int = 256) -> Tensor:
        """L2-normalised text features [N, D] float32 on the CPU, by the model's own `encode_text`.

        Raises:
            JobError: they, or the logit scale, are not finite, or they are all equal.
        """
        tokens = self.tokenizer(texts).to(self.device)  # [N, context length]
        encoded = torch.cat([self.model.encode_text(t).float() for t in tokens.split(batch_size)])
        features = torch.nn.functional.normalize(encoded, dim=-1).cpu()
        if not (features.isfinite().all() and math.isfinite(self.logit_scale)):
            raise JobError(
                f"{self.spec.name} gives text features, or a logit scale, that are not finite; {DAMAGED_VALUES}."
            )
        if len(features) > 1 and bool((features == features[0]).all()):
            raise JobError(f"{self.spec.name} gives equal features to all texts; {DAMAGED_VALUES}.")
        return features


def memory_layout(tower: torch.nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last for a convolutional tower on a GPU, whose tensor cores compute in it.

    A transformer has one convolution, that of its patches, and gains nothing.
    """
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in tower.modules())
    return torch.channels_last if device.type == "cuda" and convolutions > 1 else torch.contiguous_format


def send_pixels(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels on the device. To a GPU they travel from pinned memory, beside computations that have begun before."""
    if device.type != "cuda":
        return pixels.to(device)
    computing, copying = torch.cuda.current_stream(), _copy_stream()
    with torch.cuda.stream(copying):
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    computing.wait_stream(copying)
    pixels.record_stream(computing)  # the allocator must not give their memory away before they are read
    return pixels


@lru_cache
def _copy_stream() -> torch.cuda.Stream:
    """One a process: the allocator keeps memory for each stream."""
    return torch.cuda.Stream()

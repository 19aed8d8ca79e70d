"""CUDA that is only claimed: tensors that say they lie on `cuda:0`, lie here, and refuse to meet others.

Real code runs on them with real values and the dtypes of a GPU (autocast for CUDA, too), on a machine without one. The
backward pass does not: PyTorch's engine asks the driver for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from upl_ray.upl import clip_model
from upl_ray.upl.clip_model import ClipModel, memory_layout

CUDA = torch.device("cuda:0")
# CUDA lets these read from one device and write to another, and index by a tensor on the CPU.
BETWEEN_DEVICES = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_")


class Claimed(torch.Tensor):
    """A tensor that claims to lie on `CUDA`; `content` is where it lies."""

    content: torch.Tensor

    @staticmethod
    def __new__(cls, content: torch.Tensor) -> Claimed:
        make = torch.Tensor._make_subclass
        made = make(cls, content.detach(), content.requires_grad, dispatch_device=True, device_for_backend_keys=CUDA)
        made.content = content.detach()
        return made

    def tolist(self) -> Any:
        return self.content.tolist()

    def record_stream(self, stream: Any) -> None:
        """Nothing: its memory is not that of a stream."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations without a claimed tensor, of which some make one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(function, args, kwargs or {})


def dispatch(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation here, and claim its results if a GPU would hold them.

    Raises:
        RuntimeError: it would read tensors of both devices, which CUDA refuses.
    """
    if function is torch.ops.prim.device.default:
        return CUDA if isinstance(args[0], Claimed) else args[0].device
    if function is torch.ops.aten.pin_memory.default:  # asks the driver
        return args[0]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_cuda = [isinstance(x, Claimed) for x in tensors]
    name, target = function._schema.name, kwargs.get("device")
    here = [x for x, claimed in zip(tensors, on_cuda, strict=True) if x.dim() and not claimed]
    if any(on_cuda) and here and name not in BETWEEN_DEVICES:
        raise RuntimeError(f"{name} would read tensors on cuda:0 and cpu")
    stripped_args, stripped = tree_map(lambda x: x.content if isinstance(x, Claimed) else x, (args, kwargs))
    found = function(*stripped_args, **(stripped if target is None else {**stripped, "device": torch.device("cpu")}))
    if function._schema.is_mutable and name.endswith("_"):
        return args[0]
    claims = any(on_cuda) if target is None else torch.device(target).type == "cuda"
    return tree_map(lambda x: Claimed(x) if isinstance(x, torch.Tensor) and claims else x, found)


@contextmanager
def claimed_cuda() -> Iterator[None]:
    """Within it, `cuda:0` can be named; torch's own questions to the driver are answered for it."""
    torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does
    torch._C._set_only_lift_cpu_tensors(True)
    answers = {"_lazy_init": None, "is_available": True, "is_bf16_supported": True, "current_device": 0}
    patches = [mock.patch(f"torch.cuda.{name}", return_value=value) for name, value in answers.items()]
    patches += [mock.patch("torch.cuda.stream", nullcontext), mock.patch("torch.cuda.current_stream")]
    patches += [mock.patch.object(clip_model, "_copy_stream")]
    for patch in patches:
        patch.start()
    try:
        with _Mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        for patch in patches:
            patch.stop()


def to_cuda(clip: ClipModel) -> ClipModel:
    """A loaded model with everything that its constructor puts on its device claimed; the same object."""
    clip.device, clip.layout = CUDA, memory_layout(clip.model.visual, CUDA)
    clip.model.visual.to(memory_format=clip.layout)
    for module in clip.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(Claimed(parameter.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Claimed(buffer)
    for name, value in vars(clip).items():
        if isinstance(value, torch.Tensor):
            setattr(clip, name, Claimed(value))
    return clip

"""Tensors as one safetensors file that shows when it is damaged: the hash of all tensors stands in its metadata."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from upl_ray.errors import JobError
from upl_ray.storage.store import damaged

SHA256 = 64  # letters
KEY = "upl_ray"  # the only key: safetensors writes several in another order each time


def save_tensors(tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> bytes:
    """The content of a safetensors file; equal tensors and values give equal bytes.

    Args:
        tensors: by name.
        about: JSON values for readers; with the hash under `sha256` they are the metadata `upl_ray`.
    """
    about = about or {}
    text = json.dumps({**about, "sha256": _digest(tensors, about)}, sort_keys=True)
    return safetensors.torch.save(tensors, {KEY: text})


def load_tensors(data: bytes, where: str, remedy: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the values that `save_tensors` wrote.

    Raises:
        JobError: an older version wrote it, without a hash.
        Damaged: the content is not what was written; names `where`, and to delete `remedy`, or else `where`.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = dict(json.loads(header["__metadata__"][KEY]))
        if not any(isinstance(v, str) and len(v) == SHA256 for v in about.values()):  # whatever it is called by damage
            raise JobError(f"{where} was written by an older version. Delete it and run its job again, which makes it.")
        whole = about.pop("sha256") == _digest(tensors, about)
    except (SafetensorError, ValueError, TypeError, LookupError, RecursionError):
        raise damaged(where, remedy) from None
    if not whole:
        raise damaged(where, remedy)
    return tensors, about


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """SHA-256 over the values, and over names, types, shapes and bytes of the tensors."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()

"""Effect of half precision, TF32 and compiling on image features and zero-shot labels.

python -m benchmarks.precision
python -m benchmarks.precision --folder photos/ --images 2000    # features only: the demo's classes are digits

The demo's three backbones on its 1,797 handwritten digits, or on photographs, against fp32 on the same device. TF32 is
a GPU's arithmetic: on a CPU it is emulated by rounding the factors of every matrix product, convolution and attention
to 10 bits of mantissa.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.embed import pick
from benchmarks.measure import hardware, report
from upl_ray.config.settings import Backbone
from upl_ray.demo.digits import CLASSNAMES, write_digits
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.images import Geometry, center_crop, decode
from upl_ray.upl.rejection import Rejected

BATCH = 64
PRODUCTS = ("linear", "matmul", "conv2d", "scaled_dot_product")  # as inference mode names them
ARITHMETIC = ("fp16", "bf16", "tf32", "fp32 compiled", "bf16 compiled")


class RoundedProducts(TorchDispatchMode):
    """Rounds the factors of products to TF32; vectors, which are biases, stay."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(product in function._schema.name for product in PRODUCTS):
            args = tree_map(lambda x: to_tf32(x) if isinstance(x, Tensor) and x.dim() > 1 else x, args)
        return function(*args, **(kwargs or {}))


def to_tf32(x: Tensor) -> Tensor:
    """Float32 rounded to 10 of 23 bits of mantissa, as tensor cores read it."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def tf32(device: str) -> Iterator[None]:
    """Allow TF32 on a GPU, or emulate it."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        yield
        torch.backends.cuda.matmul.allow_tf32 = False
        return
    with RoundedProducts():  # type: ignore[no-untyped-call]
        yield


def chunks_of(files: list[Path], geometry: Geometry) -> list[npt.NDArray[np.uint8]]:
    """Crops [n, H, W, 3] of images in chunks; those that are rejected are left out."""
    crops = []
    for file in files:
        with suppress(Rejected):
            crops.append(center_crop(decode(file.read_bytes()), geometry))
    return [np.stack(crops[i : i + BATCH]) for i in range(0, len(crops), BATCH)]


def features_of(spec: ClipSpec, arithmetic: str, device: str, chunks: list[Any]) -> npt.NDArray[np.float32]:
    """Features [N, D] of crops in one arithmetic."""
    clip = ClipModel(spec, arithmetic.replace("tf32", "fp32").split()[0], device)
    if "compiled" in arithmetic:
        clip.compile_images(BATCH)
    with tf32(device) if arithmetic == "tf32" else nullcontext():
        return np.concatenate([clip.encode_crops(c) for c in chunks]).astype(np.float32)


def measure(name: str, files: list[Path], device: str, digits: bool) -> list[dict[str, Any]]:
    """A row for each arithmetic of one backbone."""
    spec = resolve_backbone(Backbone(model=f"demo:{name}"))
    chunks = chunks_of(files, spec.geometry)
    exact = features_of(spec, "fp32", device, chunks)
    texts = ClipModel(spec, "fp32", device).encode_texts([f"a photo of the digit {n}." for n in CLASSNAMES])
    labels = (exact @ texts.numpy().T).argmax(1)
    rows = []
    for arithmetic in ARITHMETIC:
        found = features_of(spec, arithmetic, device, chunks)
        cosine = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
        row: dict[str, Any] = {"backbone": name, "arithmetic": arithmetic, "images": len(exact)}
        row |= {"1 - mean cosine": float(1 - cosine.mean()), "1 - worst": float(1 - cosine.min())}
        if digits:
            now = (found @ texts.numpy().T).argmax(1)
            true = np.array([CLASSNAMES.index(f.parent.name) for f in files])
            shares = {"labels changed": now != labels, "right": now == true, "right in fp32": labels == true}
            row |= {f"{column} [%]": f"{100 * share.mean():.2f}" for column, share in shares.items()}
        rows.append(row)
    return rows


def main() -> None:
    """Rows of the demo's three backbones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="photographs, nested; else the demo's digits")
    parser.add_argument("--images", type=int, default=2000, help="photographs")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.folder:
            files = sorted(pick(args.folder, args.images, root / "photos").iterdir())
        else:
            write_digits(root / "digits")
            files = sorted((root / "digits").rglob("*.png"))
        rows = [r for name in ("vit_a", "vit_b", "rn") for r in measure(name, files, device, not args.folder)]
    report("precision", rows, hardware=hardware(device), torch=torch.__version__)


if __name__ == "__main__":
    main()

"""Rate of image encoding on one device: precisions, compiled towers, and two threads against one call at a time.

python -m benchmarks.encode --models RN50 ViT-B-16 --precision fp32 fp16 bf16 --compile

open_clip's architectures with random weights, random pixels, chunks of 64 as the feature step makes them. `alone`: each
chunk is sent, computed and fetched before the next. `overlapped`: the actor's own call by two threads, as Ray Data
calls actors on GPUs. Medians of interleaved rounds, without compiling. Reading and decoding are left out: see `embed`.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.embed import random_weights
from benchmarks.measure import hardware, interleaved, report
from upl_ray.config.settings import Compute
from upl_ray.pipeline.features import Encoder
from upl_ray.upl.clip_spec import ClipSpec

CHUNK = Compute().chunk_size


def measure(spec: ClipSpec, device: str, chunks: int, repeats: int) -> dict[str, Any]:
    """Images a second of one backbone, both ways."""
    encoder, g = Encoder(spec, "features", True, device, CHUNK), spec.geometry
    crops = np.random.default_rng(0).integers(0, 256, (CHUNK, g.height, g.width, 3), dtype=np.uint8)
    rows = [{g.key: crops} for _ in range(chunks)]

    def alone() -> None:
        for row in rows:
            encoder(row)

    def overlapped() -> None:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(encoder, rows))

    sides = {"alone": alone, "overlapped": overlapped} if device == "cuda" else {"alone": alone}
    times = interleaved(sides, repeats)
    return {f"{side} [images/s]": chunks * CHUNK / median(seconds) for side, seconds in times.items()}


def main() -> None:
    """A row for each model and precision, plain and compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["RN50", "ViT-B-16"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "fp16", "bf16"], default=["fp32"])
    parser.add_argument("--compile", action="store_true", help="also with compiled towers")
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            spec = random_weights(model, Path(folder))
            for precision in args.precision:
                for compiled in (False, True)[: 1 + args.compile]:
                    backbone = spec.backbone.model_copy(update={"precision": precision, "compile": compiled})
                    row = {"model": model, "precision": precision, "compiled": compiled}
                    row |= measure(replace(spec, backbone=backbone), device, args.chunks, args.repeats)
                    rows.append(row)
    report("encode", rows, hardware=hardware(device), torch=torch.__version__)


if __name__ == "__main__":
    main()

"""All that is to be measured on a GPU, in one run: encoders, prompt steps, an ensemble of 1,000 classes, the GPU tests.

make bench-gpu                                    # or: python -m benchmarks.gpu
make bench-gpu ARGS=--quick                       # two backbones, 100 classes
python -m benchmarks.gpu --parts encoder --backbones ViT-L-14-quickgelu --precision fp16 bf16

The first GPU that torch sees; `CUDA_VISIBLE_DEVICES` picks another. Nothing else should use it meanwhile. Each backbone
and precision, and each part, has a process to itself, so that peaks of memory are its own.

`encoder`: the actor of the feature step (`Encoder`) on chunks of random pixels, without Ray Data and decoding, and a
bare loop: `encode_image` on pixels that lie on the device already. Both in interleaved rounds, medians. `forward` is
the time between the CUDA events before and after the encoder's passes through the image tower, `busy` the share of its
time in which a kernel runs (`measure.busy_share`). Peaks of memory are those of the encoder, before the bare loop;
beside each lies the plan of `placement.memory`, and the values of its constants that would have planned exactly this.
`prompts` is `benchmarks.prompt_step`, `ensemble` is `benchmarks.training`, `tests` is `pytest tests/upl/test_gpu.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.embed import random_weights
from benchmarks.measure import busy_share, hardware, interleaved, peak_host_gib, report, seconds_of
from upl_ray.cluster import placement
from upl_ray.cluster.placement import GIB
from upl_ray.config.settings import Backbone, Compute
from upl_ray.pipeline.features import Encoder
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import DTYPES
from upl_ray.upl.clip_spec import ClipSpec

ROOT = Path(__file__).resolve().parents[1]
# The paper's models; OpenAI's weights need QuickGELU.
BACKBONES = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14")
PARTS = ("encoder", "prompts", "ensemble", "tests")
CHUNKS = 4  # different chunks of pixels, taken in turn


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    backbones: tuple[str, ...]
    batch: int  # images of a chunk
    seconds: float  # of one side in one round
    prompts: tuple[str, ...]  # runs of benchmarks.prompt_step
    ensemble: str  # run of benchmarks.training


FULL = Size(
    backbones=tuple(f"{name}-quickgelu" for name in BACKBONES),
    batch=Compute().chunk_size,
    seconds=1.0,
    prompts=(
        "--classes 10 100 --members 1 16 --precision fp32 bf16",
        "--classes 1000 --members 1 --precision fp32 bf16",
    ),
    ensemble="--classes 1000 --precision fp32 bf16 --repeats 2",
)
QUICK = Size(
    backbones=("RN50-quickgelu", "ViT-B-32-quickgelu"),
    batch=FULL.batch,
    seconds=0.5,
    prompts=("--classes 10 100 --members 1 --precision fp32 bf16",),
    ensemble="--classes 100 --precision fp32 bf16 --repeats 2",
)
CHECK = Size(  # that every line runs, on CPUs
    backbones=QUICK.backbones,
    batch=2,
    seconds=0.2,
    prompts=("--classes 3 --members 1 2 --precision fp32 bf16 --repeats 1",),
    ensemble="--classes 2 --precision fp32 bf16 --repeats 1",
)


# One backbone in one precision, in a process to itself.


class ForwardClock:
    """Time that passes through a module take, by CUDA events on a GPU and by the clock elsewhere."""

    def __init__(self, module: torch.nn.Module, device: str) -> None:
        self.device = device
        self.marks: list[Any] = []  # before, after, before, after, ...
        module.register_forward_pre_hook(self._mark)
        module.register_forward_hook(self._mark)

    def _mark(self, *_: Any) -> None:
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def take(self) -> float:
        """Seconds since the last call of this method, which follows a synchronisation."""
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))
        assert pairs, "no image passed the tower that is timed"
        self.marks.clear()
        cuda = self.device == "cuda"
        return float(sum(a.elapsed_time(b) / 1e3 if cuda else b - a for a, b in pairs))


def measure_encoder(spec: ClipSpec, device: str, batch: int, seconds: float, repeats: int = 3) -> dict[str, Any]:
    """Speed and memory of one backbone's actor, and the bare loop's speed; a side takes about `seconds` in a round."""
    height, width = spec.geometry.height, spec.geometry.width
    pixels = np.random.default_rng(0).integers(0, 256, (CHUNKS, batch, height, width, 3), dtype=np.uint8)
    pixels.setflags(write=False)  # as Ray's are
    chunks = [{spec.geometry.key: chunk} for chunk in pixels]
    encoder = Encoder(spec, "features", True, device, batch)
    for chunk in chunks:
        encoder(chunk)
    memory = memory_row(spec, device, batch)

    each = seconds_of(partial(encoder, chunks[0]))
    calls = max(2, round(seconds / each))
    model, clock = encoder.clip.model, ForwardClock(encoder.clip.model.visual, device)
    ready = torch.randn(batch, 3, height, width, device=device).to(DTYPES[spec.backbone.precision])
    forward: list[float] = []

    def encode() -> None:
        for i in range(calls):
            encoder(chunks[i % CHUNKS])

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(calls):
            model.encode_image(ready)

    sides = {"encoder": encode, "forward": lambda: forward.append(clock.take()), "bare": bare, "rest": clock.take}
    rounds = interleaved(sides, repeats)
    rates = {side: calls * batch / median(rounds[side]) for side in ("bare", "encoder")}
    shares = [f / s for f, s in zip(forward[1:], rounds["encoder"], strict=True)]  # the first: warm-up
    speed = {
        "bare [images/s]": rates["bare"],
        "forward [images/s]": rates["encoder"] / median(shares),
        "encoder [images/s]": rates["encoder"],
        "of bare": rates["encoder"] / rates["bare"],
        "of forward": median(shares),
        "busy": busy_share(encode, device),
    }
    return {"speed": speed, "memory": memory, "hardware": hardware(device)}


def memory_row(spec: ClipSpec, device: str, batch: int) -> dict[str, float]:
    """Peaks of memory of this process so far beside those planned [GiB], and placement's constants as measured."""
    planned = placement.memory(spec, batch, on_gpu=device == "cuda")
    host = peak_host_gib()
    base = "CUDA_HOST_BASE" if device == "cuda" else "HOST_BASE"
    row = {
        "host [GiB]": host,
        "planned host [GiB]": planned.host / GIB,
        f"{base} [GiB]": host - (planned.host - getattr(placement, base)) / GIB,
    }
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        reserved = torch.cuda.max_memory_reserved()
        working = (planned.gpu - placement.CUDA_CONTEXT) / placement.MARGIN
        row |= {
            "tensors [GiB]": torch.cuda.max_memory_allocated() / GIB,
            "GPU [GiB]": (reserved + context) / GIB,
            "planned GPU [GiB]": planned.gpu / GIB,
            "CUDA_CONTEXT [GiB]": context / GIB,
            "MARGIN": reserved / working,
        }
    return row


# The parts.


def encoder_part(size: Size, backbones: list[str], precisions: list[str], device: str) -> Iterator[str]:
    """Print a table of speeds and one of memory; yields a sentence for each backbone and precision that failed."""
    found: list[dict[str, Any]] = []
    for architecture in backbones:
        with tempfile.TemporaryDirectory() as folder:
            random_weights(architecture, Path(folder))
            for precision in precisions:
                name = {"backbone": architecture, "precision": precision}
                done = run_encoder(Path(folder) / architecture, precision, size, device)
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                    yield f"{architecture} in {precision} (status {done.returncode}): {reason}"
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                found.append({**row, "speed": name | row["speed"], "memory": name | row["memory"]})
                show(f"{architecture} {precision}: {row['speed']['encoder [images/s]']:.3g} images/s")
    if found:
        facts = {"batch": size.batch, "hardware": found[0]["hardware"], "torch": torch.__version__}
        report("encoder", [row["speed"] for row in found], **facts)
        report_memory([row["memory"] for row in found], facts)


def run_encoder(folder: Path, precision: str, size: Size, device: str) -> subprocess.CompletedProcess[str]:
    """`measure_encoder` in a process to itself."""
    options = {"--one": folder, "--precision": precision, "--device": device, "--batch": size.batch}
    arguments = [str(a) for option in (options | {"--seconds": size.seconds}).items() for a in option]
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(device), capture_output=True, text=True, check=False)


def report_memory(rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Print the table of memory, and each constant of placement beside the largest value measured."""
    gib = ("HOST_BASE", "CUDA_HOST_BASE", "CUDA_CONTEXT")
    assumed = {f"{name} [GiB]": getattr(placement, name) / GIB for name in gib} | {"MARGIN": placement.MARGIN}
    largest = {name: max(row[name] for row in rows) for name in assumed if name in rows[0]}
    report("encoder memory", rows, **facts, assumed=assumed, largest=largest)
    for name, value in largest.items():
        show(f"placement.py has {name} {assumed[name]:.3g}; the largest measured is {value:.3g}")


def environment(device: str) -> dict[str, str]:
    """The environment of a part; without GPUs where the CPU is asked for."""
    return os.environ | ({} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})


def run_module(module: str, arguments: str, device: str) -> Iterator[str]:
    """Run a module, which prints its own tables; yields a sentence if it failed."""
    command = [sys.executable, "-m", module, *arguments.split()]
    status = subprocess.run(command, cwd=ROOT, env=environment(device), check=False).returncode
    print(json.dumps({"ran": " ".join(command[1:]), "status": status}), flush=True)
    if status:
        yield f"{' '.join(command[1:])} (status {status})"


def run_parts(args: argparse.Namespace, size: Size) -> Iterator[str]:
    """Run the chosen parts one after the other; yields a sentence for everything that failed."""
    for part in args.parts:
        show(f"\n== {part}")
        if part == "encoder":
            yield from encoder_part(size, args.backbones or list(size.backbones), args.precision, args.device)
        elif part == "prompts":
            for arguments in size.prompts:
                yield from run_module("benchmarks.prompt_step", arguments, args.device)
        elif part == "ensemble":
            yield from run_module("benchmarks.training", size.ensemble, args.device)
        else:
            yield from run_module("pytest", "tests/upl/test_gpu.py -rs", args.device)


def show(line: str) -> None:
    """Print at once, as parts print to the same place."""
    print(line, flush=True)


def main() -> int:
    """Run the parts; 0: all ran, 1: some failed, 2: torch sees no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two backbones and 100 classes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--backbones", nargs="+", help="of open_clip; default: the paper's eight, with QuickGELU")
    parser.add_argument(
        "--precision", nargs="+", choices=list(DTYPES), default=["fp32", "bf16", "fp16"], help="of encoders"
    )
    parser.add_argument("--batch", type=int, help="images of a chunk; default: compute.chunk_size")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: only check that all of it runs")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no GPU on this machine; run this where there is an NVIDIA GPU with a "
            f"driver for CUDA {torch.version.cuda}, or with --device cpu (make bench-gpu ARGS='--device cpu') only to "
            f"check that the benchmark runs.",
            file=sys.stderr,
        )
        return 2
    if args.one:
        backbone = Backbone(model=f"local-dir:{args.one}", name=args.one.name, precision=args.precision[0])
        print(json.dumps(measure_encoder(resolve_backbone(backbone), args.device, args.batch, args.seconds)))
        return 0
    size = CHECK if args.device == "cpu" else QUICK if args.quick else FULL
    if args.batch:
        size = replace(size, batch=args.batch)
    failed = list(run_parts(args, size))
    for sentence in failed:
        show(f"failed: {sentence}")
    show(f"\n{'Some parts failed' if failed else 'All parts ran'}: {' '.join(args.parts)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

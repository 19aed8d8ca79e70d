"""Timing of alternatives in one interleaved run, the machine's own matmul peak, busy shares and memory."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each side in every round; a round runs each side once, so that both meet the same disturbances.

    Without `warm_up` the caller has made each side's allocations and threads already.
    """
    for side in sides.values() if warm_up else ():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(seconds_of(side))
    return times


def seconds_of(side: Callable[[], Any]) -> float:
    """Wall clock seconds of one call."""
    synchronize()
    start = time.perf_counter()
    side()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(dtype: torch.dtype, device: str, repeats: int = 3) -> float:
    """Best measured rate of a large square matrix product in this precision [FLOP/s]; larger on a GPU, to fill it."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(partial(torch.matmul, a, b)) for _ in range(repeats))


def busy_share(side: Callable[[], Any], device: str) -> float:
    """Share of one call's wall clock in which a kernel runs on the GPU, or on CPUs an operator of torch.

    By torch's profiler, whose own work makes calls with many small kernels look a little less busy. Copies to and from
    the GPU do not count. NaN: the profiler saw nothing.
    """
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    for _ in range(2):  # the first starts the profiler
        with profile(activities=[activity]) as trace:
            seconds = seconds_of(side)
    work = [
        (e.time_range.start, e.time_range.end)
        for e in trace.events()
        if e.device_type.name == device.upper()
        and not e.is_user_annotation
        and not e.name.startswith(("Memcpy", "Memset"))
    ]
    return covered(work) / 1e6 / seconds if work else math.nan


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals that may overlap."""
    total, until = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def peak_host_gib() -> float:
    """Largest resident memory of this process so far [GiB]; `ru_maxrss` would begin with that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def hardware(device: str) -> str:
    """Name of the processor that computed."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"


def report(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Print a small table of the rows and one line of JSON."""
    columns = list(rows[0])
    cells = [[_cell(r[c]) for c in columns] for r in rows]
    widths = [max(len(c), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
    for row in [columns, *cells]:
        print("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)))
    print(json.dumps({"benchmark": name, **facts, "rows": rows}))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

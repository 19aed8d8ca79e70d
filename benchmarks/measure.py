"""Timing of alternatives in one interleaved run, and the machine's own matmul peak."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side in every round; a round runs each side once, so that both meet the same disturbances."""
    for side in sides.values():
        side()  # warm-up: allocations, threads
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


def matmul_rate(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 3) -> float:
    """Best measured rate of a large square matrix product in this precision [FLOP/s]."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(partial(torch.matmul, a, b)) for _ in range(repeats))


def hardware(device: str) -> str:
    """Name of the processor that computed."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
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

"""One training step of many classes, on one worker and on several that share the classes, one thread each.

python -m benchmarks.class_shares --classes 2000 --workers 2

RN50's text tower with random weights, 16 context tokens, batch 32, ImageNet's class names, one member, fp32. Each round
runs a step on one worker, while the others wait, and then one on all of them. CPU seconds are the busiest worker's:
beside others on the same cores they say more than the clock does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from benchmarks.measure import hardware, report, seconds_of
from benchmarks.memory import class_names
from benchmarks.prompt_step import BATCH, LOGIT_SCALE, N_CTX, RandomClip
from upl_ray.config.settings import Train
from upl_ray.upl.class_shares import ClassShares
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner


def make_learner(clip: RandomClip, names: tuple[str, ...], shares: ClassShares) -> PromptLearner:
    """One member that learns from one batch."""
    generator = torch.Generator().manual_seed(0)
    return PromptLearner(
        PromptEncoder(clip, names[shares.own], N_CTX),  # type: ignore[arg-type]
        nn.functional.normalize(torch.randn(BATCH, 1, 1024, generator=generator), dim=-1),
        torch.randint(len(names), (BATCH,), generator=generator),
        [0],
        Train(),
        LOGIT_SCALE,
        shares=shares,
    )


def measure_step(step: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds of the slowest worker, between two moments at which all are there."""
    dist.barrier()
    start = time.process_time()
    seconds = torch.tensor([seconds_of(step), time.process_time() - start])
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds[0]), float(seconds[1])


def run_worker(rank: int, args: argparse.Namespace, folder: str) -> None:
    """Body of one process; the first prints the row."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=args.workers)
    clip, names = RandomClip("cpu"), class_names(args.classes)
    shared = make_learner(clip, names, ClassShares(len(names), rank, args.workers))
    alone = make_learner(clip, names, ClassShares(len(names))) if rank == 0 else None
    times: dict[str, list[tuple[float, float]]] = {"one": [], "all": []}
    for _ in range(1 + args.repeats):
        times["one"].append(measure_step(lambda: alone.train_epoch(1) if alone else None))
        times["all"].append(measure_step(lambda: shared.train_epoch(1)))
    if alone:
        one, every = (list(zip(*times[side][1:], strict=True)) for side in ("one", "all"))  # the first: warm-up
        row: dict[str, object] = {"classes": len(names), "workers": args.workers}
        for side, (seconds, cpu) in {"one": one, "all": every}.items():
            row |= {f"{side} [s]": median(seconds), f"{side}, best [s]": min(seconds), f"{side}, CPU [s]": median(cpu)}
        row["ratio"] = median(one[0]) / median(every[0])
        row["ratio, CPU"] = median(one[1]) / median(every[1])
        row["contexts differ"] = float((alone.ctx - shared.ctx).detach().abs().max())
        report("class_shares", [row], hardware=hardware("cpu"), torch=torch.__version__)
    dist.destroy_process_group()


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start_processes(run_worker, (args, folder), nprocs=args.workers, start_method="spawn")


if __name__ == "__main__":
    main()

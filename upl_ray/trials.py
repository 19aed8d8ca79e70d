"""Plans the trials of the members: into how many groups they are split, and what one worker of a group asks for."""

from __future__ import annotations

from collections.abc import Sequence

from upl_ray.config import Compute, JobError
from upl_ray.passes import Node

TRAIN_WORKER_CPU = 0.9  # leaves room for the trial's driver: whole CPUs for all workers would wait for ever


def plan_trials(
    members: Sequence[int], nodes: Sequence[Node], compute: Compute
) -> tuple[list[list[int]], dict[str, float]]:
    """Split the members into as many groups as can run at once, and say what one worker of a group takes.

    Raises:
        JobError: no node, or not enough of them, can hold the workers of one trial.
    """
    gpus = compute.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if any(n.gpus >= 1 for n in nodes) else 0.0
    slots = sum(_slots(n, gpus) for n in nodes)
    workers = compute.workers_per_trial
    kind = f"{gpus:g} GPU(s) and a CPU" if gpus else "a CPU"
    if slots == 0:
        raise JobError(
            f"A trial needs a node with {kind} and none of the cluster's {len(nodes)} node(s) is one at present; start "
            f"one, or change compute.gpus_per_trial."
        )
    if workers > slots:
        raise JobError(
            f"compute.workers_per_trial is {workers}, but the cluster has room for {slots} workers of {kind} each; "
            f"lower it or add nodes."
        )
    trials = min(compute.trials or len(members), max(1, slots // workers), len(members))
    groups = [list(members[i::trials]) for i in range(trials)]
    cpus = 1.0 if workers == 1 else TRAIN_WORKER_CPU
    return groups, {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def _slots(node: Node, gpus: float) -> int:
    """Workers that one node can hold at once; a GPU's share lies on one GPU, whole ones may be several."""
    on_gpus = int(node.gpus) * int(1 / gpus + 1e-6) if 0 < gpus <= 1 else int(node.gpus / gpus) if gpus else int(1e9)
    return min(int(node.cpus), on_gpus)

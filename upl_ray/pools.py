"""Fits actor pools into the cluster, and Ray Data's settings that every step needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import ray.data

from upl_ray.config import Compute


@dataclass(frozen=True)
class Pool:
    """Resources of one backbone's actors."""

    num_cpus: float
    num_gpus: float
    max_actors: int

    @property
    def device(self) -> str:
        """Where its actors compute; Ray does not hide GPUs from actors that asked for none."""
        return "cuda" if self.num_gpus else "cpu"


def plan_pools(n_backbones: int, cluster: dict[str, float], compute: Compute) -> Pool:
    """Fit one actor pool for each backbone into the cluster, leaving two CPUs to read, decode and write.

    GPU actors take no CPU: actors that hold every CPU starve the decoding tasks and the job hangs. On few CPUs without
    a GPU the actors run beside the tasks for the same reason.
    """
    gpus, cpus = cluster.get("GPU", 0.0), cluster.get("CPU", 1.0)
    share = compute.gpus_per_backbone
    if share is None:
        share = 0.0 if gpus == 0 else (1.0 if gpus >= n_backbones else gpus / n_backbones)
        if 0 < share < 1:
            share = 1 / -(-n_backbones // int(gpus))  # whole actors on each GPU
    if share > 0:
        fit = max(1, int(gpus / share) // n_backbones)
        return Pool(0.0, share, min(fit, compute.max_actors or fit))
    if cpus >= n_backbones + 2:
        fit = int(cpus - 2) // n_backbones
        return Pool(1.0, 0.0, min(fit, compute.max_actors or fit))
    return Pool(0.0, 0.0, 1)


def configure_data(compute: Compute) -> None:
    """Ray Data settings of every stage: fail instead of waiting for ever, survive lost actors, print our own lines."""
    context = ray.data.DataContext.get_current()
    context.wait_for_min_actors_s = compute.wait_for_resources_s
    context.max_consecutive_actor_init_deaths = 3
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that bars are off

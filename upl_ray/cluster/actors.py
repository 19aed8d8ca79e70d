"""Actors and tasks on Ray: placed on the nodes of the cluster, waited for, their errors turned into one sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from upl_ray.cluster.connect import job_error_in
from upl_ray.cluster.placement import GIB, Pass, Pool, plan_passes
from upl_ray.cluster.watch import FOR_WORK, Needs, Watch, cluster_nodes
from upl_ray.config.settings import Compute
from upl_ray.errors import JobError
from upl_ray.progress import Progress
from upl_ray.upl.clip_spec import ClipSpec

log = logging.getLogger(__name__)

BLOCK_BYTES = 2**25  # a few chunks of pixels: blocks of Ray's 128 MiB would leave actors waiting for their first


def place_actors(step: str, specs: Sequence[ClipSpec], compute: Compute) -> list[Pass]:
    """Plan passes for the nodes that are there, and log them: a line for each pass, and why there are several.

    Raises:
        JobError: no node can serve a backbone.
    """
    nodes = cluster_nodes()
    passes = plan_passes(specs, nodes, compute)
    for i, pools in enumerate(passes, 1):
        log.info("%-12s pass %d of %d: %s", step, i, len(passes), "; ".join(describe(s, p) for s, p in pools))
    if len(passes) > 1:
        gpus = [n.gpu_memory(compute) / GIB for n in nodes for _ in range(int(n.gpus))]
        shared = f"shared by at most compute.backbones_per_gpu = {compute.backbones_per_gpu}"
        gpu = f"{len(gpus)} GPU(s) of {min(gpus):.3g} GiB, {shared}; " if gpus else ""
        host = sum(n.memory for n in nodes) / GIB
        log.info(
            "%-12s several passes, as not all of these actors are sure to fit at once: %s%g CPUs; %.3g GiB of memory",
            *(step, gpu, sum(n.cpus for n in nodes), host),
        )
    return passes


def describe(spec: ClipSpec, pool: Pool) -> str:
    """One backbone's actors in words: `RN50-openai up to 3 actors of 0.25 GPU (cuda)`."""
    actors = "1 actor" if pool.max_actors == 1 else f"up to {pool.max_actors} actors"
    options = pool.options
    bound = [options.accelerator_type or "", *(f"{k} {v}" for k, v in options.label_selector.items())]
    what = f"{pool.num_gpus:.4g} GPU" if pool.num_gpus else f"{pool.num_cpus:g} CPU"
    what += f" and {pool.memory / GIB:.1f} GiB" if pool.memory else ""
    return f"{spec.name} {actors} of {what} ({', '.join([pool.device, *filter(None, bound)])})"


def resources(pool: Pool) -> dict[str, Any]:
    """The resources of an actor or task of this pool, as named arguments for Ray.

    Asking for memory also keeps Ray Data from fusing an actor of one CPU with the decoding before it, which would then
    run in the few actors of the largest backbone instead of in tasks on all CPUs.
    """
    asked = {
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
        "memory": pool.memory or None,
        "accelerator_type": pool.options.accelerator_type,
        "label_selector": pool.options.label_selector or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def add_pool(
    dataset: ray.data.Dataset, actor: type, arguments: tuple[Any, ...], pool: Pool, tasks: int
) -> ray.data.Dataset:
    """Map a dataset's rows with the actors of a pool, at most one for each of the `tasks` that make the rows.

    All actors start at once, since all surely fit; one is enough to go on when nodes are lost. Those on GPUs are called
    by two threads, so that a GPU has work while rows come and go.
    """
    actors = min(pool.max_actors, tasks)
    on_gpu = pool.device == "cuda"
    return dataset.map(
        actor,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            initial_size=actors,
            max_concurrent_calls_per_actor=2 if on_gpu else None,
            enable_true_multi_threading=on_gpu,
        ),
        **resources(pool),
    )


def needs_of(pools: Pass) -> Needs:
    """The nodes that a pass needs: for each backbone one that could run its actors."""
    return {f"for {describe(spec, pool)}": pool.runs_on for spec, pool in pools}


@contextmanager
def in_one_sentence(compute: Compute, needs: Needs | None = None) -> Iterator[None]:
    """Turn Ray's errors about actors and tasks that cannot run, and its endless waits for nodes, into one sentence.

    Raises:
        JobError: actors found no room in time, or one of them raised a JobError; or the nodes that the work `needs`,
            beside those for any, were gone for `compute.wait_for_resources_s`.
    """
    watch = Watch({**FOR_WORK, **(needs or {})}, compute.wait_for_resources_s)
    watch.start()
    with watch.guard(), _sentences(compute):
        yield


@contextmanager
def _sentences(compute: Compute) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.GetTimeoutError:
        raise JobError(
            f"The actors of a backbone found no room within compute.wait_for_resources_s = "
            f"{compute.wait_for_resources_s} s, as others hold the cluster's GPUs, CPUs or memory; what is finished "
            f"stays in storage, so free them, add nodes or wait longer, and run the job again."
        ) from None
    except ray.exceptions.RayError as error:
        if sentence := job_error_in(error):
            raise JobError(sentence) from None
        raise


def finish_tasks(step: str, tasks: list[Any], unit: str, compute: Compute, needs: Needs | None = None) -> None:
    """Wait for Ray tasks and log how many are done.

    Raises:
        RayError: a task failed; see `in_one_sentence`.
    """
    progress, pending = Progress(step, len(tasks), unit), tasks
    with in_one_sentence(compute, needs):
        while pending:
            ready, pending = ray.wait(pending)
            ray.get(ready)
            progress.advance(len(ready))
    progress.finish()


def _hide_trace(record: logging.LogRecord) -> bool:
    """Keep Ray's pages about an error that the job ends with in one sentence for Ray's own log file."""
    error = sys.exc_info()[1]
    if isinstance(error, ray.exceptions.RayError) and job_error_in(error):
        record.hide = True
    return True


def configure_data(compute: Compute, in_order: bool = False) -> None:
    """Set Ray Data to fail instead of waiting without limit, to survive lost actors, and to leave the log to us.

    With `in_order` rows come out in the order in which they went in.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = in_order
    context.wait_for_min_actors_s = compute.wait_for_resources_s
    context.max_consecutive_actor_init_deaths = 3
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    detectors = context.issue_detectors_config  # one of them would tell users to ask for more memory than is used
    detectors.detectors = [d for d in detectors.detectors if "Memory" not in d.__name__]
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that bars are off
    logging.getLogger("ray.data.exceptions").addFilter(_hide_trace)

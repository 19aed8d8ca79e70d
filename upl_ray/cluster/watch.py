"""Abort the job when no suitable node has been alive for `wait_for_resources_s`."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import ray

from upl_ray.cluster.placement import Node
from upl_ray.errors import JobError

log = logging.getLogger(__name__)

WATCH_S = 5.0  # between two looks
ACCELERATOR = "accelerator_type:"  # prefix of the resource by which Ray names a node's accelerator

Needs = Mapping[str, Callable[[Node], bool]]  # words that follow "nodes" in a sentence -> True for a node that serves
FOR_WORK: Needs = {"for work": lambda node: node.cpus > 0}  # the tasks of all steps


def cluster_nodes() -> list[Node]:
    """All live nodes of the cluster."""
    driver = ray.get_runtime_context().get_node_id()
    return [
        Node(
            cpus=n["Resources"].get("CPU", 0.0),
            gpus=n["Resources"].get("GPU", 0.0),
            memory=n["Resources"].get("memory", math.inf),
            accelerators=frozenset(r.removeprefix(ACCELERATOR) for r in n["Resources"] if r.startswith(ACCELERATOR)),
            labels=n["Labels"],
            driver=n["NodeID"] == driver,
        )
        for n in ray.nodes()
        if n["Alive"]
    ]


def lacking(needs: Needs, nodes: Iterable[Node]) -> str:
    """The first of the needs that no node serves; empty if there is none."""
    there = list(nodes)
    return next((words for words, serves in needs.items() if not any(map(serves, there))), "")


class Watch:
    """Interrupts work in the main thread that waits in Ray, which waits without limit, when its nodes are gone.

    Args:
        needs: the nodes that must be alive.
        limit: how long none of them may be [seconds].
    """

    def __init__(self, needs: Needs, limit: float) -> None:
        self._needs, self._limit = needs, limit
        self._lost = ""  # why the work was interrupted
        self._over, self._ending = threading.Event(), threading.Lock()

    def start(self) -> None:
        """Begin to look at the nodes of the cluster, which has been joined."""
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run the block, and interrupt it when its nodes are gone.

        Raises:
            JobError: no node served one of the needs for `limit` seconds.
        """
        if threading.current_thread() is not threading.main_thread():  # only that one can be interrupted
            self._over.set()
            yield
            return
        before = signal.signal(signal.SIGUSR2, _interrupt)  # not SIGINT, which a shell's background job ignores
        try:
            yield
        except (KeyboardInterrupt, RuntimeError, ray.exceptions.RayError):
            self._end()  # no second interruption while this one unwinds
            if self._lost:
                raise JobError(self._lost) from None
            raise
        finally:
            self._end()
            signal.signal(signal.SIGUSR2, before)

    def _end(self) -> None:
        with self._ending:
            self._over.set()

    def _look(self) -> None:
        missed, since = "", 0.0
        while not self._over.wait(WATCH_S):
            missing = lacking(self._needs, cluster_nodes())
            if missing and missing != missed:
                since = time.monotonic()
                log.warning("%-12s all nodes %s are gone; waiting up to %d s for one", "ray", missing, self._limit)
            missed = missing
            if missing and time.monotonic() - since > self._limit:
                self._interrupt_main(
                    f"All nodes {missing} have been gone for compute.wait_for_resources_s = {self._limit} s; what is "
                    f"finished stays in storage, so start nodes and run the job again."
                )
                return

    def _interrupt_main(self, why: str) -> None:
        main = threading.main_thread().ident
        assert main is not None
        with self._ending:  # the signal would end a process that is past the work
            if not self._over.is_set():
                self._lost = why
                signal.pthread_kill(main, signal.SIGUSR2)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

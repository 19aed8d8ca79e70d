"""Trials: how members are split, the memory that each asks Ray for, the end of a wait for room; on a real cluster."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._common.utils import get_system_memory
from worlds import SHORT, job_config

from upl_ray.cluster.placement import CUDA_HOST_BASE, GIB, HOST_BASE, Node
from upl_ray.config.settings import Compute
from upl_ray.errors import JobError
from upl_ray.pipeline import training
from upl_ray.pipeline.inputs import prepare
from upl_ray.pipeline.plan import plan_run
from upl_ray.pipeline.training import LEAST_ACTIVATIONS, Task, activation_memory, held_memory, plan_trials

MEMBERS = list(range(16))
HELD = int(1.8 * GIB)  # RN50 twice, and 50 views of 16 images of 100 classes


@pytest.mark.parametrize(
    ("nodes", "compute", "trials", "asked"),
    [
        ([Node(cpus=4)], {}, 4, {"CPU": 1.0}),
        ([Node(cpus=0), Node(cpus=2), Node(cpus=3)], {}, 5, {"CPU": 1.0}),
        ([Node(cpus=8, gpus=1), Node(cpus=8, gpus=1)], {}, 2, {"CPU": 1.0, "GPU": 1.0}),
        ([Node(cpus=2, gpus=8)], {}, 2, {"CPU": 1.0, "GPU": 1.0}),
        ([Node(cpus=8, gpus=2)], {"gpus_per_trial": 0.4}, 4, {"CPU": 1.0, "GPU": 0.4}),
        ([Node(cpus=8, gpus=4), Node(cpus=8, gpus=3)], {"gpus_per_trial": 2}, 3, {"CPU": 1.0, "GPU": 2.0}),
        ([Node(cpus=64)], {}, 16, {"CPU": 1.0}),
        ([Node(cpus=4)], {"trials": 2}, 2, {"CPU": 1.0}),
        ([Node(cpus=4)], {"workers_per_trial": 2}, 2, {"CPU": 1.0}),
        ([Node(cpus=4, gpus=1)], {"gpus_per_trial": 0}, 4, {"CPU": 1.0}),
    ],
)
def test_as_many_trials_as_run_at_once(
    nodes: list[Node], compute: dict[str, float], trials: int, asked: dict[str, float]
) -> None:
    groups, resources = plan_trials(MEMBERS, nodes, Compute.model_validate(compute), HELD)
    assert len(groups) == trials
    assert sorted(m for g in groups for m in g) == MEMBERS
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert resources == asked


@pytest.mark.parametrize(
    ("nodes", "compute", "trials", "memory"),
    [
        # Beside a process, model and views: half of a worker's share of the node, or the rest of that share.
        ([Node(4, memory=32 * GIB)], {}, 4, HOST_BASE + HELD + LEAST_ACTIVATIONS + 4 * GIB),
        ([Node(4, memory=16 * GIB)], {}, 4, 4 * GIB),
        ([Node(4, memory=9 * GIB)], {}, 3, 3 * GIB),  # more would not fit
        ([Node(4, memory=16 * GIB)], {"trials": 2}, 2, HOST_BASE + HELD + LEAST_ACTIVATIONS + 4 * GIB),
        ([Node(4, memory=2 * GIB), Node(2, memory=8 * GIB)], {}, 2, 4 * GIB),  # on the larger node alone
        ([Node(4, memory=16 * GIB)], {"memory_per_trial": 4}, 2, HOST_BASE + HELD + 4 * GIB),
        ([Node(4, memory=16 * GIB)], {"workers_per_trial": 2}, 2, 4 * GIB),
        ([Node(8, 2, 8 * GIB)], {}, 2, CUDA_HOST_BASE + HELD),  # activations lie on the GPU
        ([Node(8, 2, 6 * GIB)], {}, 1, CUDA_HOST_BASE + HELD),
        ([Node(8, 2, 8 * GIB)], {"device": "cpu"}, 2, 4 * GIB),  # GPUs that are only declared
    ],
)
def test_a_worker_asks_for_memory_and_all_fit_wherever_ray_places_them(
    nodes: list[Node], compute: dict[str, Any], trials: int, memory: float
) -> None:
    settings = Compute.model_validate(compute)
    groups, resources = plan_trials(MEMBERS, nodes, settings, HELD)
    assert (len(groups), resources["memory"]) == (trials, int(memory))
    slots = sum(min(int(n.cpus), int(min(n.memory / resources["memory"], 99))) for n in nodes)
    assert slots >= trials * settings.workers_per_trial


@pytest.mark.parametrize(
    ("nodes", "trials"),
    [
        ([Node(64, driver=True)], 16),  # as many as members, though 48 are to be trained
        ([Node(8, memory=30 * GIB, driver=True)], 8),
        ([Node(8, memory=30 * GIB, driver=True), Node(8)], 14),  # 8 there, and 6 in the 18.8 GiB that are left here
        ([Node(8, memory=14 * GIB, driver=True)], 3),  # 2.8 GiB each, beside 0.8 GiB of Ray Train for each
        ([Node(0, memory=4.1 * GIB, driver=True), Node(64)], 5),  # a head without work has their processes, too
    ],
)
def test_runs_of_ray_train_leave_memory_for_its_own_processes(nodes: list[Node], trials: int) -> None:
    groups, resources = plan_trials(MEMBERS * 3, nodes, Compute(), HELD, 16)
    assert len(groups) == trials
    taken = sum(trials * 0.8 * GIB for n in nodes if n.driver)
    (memory,) = {n.memory for n in nodes if n.driver}
    here = trials if len(nodes) == 1 else 0
    assert here * resources.get("memory", 0) + taken <= memory


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_the_demo_takes_all_cpus_of_a_small_machine(cpus: int) -> None:
    """A model of a few megabytes, and 70 % of 2 GiB for each CPU from Ray: as many trials as without a limit."""
    demo = 10 * 2**20
    groups, _ = plan_trials(MEMBERS, [Node(cpus, memory=1.4 * GIB * cpus)], Compute(), demo)
    assert len(groups) == cpus


@pytest.mark.parametrize(
    ("nodes", "compute", "words"),
    [
        ([Node(8, 1)] * 2, {"gpus_per_trial": 2}, r"needs a node with 2 GPU\(s\) and a CPU and .* none of .* 2 node"),
        ([Node(8, memory=2 * GIB)], {}, r"a CPU and 2\.9 GiB of memory .* start one, or lower .* or views\.count\."),
        ([Node(8, memory=8 * GIB)], {"memory_per_trial": 9}, r"and 11\.8 GiB of memory .* compute\.memory_per_trial"),
        (
            [Node(2)],
            {"workers_per_trial": 3},
            "workers_per_trial is 3, but the cluster has room for 2 workers",
        ),
        ([Node(8, memory=4 * GIB)], {"workers_per_trial": 2}, "room for 1 workers of a CPU and 2.9 GiB of memory"),
    ],
)
def test_a_trial_that_fits_no_node_is_refused_instead_of_waiting(
    nodes: list[Node], compute: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobError, match=words) as refused:
        plan_trials(MEMBERS, nodes, Compute.model_validate(compute), HELD)
    assert "\n" not in str(refused.value)


def test_ray_gives_a_node_the_memory_of_its_container(tmp_path: Path) -> None:
    """The memory that a trial may ask for is what Ray reports; this is where Ray takes it from, for cgroups 1 and 2."""
    v1, v2 = tmp_path / "memory.limit_in_bytes", tmp_path / "memory.max"
    files = str(v1), str(v2)
    machine = get_system_memory(*files)
    v2.write_text("max\n")
    assert get_system_memory(*files) == machine
    v2.write_text(f"{GIB}\n")
    assert get_system_memory(*files) == GIB
    v1.write_text(f"{GIB // 2}\n")
    assert get_system_memory(*files) == GIB // 2
    v1.write_text(f"{2**62}\n")  # no limit
    assert get_system_memory(*files) == machine


def members_task(run: dict[str, Any], world: Path, folder: Path, **compute: Any) -> Task:
    """The members of a copy of the short run, which are to be trained again."""
    shutil.copytree(run["storage"], folder)
    (members,) = folder.glob("members-*")
    shutil.rmtree(members)
    inputs = prepare(job_config(world, folder, **{**SHORT, "compute": SHORT["compute"] | compute}))
    chain, config = plan_run(inputs).chains["upl*"], inputs.config
    return Task(
        *(chain.members, chain.selection, chain.views, inputs.target, inputs.classnames, config.train, config.compute)
    )


def test_activations_get_the_memory_that_is_left_of_what_ray_has_given(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path
) -> None:
    task = members_task(short_run, short_world, tmp_path / "run")
    views = 40 * 2 * task.spec.dim * 2  # the top 4 of ten classes, two views in half precision
    assert held_memory(task) <= 2 * task.spec.weights_bytes + views
    fixed = HOST_BASE + held_memory(task)
    for granted, left in ((3 * GIB, 3 * GIB - fixed), (fixed, LEAST_ACTIVATIONS), (math.inf, math.inf)):
        given = Task(**{**vars(task), "resources": {"CPU": 1.0, "memory": granted}})
        assert activation_memory(given, "cpu") == left
    configured = Task(**{**vars(task), "compute": Compute(memory_per_trial=2), "resources": {"memory": GIB}})
    assert activation_memory(configured, "cpu") == 2 * GIB


@pytest.fixture
def stranger(cluster: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Another job, which holds every CPU, or all memory."""
    whole = {"num_cpus": 4} if request.param == "CPU" else {"num_cpus": 0, "memory": ray.cluster_resources()["memory"]}

    @ray.remote
    class Stranger:
        def here(self) -> bool:
            return True

    actor = Stranger.options(**whole).remote()
    assert ray.get(actor.here.remote())
    yield
    ray.kill(actor)


@pytest.mark.parametrize("stranger", ["CPU", "memory"], indirect=True)
def test_trials_that_find_no_room_give_up_in_one_sentence(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path, stranger: None
) -> None:
    task = members_task(short_run, short_world, tmp_path / "run", wait_for_resources_s=3)
    with pytest.raises(JobError, match=r"No trial found room within compute\.wait_for_resources_s = 3 s"):
        training.train_members([task], [[0, 1]])


def test_a_trial_holds_its_memory_while_it_runs(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = members_task(short_run, short_world, tmp_path / "run")
    with pytest.raises(JobError, match=r"A trial needs a node with a CPU and 1000001\.\d GiB of memory"):
        training.train_members([Task(**{**vars(task), "compute": Compute(memory_per_trial=1e6)})], [[0, 1]])
    training.train_members([task], [[0, 1]])
    assert task.step.manifest()["members"] == 2

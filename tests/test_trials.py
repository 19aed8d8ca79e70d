"""How members are split into trials that the cluster's nodes can hold."""

import pytest

from upl_ray.config import Compute, JobError
from upl_ray.passes import Node
from upl_ray.trials import plan_trials

MEMBERS = list(range(16))


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
        ([Node(cpus=4)], {"workers_per_trial": 2}, 2, {"CPU": 0.9}),
        ([Node(cpus=4, gpus=1)], {"gpus_per_trial": 0}, 4, {"CPU": 1.0}),
    ],
)
def test_as_many_trials_as_run_at_once(
    nodes: list[Node], compute: dict[str, float], trials: int, asked: dict[str, float]
) -> None:
    groups, resources = plan_trials(MEMBERS, nodes, Compute.model_validate(compute))
    assert len(groups) == trials
    assert sorted(m for g in groups for m in g) == MEMBERS
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert resources == asked


def test_a_trial_that_fits_no_single_node_is_refused_instead_of_waiting() -> None:
    nodes = [Node(cpus=8, gpus=1)] * 2  # two GPUs, but not on one node
    with pytest.raises(JobError, match=r"needs a node with 2 GPU\(s\) and a CPU and none of the cluster's 2 node"):
        plan_trials(MEMBERS, nodes, Compute(gpus_per_trial=2))


def test_more_workers_than_fit_are_refused() -> None:
    with pytest.raises(JobError, match="workers_per_trial is 3, but the cluster has room for 2 workers"):
        plan_trials(MEMBERS, [Node(cpus=2)], Compute(workers_per_trial=3))

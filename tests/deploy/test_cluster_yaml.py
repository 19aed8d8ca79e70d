"""cluster.yaml is checked offline by the validator that `ray up` itself uses."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return config


def validate(config: dict[str, Any]) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    prepared = validate(cluster)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_ray_refuses_a_misspelled_field(cluster: dict[str, Any]) -> None:
    cluster["iddle_timeout_minutes"] = 10
    with pytest.raises(jsonschema.ValidationError):
        validate(cluster)


@pytest.mark.parametrize("running", [None, 0, 2], ids=lambda n: f"{n} spot nodes run")
def test_the_autoscaler_reads_it_as_shipped_and_after_the_remedy_for_missing_spot_capacity(
    cluster: dict[str, Any], running: int | None
) -> None:
    if running is not None:
        cluster["available_node_types"]["spot-g6"]["max_workers"] = running
    # As Ray's autoscaler reads the file in every cycle, whose errors it only logs; the hashes need its mounted files.
    types = AutoscalingConfig(cluster, skip_content_hash=True).get_node_type_configs()
    assert types["spot-g6"].max_worker_nodes == (4 if running is None else running)
    assert types["spot-g6"].priority > types["spot-g5"].priority > types["on-demand-g6"].priority


def test_this_ray_still_remembers_nothing_of_a_cloud_that_had_no_capacity() -> None:
    """Holds the comment on spot capacity in cluster.yaml: when this fails, Ray may move on to the next type itself."""
    monitor, failed = CloudResourceMonitor(), Instance.ALLOCATION_FAILED
    monitor.notify([InstanceUpdateEvent(instance_id="1", new_instance_status=failed, instance_type="spot-g6")])
    assert monitor.get_resource_availabilities() == monitor.get_recoverable_resource_availabilities() == {}


def test_the_head_runs_no_work_and_workers_have_gpus(cluster: dict[str, Any]) -> None:
    types = dict(cluster["available_node_types"])
    assert types.pop(cluster["head_node_type"])["resources"] == {"CPU": 0}
    assert all(worker["resources"]["GPU"] > 0 for worker in types.values())
    assert all(worker["min_workers"] == 0 for worker in types.values())  # a job asks for nodes before it plans


def test_spot_comes_before_on_demand(cluster: dict[str, Any]) -> None:
    workers = [t for name, t in cluster["available_node_types"].items() if name != cluster["head_node_type"]]
    by_priority = sorted(workers, key=lambda t: -t["priority"])
    spot = ["InstanceMarketOptions" in worker["node_config"] for worker in by_priority]
    assert spot == sorted(spot, reverse=True)
    assert set(spot) == {True, False}


def test_it_is_closed_to_strangers(cluster: dict[str, Any]) -> None:
    (start,) = (command for command in cluster["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert not re.search(r"AKIA|aws_secret|aws_access_key", CLUSTER.read_text(), re.IGNORECASE)


def test_images_and_pins_are_the_ray_that_was_tested(cluster: dict[str, Any]) -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={ray.__version__}" in pins
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        assert image.startswith(f"rayproject/ray:{ray.__version__}-py3")


def test_every_placeholder_is_marked() -> None:
    placeholder = re.compile(r"ami-0{17}|0{12}")
    lines = CLUSTER.read_text().splitlines()
    unmarked = [line for line in lines if placeholder.search(line) and "# CHANGE" not in line]
    assert unmarked == []

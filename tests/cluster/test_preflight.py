"""Before the work starts: nodes that are fit for it, and enough of them; on a real cluster."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import yaml
from models import resolve_folder, write_model
from ray._raylet import GcsClient
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.util import placement_group_table

from upl_ray.cluster import preflight
from upl_ray.cluster.connect import wait_for_resources
from upl_ray.config.settings import Backbone, Compute, Source
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.errors import ConfigError
from upl_ray.storage.step import versions
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import vocabulary_sha256
from upl_ray.upl.clip_spec import ClipSpec

CLUSTER_YAML = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "storage"))


@pytest.fixture
def corpus(store: Store, short_world: Path) -> Corpus:
    return list_corpus(store, Source(uri=str(short_world / "scored")), 10)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ClipSpec:
    return resolve_folder(write_model(tmp_path_factory.mktemp("models") / "m"))


def test_fit_nodes_pass_and_leave_nothing_behind(cluster: None, store: Store, corpus: Corpus, spec: ClipSpec) -> None:
    own = replace(spec, vocabulary_sha256=vocabulary_sha256(spec.source))
    preflight.preflight(store, [corpus], [spec, own], Compute())
    assert store.names("preflight") == []


def test_all_problems_of_a_node_are_reported_at_once(
    cluster: None, store: Store, corpus: Corpus, spec: ClipSpec, tmp_path: Path
) -> None:
    other = replace(spec, weights_sha256="0" * 64, vocabulary_sha256="0" * 64)
    gone = replace(corpus, shards=tuple(replace(s, root=str(tmp_path / "nowhere")) for s in corpus.shards))
    with pytest.raises(ConfigError) as refused:
        preflight.preflight(store, [gone], [other], Compute(), classifier=str(tmp_path / "no-classifier"))
    lines = str(refused.value).splitlines()
    assert all(line.startswith("Node ") for line in lines)
    expected = ("cannot read the images", "weights of m differ", "vocabulary of m differ", "cannot read the classifier")
    assert [word for word in expected if not any(word in line for line in lines)] == []
    assert len(lines) == 4


def test_images_that_are_gone_are_no_sample(
    cluster: None, store: Store, corpus: Corpus, spec: ClipSpec, tmp_path: Path
) -> None:
    first, *rest = corpus.shards
    ids = corpus.listing(first)["image_id"].to_pylist()
    photos = tmp_path / "photos"
    shutil.copytree(first.root, photos)
    for image_id in ids[: preflight.SAMPLE]:
        (photos / image_id).unlink()
    there = replace(first, root=str(photos), removed=frozenset(ids[: preflight.SAMPLE]))
    preflight.preflight(store, [replace(corpus, shards=(there, *rest))], [spec], Compute())


def test_a_node_with_other_software_is_reported() -> None:
    mine = versions()
    assert preflight.unlike(mine, mine, "a", "a") == []
    (line,) = preflight.unlike(mine, mine | {"torch": "1.0"}, "a", "a")
    assert line.startswith(f"it has torch 1.0 instead of {mine['torch']};")
    assert preflight.unlike(mine, mine | {"upl-ray": None}, "a", "a") == []  # not installed: it came with the job
    assert preflight.unlike(mine, mine, "a", "b") == [
        "its upl_ray is not the driver's; install the same, or submit with --working-dir."
    ]


def test_missing_weights_and_storage_are_reported(spec: ClipSpec, tmp_path: Path) -> None:
    away = replace(spec, backbone=Backbone(model=f"local-dir:{tmp_path / 'away'}", name="m"))
    (line,) = preflight._weights(away)
    assert line.startswith("the weights of m are not there: ")
    (tmp_path / "file").write_text("")
    expected = preflight.Expected(Store(str(tmp_path / "file")), "token", [], "", [], {}, "")
    (line,) = preflight._storage(expected, 0)
    assert line.startswith(f"it cannot write to {tmp_path / 'file'} (")


def test_the_job_goes_on_without_resources_that_do_not_come_in_time(
    cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "upl_ray")
    wait_for_resources(Compute(request={"CPU": 4}, wait_for_resources_s=1))
    assert caplog.messages == []
    wait_for_resources(Compute(request={"CPU": 4, "GPU": 2}, wait_for_resources_s=1))
    waits, goes_on = caplog.messages
    assert "waits up to 1 s for 2 GPU" in waits
    assert "goes on without 2 GPU of compute.request" in goes_on
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}  # no node comes for nothing


def test_the_autoscaler_starts_a_part_of_a_request_that_is_larger_than_the_cluster_may_grow(cluster: None) -> None:
    """The request as Ray receives it, given to Ray's own scheduler with cluster.yaml's limit of ten GPU nodes."""
    compute = Compute(request={"GPU": 12}, wait_for_resources_s=5)
    asking = threading.Thread(target=wait_for_resources, args=(compute,))
    asking.start()
    gcs, demands, deadline = GcsClient(ray.get_runtime_context().gcs_address), [], time.monotonic() + 5
    while len(demands) < 12 and time.monotonic() < deadline:
        demands = list(get_cluster_resource_state(gcs).pending_gang_resource_requests)
        time.sleep(0.1)
    asking.join()
    config = AutoscalingConfig(yaml.safe_load(CLUSTER_YAML.read_text()), skip_content_hash=True)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            gang_resource_requests=demands,
        )
    )
    assert {r.instance_type: r.count for r in reply.to_launch if r.instance_type != "head"} == {
        "spot-g6": 4,
        "spot-g5": 4,
        "on-demand-g6": 2,
    }


def test_a_local_ray_waits_for_nothing(cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    wait_for_resources(Compute(request={"GPU": 2}), local=True)
    assert [m.split(maxsplit=1)[1] for m in caplog.messages] == [
        "is local and goes on without 2 GPU of compute.request"
    ]

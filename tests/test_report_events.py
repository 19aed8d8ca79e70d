"""TensorBoard's files of a run: records as it reads them, curves, parameters and final figures."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from report_pages import write_images
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.artifacts import Artifact
from upl_ray.report.events import event_file
from upl_ray.report.page import write_report


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_of(data: bytes) -> list[Event]:
    events = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12]) == (masked(data[:8]),)
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked(data[12 : 12 + length]),)
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_event_files_are_records_that_tensorboard_reads() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the published check value
    summaries = [Summary(value=[Summary.Value(tag="loss", simple_value=x)]) for x in (2.5, 2.0)]
    events = events_of(event_file(enumerate(summaries), 1e9))
    assert events[0].file_version == "brain.Event:2"
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in events[1:]] == [
        (0, "loss", 2.5),
        (1, "loss", 2.0),
    ]
    assert math.isclose(events[1].wall_time, 1e9)


def test_a_variant_has_every_parameter_and_its_final_figures(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b"), ("1.png", "2.png"))
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b")).write()
    write_report(store)
    summary = store.read_json("run.json")
    for variant, slug in (("upl*", "upl-star"), ("upl", "upl")):
        (name,) = (n for n in store.names(f"report/tensorboard/{slug}") if n.startswith("events"))
        _, declared, started, ended, figures = events_of(store.read(f"report/tensorboard/{slug}/{name}"))
        plugins = [e.summary.value[0].metadata.plugin_data for e in (declared, started, ended)]
        assert [p.plugin_name for p in plugins] == ["hparams"] * 3
        parameters = HParamsPluginData.FromString(plugins[1].content).session_start_info.hparams
        assert parameters["run"].string_value == summary["storage"]
        assert parameters["variant"].string_value == variant
        assert parameters["train.lr"].number_value == summary["config"]["train"]["lr"]
        assert parameters["backbones"].string_value == str(summary["config"]["backbones"])
        metrics = HParamsPluginData.FromString(plugins[0].content).experiment.metric_infos
        values = {v.tag: v.simple_value for v in figures.summary.value}
        assert [m.name.tag for m in metrics] == list(values)
        scores = summary["scores"][variant]
        assert values["accuracy/corpus"] == pytest.approx(scores["predictions"]["corpus"]["accuracy"]["ensemble"])
        own = scores["zero_shot"]["corpus"]["accuracy"][summary["target"]]
        assert values["zero-shot accuracy/corpus"] == pytest.approx(own)


def test_members_that_are_learned_anew_replace_their_curves(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b"), ("1.png", "2.png"))
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b"), ("upl",)).write()
    write_report(store)
    members = Artifact(store, *store.read_json("run.json")["artifacts"]["variants"]["upl"]["members"].split("-"))
    facts = members.read_sealed("manifest.json")
    later = facts["provenance"] | {"time": "2030-01-01T00:00:00+00:00"}
    members.write_sealed("manifest.json", {**facts, "provenance": later})
    write_report(store, again=True)
    for folder in ("upl", "upl/member-00"):
        (name,) = store.names(f"report/tensorboard/{folder}")
        assert "tfevents" in name
        assert events_of(store.read(f"report/tensorboard/{folder}/{name}"))[0].wall_time == 1893456000

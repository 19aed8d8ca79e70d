"""Training curves of the members as TensorBoard event files, written without TensorBoard.

A file is a row of records: length, checksum of it, an `Event` message, checksum of that (TFRecord).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import datetime

import pyarrow as pa
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from upl_ray.artifacts import Store
from upl_ray.report.findings import Findings
from upl_ray.report.finished import manifest_of

FILE_VERSION = "brain.Event:2"  # TensorBoard looks for it in the first record
MASK_DELTA = 0xA282EAD8  # of TFRecord's masked checksums


def write_events(store: Store, folder: str, found: list[Findings]) -> None:
    """One event file a member: loss and learning rate by epoch, under the time at which its training ended."""
    for f in found:
        history = f.variant.members.read_table("history.parquet")
        ended = datetime.fromisoformat(manifest_of(f.variant.members)["provenance"]["time"]).timestamp()
        for member in sorted(set(history["member"].to_pylist())):
            rows = history.filter(pa.compute.equal(history["member"], member)).sort_by("epoch").to_pylist()
            data = event_file([(r["epoch"], {"loss": r["loss"], "lr": r["lr"]}) for r in rows], ended)
            store.write(f"{folder}/{f.slug}/member-{member:02d}/events.out.tfevents.{int(ended)}.upl", data)


def event_file(steps: Iterable[tuple[int, dict[str, float]]], time: float) -> bytes:
    """An event file of scalars: step -> their values."""
    events = [Event(wall_time=time, file_version=FILE_VERSION)]
    for step, scalars in steps:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        events.append(Event(wall_time=time, step=step, summary=Summary(value=values)))
    return b"".join(record(event.SerializeToString()) for event in events)


def record(data: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF)

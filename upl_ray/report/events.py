"""A run as TensorBoard event files: training curves of the members, parameters and final figures of each variant.

They are written without TensorBoard. A file is a row of records: length, checksum of it, an `Event` message, checksum
of that (TFRecord).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import datetime

import pyarrow as pa
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from upl_ray.report.findings import Findings, mean_confidence, zero_shot_accuracy
from upl_ray.report.finished import FinishedRun, fields, manifest_of

# TensorBoard draws all `tfevents` files of a folder as one curve: a later training has to replace its own.
FILE = "events.out.tfevents.upl"
FILE_VERSION = "brain.Event:2"  # TensorBoard looks for it in the first record
MASK_DELTA = 0xA282EAD8  # of TFRecord's masked checksums


def write_events(run: FinishedRun, folder: str, found: list[Findings]) -> None:
    """An event file of each member, and one of each variant; its events have the time at which training ended.

    A member's has loss and learning rate by epoch; a variant's has every parameter and the final figures, which
    TensorBoard's HPARAMS page lays side by side for all runs below its folder.
    """
    for f in found:
        history = f.variant.members.read_table("history.parquet")
        ended = datetime.fromisoformat(manifest_of(f.variant.members)["provenance"]["time"]).timestamp()
        for member in sorted(set(history["member"].to_pylist())):
            rows = history.filter(pa.compute.equal(history["member"], member)).sort_by("epoch").to_pylist()
            curves = [_scalars(r["epoch"], {"loss": r["loss"], "lr": r["lr"]}) for r in rows]
            run.store.write(f"{folder}/{f.slug}/member-{member:02d}/{FILE}", event_file(curves, ended))
        figures = final_figures(f)
        parameters = {n: v if isinstance(v, bool | int | float) else str(v) for n, v in fields(run.config)}
        named = {"run": run.store.uri, "variant": f.variant.name}
        about = [(0, summary) for summary in hparams(named | parameters, figures)]
        run.store.write(f"{folder}/{f.slug}/{FILE}", event_file([*about, _scalars(0, figures)], ended))


def final_figures(f: Findings) -> dict[str, float]:
    """What is left of a variant in a few numbers [0-1], accuracies where labels exist."""
    figures = {f"mean confidence/{part}": mean_confidence(f, part, "ensemble") for part in f.parts}
    for part in (p for p in f.parts if f.parts[p]["labeled"]):
        right, labeled = sum(f.parts[part]["right"]["ensemble"]), f.parts[part]["labeled"]
        figures |= {f"accuracy/{part}": right / labeled, f"zero-shot accuracy/{part}": zero_shot_accuracy(f, part)}
    return figures | {"final loss": float(f.losses[:, -1].mean())}


def _scalars(step: int, values: dict[str, float]) -> tuple[int, Summary]:
    return step, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def event_file(steps: Iterable[tuple[int, Summary]], time: float) -> bytes:
    """An event file of summaries, each with its step."""
    events = [Event(wall_time=time, file_version=FILE_VERSION)]
    events += [Event(wall_time=time, step=step, summary=summary) for step, summary in steps]
    return b"".join(record(event.SerializeToString()) for event in events)


def record(data: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF)

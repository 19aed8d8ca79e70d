"""What runs of a million to a billion images would cost, as a Markdown table: the source of docs/scaling.md.

python -m benchmarks.scaling --machines.gpus 8 --machines.cpus 64
"""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from upl_ray import speeds
from upl_ray.estimate import Estimate, amount, estimate, size, span
from upl_ray.workload import Images, Learning, Machines


@dataclass(frozen=True)
class Question:
    """Tables of what a run of the paper's backbones costs; docs/scaling.md explains them."""

    images: tuple[float, ...] = (1e6, 1e8, 1e9)  # sizes of the corpus, one column each
    new: float = 1.0  # share of the images that have no features yet [0-1]
    bytes_each: float = 100e3  # mean size of an image [bytes]
    pixels_each: float | None = None  # mean size of an image [pixels]; None: from the bytes
    per_file: int = 1  # images of one tar or Parquet file; 1: single files
    backbones: tuple[str, ...] = tuple(m.name for m in speeds.paper_models())  # labelers
    target: str = "RN50"  # the backbone that prompts are learned for
    precision: str = "fp16"  # arithmetic of the image towers: fp32, fp16 or bf16
    learning: Learning = field(default_factory=Learning)
    machines: Machines = field(default_factory=Machines)


def table(question: Question) -> str:
    """Markdown: one row a quantity, one column a size of the corpus."""
    q = question
    models = [m for m in speeds.paper_models(q.precision) if m.name in q.backbones]
    corpora = [Images(round(n), round(n * q.new), q.bytes_each, q.pixels_each, q.per_file) for n in q.images]
    columns = [estimate(images, models, q.target, q.learning, q.machines) for images in corpora]
    rows: dict[str, list[str]] = {}
    for e in columns:
        for name, text in cells(e).items():
            rows.setdefault(name, []).append(text)
    head = ["images", *(f"{n:,.0f}" for n in q.images)]
    lines = [head, ["---"] * len(head), *([name, *texts] for name, texts in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(e: Estimate) -> dict[str, str]:
    """The rows of one column of the table."""
    of_models = {m: f"{amount(h)} h, {size(e.feature_bytes[m])}" for m, h in e.forward_hours.items()}
    return {
        "read": size(e.read_bytes),
        f"**encode** ({e.device} hours), store": "",
        **of_models,
        "all": f"{amount(sum(e.forward_hours.values()))} h, {size(sum(e.feature_bytes.values()))}",
        "**decode** (core hours)": f"{amount(e.decode_hours)} h",
        "labels, predictions (core hours), store at most": f"{amount(e.classify_hours)} h, {size(e.label_bytes)}",
        f"view bank ({e.device} hours), store": f"{amount(e.view_hours)} h, {size(e.view_bytes)}",
        f"training ({e.device} hours)": f"{amount(e.train_hours)} h",
        "requests: LIST": f"{e.lists:,}",
        "GET and HEAD": f"{amount(e.gets / 1e6)} million",
        "PUT": f"{amount(e.puts / 1e6)} million",
        "their price": f"${amount(e.request_dollars)}",
        "**embedding** (wall clock)": f"{span(e.embed_wall_hours)}: {e.bottleneck}",
        **{f"{s} alone": span(h) for s, h in sorted(e.stage_wall_hours.items())},
        "driver: reading commits (wall clock)": span(e.driver_wall_hours),
        "driver: memory of the listing": size(e.driver_bytes),
    }


def gpu_table(question: Question) -> str:
    """Markdown: hours of one GPU for a million images, one row a backbone, one column a GPU."""
    models = [m for m in speeds.paper_models(question.precision) if m.name in question.backbones]
    hours = {m.name: [1e6 / speeds.images_per_s(m, gpu) / 3600 for gpu in speeds.GPUS] for m in models}
    hours["all"] = [sum(column) for column in zip(*hours.values(), strict=True)]
    lines = [[f"hours per million images, {question.precision}", *speeds.GPUS], ["---"] * (1 + len(speeds.GPUS))]
    lines += [[name, *map(amount, row)] for name, row in hours.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    asked = tyro.cli(Question)
    print(f"{table(asked)}\n\n{gpu_table(asked)}")

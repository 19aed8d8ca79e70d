"""Configuration of what stands around the main job: a published data set, a comparison of methods, an ablation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from upl_ray.section import Section

DatasetName = Literal[
    "",
    "imagenet",
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "oxford_flowers",
    "oxford_pets",
    "sun397",
    "stanford_cars",
    "ucf101",
]
FewShotName = Literal["linear-probe", "coop", "clip-adapter", "tip-adapter", "tip-adapter-f"]
MethodName = Literal["zero-shot", "templates", "fused", "threshold", "upl", "upl*"] | FewShotName


class Dataset(Section):
    """A data set of the paper, in CoOp's folder layout; it fills in corpus, validation, scored and class names."""

    name: DatasetName = Field("", description="CoOp's name of the data set; empty: `corpus` and `classnames` say it.")
    root: str = Field("data", description="Folder or prefix of all data sets: `<root>/caltech-101/...`.")


class Compare(Section):
    """`jobs/compare.py`: every method on the same cached features."""

    methods: tuple[MethodName, ...] = Field(
        (
            *("zero-shot", "templates", "fused", "threshold", "upl", "upl*"),
            *("linear-probe", "coop", "clip-adapter", "tip-adapter", "tip-adapter-f"),
        ),
        min_length=1,
        description="Rows of the table; those from linear-probe on need true labels of the corpus.",
    )
    shots: tuple[int, ...] = Field((1, 2, 4, 8, 16), description="Labeled images of each class [images]; CoOp's.")
    seeds: int = Field(3, ge=1, description="Runs of every method with something random, counted from train.seed.")
    templates: str | tuple[str, ...] = Field(
        "imagenet", description="Template ensemble: `imagenet` is open_clip's 80; a file with one a line; or a list."
    )
    threshold: float = Field(0.9, gt=0, lt=1, description="Confidence of threshold self-training [0-1]; FixMatch's.")
    transductive: bool = Field(
        False, description="Also score methods without labels on the corpus, whose images they have learned from."
    )
    resamples: int = Field(10_000, ge=100, description="Bootstrap resamples of the scored images [count].")


class Ablate(Section):
    """`jobs/ablate.py`: one change at a time to the configured run, and thresholds and labelers against each other."""

    top_k: tuple[int, ...] = Field((1, 2, 4, 8, 16, 32, 64), description="Images a class [images].")
    thresholds: tuple[float, ...] = Field((0.9,), description="Confidence instead of top-K [0-1].")
    labelers: Literal["own-fused", "each", "all"] = Field(
        "each", description="Who labels: the target and all fused; also each backbone alone; also every combination."
    )
    n_ctx: tuple[int, ...] = Field((1, 2, 4, 8, 16), description="Context vectors [tokens].")
    views: tuple[int, ...] = Field((0, 1, 10, 50), description="Views of each image; 0: its centre crop [count].")
    members: tuple[int, ...] = Field((1, 2, 4, 8, 16), description="Prompts whose outputs are averaged [count].")
    seeds: int = Field(3, ge=1, description="Runs of every point, counted from train.seed.")

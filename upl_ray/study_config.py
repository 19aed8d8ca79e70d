"""Configuration of what stands around the main job: a published data set, a comparison of methods, an ablation."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

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

T = TypeVar("T")


def once(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse a list that names something twice: each is a row of a table."""
    doubled = next((v for v in values if values.count(v) > 1), None)
    if doubled is not None:
        raise ValueError(f"it names {doubled!r} twice; once is enough")
    return values


def some(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse an empty list where nothing would be left to do."""
    if not values:
        raise ValueError("it is empty; name one")
    return values


Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(once)]


class Dataset(Section):
    """A data set of the paper, in CoOp's folder layout; it fills in corpus, validation, scored and class names."""

    name: DatasetName = Field("", description="CoOp's name of the data set; empty: `corpus` and `classnames` say it.")
    root: str = Field("data", description="Folder or prefix of all data sets: `<root>/caltech-101/...`.")


class Compare(Section):
    """`jobs/compare.py`: every method on the same cached features."""

    methods: Annotated[tuple[MethodName, ...], AfterValidator(once), AfterValidator(some)] = Field(
        (
            *("zero-shot", "templates", "fused", "threshold", "upl", "upl*"),
            *("linear-probe", "coop", "clip-adapter", "tip-adapter", "tip-adapter-f"),
        ),
        description="Rows of the table; those from linear-probe on need true labels of the corpus.",
    )
    shots: Annotated[Counts, AfterValidator(some)] = Field(
        (1, 2, 4, 8, 16), description="Labeled images of each class [images]; CoOp's."
    )
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
    """`jobs/ablate.py`: one change at a time to the configured run, and thresholds and labelers against each other.

    An empty list leaves that change out.
    """

    top_k: Counts = Field((1, 2, 4, 8, 16, 32, 64), description="Images a class [images].")
    thresholds: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(once)] = Field(
        (0.9,), description="Confidence instead of top-K [0-1]."
    )
    labelers: Literal["own-fused", "each", "all"] = Field(
        "each", description="Who labels: the target and all fused; also each backbone alone; also every combination."
    )
    n_ctx: Counts = Field((1, 2, 4, 8, 16), description="Context vectors [tokens].")
    views: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(once)] = Field(
        (0, 1, 10, 50), description="Views of each image; 0: its centre crop [count]."
    )
    members: Counts = Field((1, 2, 4, 8, 16), description="Prompts whose outputs are averaged [count].")
    seeds: int = Field(3, ge=1, description="Runs of every point, counted from train.seed.")

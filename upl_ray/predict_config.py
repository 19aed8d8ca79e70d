"""The configuration of the nightly job: one typed, frozen model, as `config.py` is for the main job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from upl_ray.config import Compute, Source
from upl_ray.section import Job, Section


class Drift(Section):
    """When the predictions of new images are so unlike those before that somebody should look."""

    min_images: int = Field(
        100,
        ge=1,
        description="Images on both sides of a comparison; fewer new ones wait, fewer old ones are joined [images].",
    )
    max_class_shift: float = Field(
        0.1, ge=0, le=1, description="Share of new images in other classes than before, beyond chance [0-1]."
    )
    max_confidence_drop: float = Field(0.05, ge=0, le=1, description="Fall of the mean confidence [0-1].")
    max_rejected_rise: float = Field(0.01, ge=0, le=1, description="Rise of the share of unreadable images [0-1].")
    max_removed: float = Field(0.1, ge=0, le=1, description="Share of images gone or changed since the last run [0-1].")
    fail: bool = Field(
        False, description="End with status 1 on an alert, for schedulers that see nothing else; all is written first."
    )


class Predict(Job):
    """Label the new images of a growing corpus with a finished classifier, incrementally."""

    classifier: str = Field(
        description="Folder of a classifier, or the storage of a run, whose newest one is taken; a path or URL."
    )
    corpus: Source = Field(description="The images; only those that are new or changed cost anything.")
    storage_path: str = Field(
        "", description="Folder of features and predictions; empty: the storage that the classifier lies in."
    )
    model: str = Field("", description="Where this cluster finds the image encoder, if not where it was at training.")
    pretrained: str = Field("", description="Its pretrained tag or weights file, if not that of the training.")
    keep_features: Literal["all", "none"] = Field(
        "all", description="Features that stay after the run: all, for the next training; or none."
    )
    max_rejected: float = Field(
        0.01, ge=0, le=1, description="Share of unreadable images above which the job stops [0-1]."
    )
    drift: Drift = Field(Drift(), description="Limits that raise alerts.")
    compute: Compute = Field(Compute(), description="Resources.")

    @model_validator(mode="after")
    def _complete(self) -> Predict:
        if not self.classifier:
            raise ValueError("classifier is empty; name a classifier's folder, or the storage of a finished run")
        if not self.corpus.uris:
            raise ValueError("corpus.uri is empty; name the folder or prefix of the images")
        if self.corpus.labels != "none":
            raise ValueError(f"corpus.labels is {self.corpus.labels!r}, but this job scores nothing; jobs/upl.py does")
        return self

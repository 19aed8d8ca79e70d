"""The steps that make one variant of a run, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from upl_ray.storage.step import Step, open_step
from upl_ray.storage.store import Store


@dataclass(frozen=True)
class Chain:
    """Each step reads the ones before it."""

    pseudo_labels: Step
    selection: Step
    views: Step
    members: Step
    classifier: Step
    predictions: Step
    scores: Step
    refinement: Step | None = None  # of refined labels: the fit that they are made with

    def folders(self) -> dict[str, str]:
        """Folder of each step, for `run.json`."""
        return {f.name: step.folder for f in fields(self) if (step := getattr(self, f.name))}


def open_chain(store: Store, folders: Mapping[str, str]) -> Chain:
    """The chain whose folders `run.json` names."""
    return Chain(**{name: open_step(store, folder) for name, folder in folders.items()})

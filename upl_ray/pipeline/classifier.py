"""The classifier step: all members in one file, which plain open_clip code can use."""

from __future__ import annotations

import torch

from upl_ray.config.settings import Train
from upl_ray.errors import ConfigError, JobError, first_line
from upl_ray.pipeline.members import read_members
from upl_ray.pipeline.pseudo_labels import Labeler, read_negatives
from upl_ray.pipeline.refinement import estimated_shares
from upl_ray.pipeline.text import read_text_features
from upl_ray.storage.step import Step, open_step
from upl_ray.storage.store import UNREACHABLE, Store
from upl_ray.upl.ensemble import FILE, Ensemble, ensemble_bytes, find_classifier_folder, load_ensemble
from upl_ray.upl.refine import floored


def classifier_step(members: Step, recipe: Train, target: Labeler) -> Step:
    """The ensemble of the first `recipe.members` members; where words compete, with the target's zero-shot features."""
    inputs = {"members": recipe.members, "ensemble": recipe.ensemble}
    return Step.of(members.store, "classifier", version=3, inputs=inputs, needs=[members, *_known_steps(target)])


def make_classifier(
    step: Step,
    members: Step,
    target: Labeler,
    classnames: tuple[str, ...],
    recipe: Train,
    variant: str,
    prior: Step | None = None,
) -> None:
    """Put the members into one classifier file, with what it needs to say how far an image shows a class at all.

    With a prior, the class shares of the refinement that they were learned beside.
    """
    tensors = read_members(members, recipe)
    data = ensemble_bytes(
        target.spec,
        torch.stack([t["text_features"] for t in tensors]),
        torch.stack([t["ctx"] for t in tensors]),
        (read_text_features(target.text)[0], read_negatives(target)) if target.negatives else None,
        classnames=list(classnames),
        logit_scale=float(tensors[0]["logit_scale"]),
        ensemble=recipe.ensemble,
        variant=variant,
        members=members.folder,
        **({"class_shares": floored(torch.tensor(estimated_shares(prior))).tolist()} if prior else {}),
    )
    files = step.write_file(FILE, data)
    step.finish(files=files, members=members.folder, variant=variant, classnames=list(classnames))


def _known_steps(target: Labeler) -> list[Step]:
    return [target.text, target.negatives] if target.negatives else []


def find_classifier(uri: str) -> tuple[Step, Ensemble]:
    """A classifier by its folder, or the one that a run in this storage exported.

    Raises:
        ConfigError: neither is there, it is damaged, or its folder was renamed.
    """
    try:
        folder = find_classifier_folder(uri)
        ensemble = load_ensemble(folder)
        manifest = Store(folder).read_json("manifest.json")
    except JobError as error:  # damaged, or of an older version
        raise ConfigError(str(error)) from None
    except UNREACHABLE as error:
        raise ConfigError(
            f"There is no classifier at {uri!r} ({first_line(error)}); name a classifier's folder, or the storage of a "
            f"finished run."
        ) from None
    parent, _, name = folder.rpartition("/")
    made = f"{manifest['step']}-{manifest['fingerprint']}"
    if name != made or parent.endswith(":/"):
        raise ConfigError(
            f"The classifier at {uri!r} was {made!r} when it was made, and predictions are kept by that name; rename "
            f"its folder back, inside any other folder."
        )
    return open_step(Store(parent), name), ensemble

"""Ensemble members in storage: a checkpoint each while they train, a prompt each when they are done.

Shapes: M context tokens, W text width, C classes, D feature width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch

from upl_ray import integrity, prompt_learner, schema
from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Train
from upl_ray.prompt_learner import PromptLearner, learning_rate


def member_artifact(
    store: Store, views: Artifact, spec: ClipSpec, classnames: tuple[str, ...], recipe: Train
) -> Artifact:
    """Where members lie. Their number is no part of it: 32 members include the 16 that were trained before."""
    fields = (
        "n_ctx",
        "class_position",
        "class_specific",
        "precision",
        "epochs",
        "batch_size",
        "lr",
        "warmup_lr",
        "momentum",
        "weight_decay",
        "init_std",
        "seed",
    )
    identity = {
        "version": prompt_learner.VERSION,
        "views": views.fingerprint,
        "clip": spec.identity(),
        "classnames": list(classnames),
        "recipe": {f: getattr(recipe, f) for f in fields},
    }
    return Artifact(store, "members", fingerprint(identity))


def member_file(member: int) -> str:
    """File name of a finished member in the artifact."""
    return f"prompts/member-{member:02d}.safetensors"


def checkpoint_file(member: int) -> str:
    """File name of an unfinished member in the artifact."""
    return f"checkpoints/member-{member:02d}.safetensors"


def unfinished_members(artifact: Artifact, recipe: Train) -> list[int]:
    """The members that have no finished prompt in storage."""
    names = {f"prompts/{n}" for n in artifact.store.names(artifact.name("prompts"))}
    return [m for m in range(recipe.members) if member_file(m) not in names]


@dataclass(frozen=True)
class Checkpoint:
    """Where the training of one member stands."""

    epoch: int  # the next epoch to train
    state: dict[str, torch.Tensor]
    losses: list[float]


def read_checkpoint(artifact: Artifact, member: int) -> Checkpoint:
    """The last checkpoint of a member, or epoch 0.

    Raises:
        Damaged: it is not what was written.
    """
    try:
        tensors = _read_tensors(artifact, checkpoint_file(member))
    except FileNotFoundError:
        return Checkpoint(0, {}, [])
    losses = tensors.pop("losses").tolist()
    return Checkpoint(len(losses), tensors, losses)


def write_checkpoints(artifact: Artifact, learner: PromptLearner, epoch: int, losses: list[list[float]]) -> None:
    """Store what each member needs to go on from `epoch`."""
    for member, history in zip(learner.members, losses, strict=True):
        assert len(history) == epoch
        tensors = {**learner.state(member), "losses": torch.tensor(history, dtype=torch.float64)}
        _write_tensors(artifact, checkpoint_file(member), safetensors.torch.save(tensors))


def write_members(artifact: Artifact, learner: PromptLearner, losses: list[list[float]], about: dict[str, Any]) -> None:
    """Store each finished member as one safetensors file that says in `about` what it was learned from."""
    text_features = learner.text_features().cpu()  # [G, C, D]
    for g, member in enumerate(learner.members):
        tensors = {
            "ctx": learner.state(member)["ctx"],
            "text_features": text_features[g].contiguous(),
            "losses": torch.tensor(losses[g], dtype=torch.float64),
            "logit_scale": torch.tensor(learner.logit_scale),
        }
        data = safetensors.torch.save(tensors, {"upl_ray": json.dumps({**about, "member": member})})
        _write_tensors(artifact, member_file(member), data)


def read_members(artifact: Artifact, recipe: Train) -> list[dict[str, torch.Tensor]]:
    """ctx [M, W], text_features [C, D], losses [epochs] and logit_scale of each member; a missing one is an error."""
    return [_read_tensors(artifact, member_file(m)) for m in range(recipe.members)]


def _write_tensors(artifact: Artifact, file: str, data: bytes) -> None:
    name = artifact.name(file)
    artifact.store.write(name, integrity.seal_tensors(data, name))


def _read_tensors(artifact: Artifact, file: str) -> dict[str, torch.Tensor]:
    name = artifact.name(file)
    data = integrity.open_tensors(artifact.store.read(name), artifact.store.join(name), name)
    return safetensors.torch.load(data)


def finish_members(artifact: Artifact, recipe: Train) -> None:
    """Store the losses of all members as one table and declare the step done, unless it was for as many or more."""
    if (artifact.manifest() or {"members": 0})["members"] >= recipe.members:
        return
    rows = [
        {"member": m, "epoch": e, "lr": learning_rate(e, recipe), "loss": loss}
        for m, tensors in enumerate(read_members(artifact, recipe))
        for e, loss in enumerate(tensors["losses"].tolist())
    ]
    files = artifact.write_file("history.parquet", pa.Table.from_pylist(rows, schema=schema.HISTORY))
    artifact.finish(files=files, members=recipe.members, epochs=recipe.epochs)

"""The member step: ensemble members in storage, a checkpoint each while they train, a prompt each when they are done.

Shapes: M context tokens, W text width, C classes, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from upl_ray.config.settings import Train
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.upl import prompt_learner
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.prompt_learner import PromptLearner, learning_rate
from upl_ray.upl.tensors import load_tensors, save_tensors


def member_step(
    views: Step, spec: ClipSpec, classnames: tuple[str, ...], recipe: Train, prior: Step | None = None
) -> Step:
    """Members learned on some views; their number is no part of it: 32 include the 16 that were trained before.

    `prior` is the refinement whose class shares they are learned beside, see `PromptLearner`.
    """
    fields = (
        "n_ctx",
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
    inputs = {
        "learner": prompt_learner.VERSION,
        "clip": spec.text_identity(),
        "classnames": list(classnames),
        "recipe": {f: getattr(recipe, f) for f in fields},
    }
    return Step.of(views.store, "members", version=1, inputs=inputs, needs=[views, *([prior] if prior else [])])


def member_file(member: int) -> str:
    """File name of a finished member in the step."""
    return f"prompts/member-{member:02d}.safetensors"


def checkpoint_file(member: int) -> str:
    """File name of an unfinished member in the step."""
    return f"checkpoints/member-{member:02d}.safetensors"


def unfinished_members(step: Step, recipe: Train) -> list[int]:
    """The members that have no finished prompt in storage."""
    names = {f"prompts/{n}" for n in step.store.names(step.path("prompts"))}
    return [m for m in range(recipe.members) if member_file(m) not in names]


@dataclass(frozen=True)
class Checkpoint:
    """Where the training of one member stands."""

    epoch: int  # the next epoch to train
    state: dict[str, torch.Tensor]
    losses: list[float]


def read_checkpoint(step: Step, member: int) -> Checkpoint:
    """The last checkpoint of a member, or epoch 0.

    Raises:
        Damaged: it is not what was written; delete it, and the member begins again.
    """
    try:
        tensors = _read_tensors(step, checkpoint_file(member))
    except FileNotFoundError:
        return Checkpoint(0, {}, [])
    losses = tensors.pop("losses").tolist()
    return Checkpoint(len(losses), tensors, losses)


def write_checkpoints(step: Step, learner: PromptLearner, epoch: int, losses: list[list[float]]) -> None:
    """Store what each member needs to go on from `epoch`; of workers that share the classes, the first one does."""
    if learner.shares.rank:
        return
    for member, history in zip(learner.members, losses, strict=True):
        assert len(history) == epoch
        tensors = {**learner.state(member), "losses": torch.tensor(history, dtype=torch.float64)}
        step.store.write(step.path(checkpoint_file(member)), save_tensors(tensors))


def write_members(step: Step, learner: PromptLearner, losses: list[list[float]], about: dict[str, Any]) -> None:
    """Store each finished member as one safetensors file that says in `about` what it was learned from.

    All workers that share the classes take part, and the first one writes.
    """
    text_features = learner.text_features().cpu()  # [G, C, D]
    if learner.shares.rank:
        return
    for g, member in enumerate(learner.members):
        tensors = {
            "ctx": learner.state(member)["ctx"],
            "text_features": text_features[g].contiguous(),
            "losses": torch.tensor(losses[g], dtype=torch.float64),
            "logit_scale": torch.tensor(learner.logit_scale),
        }
        step.store.write(step.path(member_file(member)), save_tensors(tensors, {**about, "member": member}))


def read_members(step: Step, recipe: Train) -> list[dict[str, torch.Tensor]]:
    """ctx [M, W], text_features [C, D], losses [epochs] and logit_scale of each member; a missing one is an error."""
    return [_read_tensors(step, member_file(m)) for m in range(recipe.members)]


def _read_tensors(step: Step, file: str) -> dict[str, torch.Tensor]:
    name = step.path(file)
    return load_tensors(step.store.read(name), step.store.join(name))[0]


def finish_members(step: Step, recipe: Train) -> None:
    """Store the losses of all members as one table and declare the step done, unless it was for as many or more."""
    if (step.find_manifest() or {"members": 0})["members"] >= recipe.members:
        return
    rows = [
        {"member": m, "epoch": e, "lr": learning_rate(e, recipe), "loss": loss}
        for m, tensors in enumerate(read_members(step, recipe))
        for e, loss in enumerate(tensors["losses"].tolist())
    ]
    files = step.write_file("history.parquet", pa.Table.from_pylist(rows, schema=schema.HISTORY))
    step.finish(files=files, members=recipe.members, epochs=recipe.epochs)

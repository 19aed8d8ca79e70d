"""Classes split over workers that really are processes: the contexts, losses and features of a single worker."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import resolve_folder, write_model
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from upl_ray.config.settings import Train
from upl_ray.upl.class_shares import ClassShares
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner, initial_ctx

NAMES = ("cat", "sea horse", "a very long name of a bird", "dog", "hot air balloon", "ant", "bee")
WORLDS = (2, 3)  # seven classes: 3 + 4, and 2 + 2 + 3
MEMBERS, EPOCHS = (0, 4, 2), 4
PASSES = ("packed", "truncated", "own")


@dataclass(frozen=True)
class Case:
    """How a small training differs; `memory` is a limit in members' activations, for each rank."""

    text_pass: str = "packed"
    soft: bool = False
    precision: str = "fp32"
    memory: tuple[float | None, ...] = (None, None, None)
    resumed: bool = False


LITTLE, LEAST, RESUMED = Case(memory=(1.5, 0.4, None)), Case(soft=True, memory=(None, 2.5, 0.01)), Case(resumed=True)
CASES = [
    *(Case(*case) for case in product(PASSES, (False, True), ("fp32", "bf16"))),
    *(replace(LITTLE, text_pass=text_pass) for text_pass in PASSES),
    LEAST,
    RESUMED,
]
Results = dict[int, list[dict[Case, dict[str, Any]]]]  # world -> rank -> case -> what was learned


def make_learner(clip: ClipModel, case: Case, shares: ClassShares) -> PromptLearner:
    """A learner of one worker; soft labels lie beside a prior, and their rows do not sum to 1."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(21, 2, 24, generator=generator), dim=-1)
    labels, prior = torch.arange(21) % 7, None
    if case.soft:
        labels = torch.randn(21, 7, generator=generator).mul(3).softmax(-1) * torch.linspace(0.8, 1.2, 21)[:, None]
        prior = torch.arange(1, 8) / 28
    encoder = PromptEncoder(clip, NAMES[shares.own], 4)
    encoder.mode = case.text_pass  # type: ignore[assignment]
    limit = case.memory[shares.rank]
    memory = None if limit is None else limit * encoder.activation_bytes()
    recipe = Train(n_ctx=4, epochs=EPOCHS, batch_size=8, lr=0.02, precision=case.precision)  # type: ignore[arg-type]
    return PromptLearner(encoder, features, labels, MEMBERS, recipe, 50.0, memory, prior, shares)


def trained(clip: ClipModel, case: Case, shares: ClassShares) -> dict[str, Any]:
    learner, losses = make_learner(clip, case, shares), []
    for epoch in range(EPOCHS):
        if case.resumed and epoch == 2:
            states = [learner.state(m) for m in MEMBERS]
            learner = make_learner(clip, case, shares)
            learner.load_states(states)
        losses.append(learner.train_epoch(epoch))
    return {
        "ctx": learner.ctx.detach(),
        "losses": torch.tensor(losses),
        "features": learner.text_features(),
        "turns": (learner.members_at_once, len(learner.encoder.chunks)),
        "step": learner.describe_step(),
    }


def run_worker(rank: int, model: Path, folder: Path) -> None:
    """Body of one process: every case in every world that it belongs to."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    clip = ClipModel(resolve_folder(model), device="cpu")
    for world in WORLDS:
        if rank < world:
            store, timeout = f"file://{folder}/store-{world}", timedelta(seconds=120)
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
            found = {case: trained(clip, case, ClassShares(len(NAMES), rank, world)) for case in CASES}
            torch.save(found, folder / f"{world}-{rank}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return ClipModel(resolve_folder(write_model(tmp_path_factory.mktemp("shares") / "model")), device="cpu")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All cases in all worlds: one start of processes, of which two form the first world."""
    folder = tmp_path_factory.mktemp("workers")
    model = write_model(folder / "model")
    multiprocessing.set_forkserver_preload([__name__])  # imports once for all workers, in a process that only forks
    start_processes(run_worker, (model, folder), nprocs=max(WORLDS), start_method="forkserver")
    files = {world: [folder / f"{world}-{rank}.pt" for rank in range(world)] for world in WORLDS}
    return {world: [torch.load(file, weights_only=False) for file in of] for world, of in files.items()}


def start(width: int) -> Tensor:
    return torch.stack([torch.from_numpy(initial_ctx(Train(n_ctx=4), m, (4, width))) for m in MEMBERS])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_workers_that_share_the_classes_learn_what_a_single_one_learns(
    clip: ClipModel, shared: Results, world: int, case: Case
) -> None:
    alone = trained(clip, Case(case.text_pass, case.soft, case.precision), ClassShares(len(NAMES)))
    moved = alone["ctx"] - start(alone["ctx"].shape[-1])
    assert moved.abs().amax((1, 2)).min() > 0.05
    results = [of_rank[case] for of_rank in shared[world]]
    for found in results:
        for name in ("ctx", "losses", "features"):
            assert torch.equal(found[name], results[0][name])
        assert f"classes shared by {world} workers" in found["step"]
    if case.precision == "bf16":  # other shapes are rounded elsewhere
        assert (results[0]["ctx"] - alone["ctx"]).norm() < 0.05 * moved.norm()
        torch.testing.assert_close(results[0]["losses"], alone["losses"], rtol=0.02, atol=0)
    else:
        torch.testing.assert_close(results[0]["ctx"], alone["ctx"], rtol=0, atol=1e-5)
        torch.testing.assert_close(results[0]["losses"], alone["losses"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(results[0]["features"], alone["features"], rtol=0, atol=1e-5)


def test_all_workers_take_as_few_members_at_once_as_the_one_with_the_least_memory(shared: Results) -> None:
    assert [found[LITTLE]["turns"] for found in shared[3]] == [(1, 1), (1, 2), (1, 1)]
    assert [found[LEAST]["turns"] for found in shared[2]] == [(2, 1), (2, 1)]
    assert [found[LEAST]["turns"] for found in shared[3]] == [(1, 1), (1, 1), (1, 3)]


def test_resumed_training_is_bitwise_the_uninterrupted_one(shared: Results) -> None:
    resumed, whole = shared[3][0][RESUMED], shared[3][0][Case()]
    assert torch.equal(resumed["ctx"], whole["ctx"])
    assert torch.equal(resumed["losses"], whole["losses"])


@pytest.mark.parametrize("n_classes", [1, 2, 7, 16, 21_000])
@pytest.mark.parametrize("world", [1, 2, 3, 7, 8])
def test_every_class_has_one_worker_and_shares_differ_by_one_at_most(n_classes: int, world: int) -> None:
    if world > n_classes:
        with pytest.raises(ValueError, match=f"{world} workers cannot share {n_classes} classes"):
            ClassShares(n_classes, 0, world)
        return
    shares = [list(range(n_classes))[ClassShares(n_classes, rank, world).own] for rank in range(world)]
    assert [c for share in shares for c in share] == list(range(n_classes))
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


def test_an_encoder_of_other_classes_than_the_share_is_refused(clip: ClipModel) -> None:
    encoder = PromptEncoder(clip, NAMES, 4)
    data = torch.randn(21, 1, 24), torch.arange(21) % 7
    with pytest.raises(ValueError, match="7 classes, this worker's share 4"):
        PromptLearner(encoder, *data, MEMBERS, Train(n_ctx=4), 50.0, shares=ClassShares(7, 1, 2))

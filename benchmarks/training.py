"""Training a member and an ensemble of 16 against the procedure of the published code.

python -m benchmarks.training --classes 20

RN50 with random weights at 224 px, K = 16 images a class, batch 32, 50 epochs, 16 context tokens. The published
procedure encodes each batch's augmented images anew for every member and epoch, and all classes over 77 tokens. Ours
encodes 50 views of each image once (the view bank), then trains on features with the packed text pass.

Extrapolation: seconds of one image batch, of one plain step, and of our real epochs (all members as one batch) are
measured in interleaved rounds; everything is linear in batches, epochs and members, so each total is a count times a
median. The plain step of more classes than fit (`prompt_step.plain_limit`) is scaled linearly, too. Decoding is left
out on both sides, which favours the published procedure. `--precision fp32 bf16` measures our epochs in both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

from benchmarks.measure import hardware, interleaved, peak_host_gib, report
from benchmarks.prompt_step import BATCH, LOGIT_SCALE, N_CTX, RandomClip, plain_limit, step
from upl_ray.config.settings import Train
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner

EPOCHS, VIEWS, K = 50, 50, 16
MEMBERS = (1, 16)
GPU_SHARE = 0.8  # of a GPU's free memory, for activations: as the job's training


def learner_of(clip: RandomClip, names: tuple[str, ...], bank: Tensor, members: int, precision: Any) -> PromptLearner:
    """The job's own training of some members, in the memory that the job would let it have."""
    cuda = clip.device.type == "cuda"
    return PromptLearner(
        PromptEncoder(clip, names, N_CTX),  # type: ignore[arg-type]
        bank,
        torch.arange(len(bank)) % len(names),
        range(members),
        Train(epochs=EPOCHS, precision=precision),
        LOGIT_SCALE,
        GPU_SHARE * torch.cuda.mem_get_info()[0] if cuda else None,
    )


def warm_up(learner: PromptLearner) -> dict[str, float]:
    """One step; returns its peak of the GPU's memory [GiB], with the view bank and all that lies there."""
    batch = torch.arange(BATCH, device=learner.device).expand(len(learner.members), BATCH)
    cuda = learner.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    learner.step(learner.view_features[batch, 0].float(), learner.pseudo_labels[batch])
    return {"GPU peak [GiB]": torch.cuda.max_memory_allocated() / 2**30} if cuda else {}


def published_sides(clip: RandomClip, names: tuple[str, ...], views: Tensor) -> dict[str, Callable[[], Any]]:
    """One batch of images and one plain step of one member, with the view features of its images [B, D]."""
    plain = PromptEncoder(clip, names, N_CTX)  # type: ignore[arg-type]
    plain.mode = "own"
    ctx = (torch.randn(1, N_CTX, plain.width) * 0.02).to(clip.device).requires_grad_()
    labels = torch.arange(BATCH, device=clip.device) % len(names)
    pixels = torch.randn(BATCH, 3, 224, 224, device=clip.device)
    return {
        "images": partial(torch.inference_mode()(clip.model.encode_image), pixels),
        "plain step": partial(step, plain, ctx, views[None].float(), labels[None]),
    }


def totals(members: int, classes: int, batch_s: float, plain_s: float, epoch_s: float) -> dict[str, Any]:
    """Both procedures' totals, from the seconds of one batch of images, one plain step and one of our epochs."""
    images, steps = K * classes, K * classes // BATCH
    published = members * EPOCHS * steps * (batch_s + plain_s)
    bank, training = images * VIEWS / BATCH * batch_s, EPOCHS * epoch_s
    return {
        "published [min]": published / 60,
        "ours [min]": (bank + training) / 60,
        "of it view bank [min]": bank / 60,
        "of it training [h]": training / 3600,
        "ratio": published / (bank + training),
        "ratio, bank reused": published / training,
    }


def main() -> None:
    """Print the totals of 1 and 16 members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip, names = RandomClip(device), tuple(IMAGENET_CLASSNAMES[: args.classes])
    # In half precision and on the device, as in training; filled image by image to keep the host's peak low.
    bank = torch.empty(K * args.classes, VIEWS, 1024, dtype=torch.float16, device=device)
    for views in bank:
        views.copy_(nn.functional.normalize(torch.randn(VIEWS, 1024), dim=-1))
    some = names[: plain_limit(clip)]
    sides = published_sides(clip, some, bank[:BATCH, 0])
    learners = {(m, p): learner_of(clip, names, bank, m, p) for p in args.precision for m in MEMBERS}
    for side in sides.values():
        side()
    peaks = {key: warm_up(learner) for key, learner in learners.items()}
    epochs = {f"epoch of {m}, {p}": partial(learner.train_epoch, 1) for (m, p), learner in learners.items()}
    times = interleaved(sides | epochs, args.repeats, warm_up=False)
    seconds = {side: median(t) for side, t in times.items()}
    plain_s = seconds["plain step"] * args.classes / len(some)
    rows: list[dict[str, Any]] = []
    for (m, p), learner in learners.items():
        row = totals(m, args.classes, seconds["images"], plain_s, seconds[f"epoch of {m}, {p}"])
        row |= {"members at once": learner.members_at_once, "class chunks": len(learner.encoder.chunks)}
        rows.append({"members": m, "precision": p, **row, **peaks[m, p]})
    facts = {"classes": args.classes, "epochs": EPOCHS, "seconds": seconds, "host_peak_gib": peak_host_gib()}
    report("training", rows, **facts, hardware=hardware(device), torch=torch.__version__)


if __name__ == "__main__":
    main()

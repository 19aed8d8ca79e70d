"""Training a member and an ensemble of 16 against the procedure of the published code.

python -m benchmarks.training --classes 20

RN50 with random weights at 224 px, K = 16 images a class, batch 32, 50 epochs, 16 context tokens. The published
procedure encodes each batch's augmented images anew for every member and epoch, and all classes over 77 tokens. Ours
encodes 50 views of each image once (the view bank), then trains on features with the packed text pass.

Extrapolation: seconds of one image batch, of one plain step, and of our real epochs (all members as one batch) are
measured in interleaved rounds; everything is linear in batches, epochs and members, so each total is a count times a
median. Decoding is left out on both sides, which favours the published procedure.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import nn

from benchmarks.measure import hardware, interleaved, report
from benchmarks.prompt_step import BATCH, LOGIT_SCALE, N_CTX, RandomClip, step
from upl_ray.config.settings import Train
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner

EPOCHS, VIEWS, K = 50, 50, 16


def main() -> None:
    """Print the totals of 1 and 16 members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip, names = RandomClip(device), tuple(IMAGENET_CLASSNAMES[: args.classes])
    images, steps = K * args.classes, K * args.classes // BATCH
    generator = torch.Generator().manual_seed(0)
    bank = nn.functional.normalize(torch.randn(images, VIEWS, 1024, generator=generator), dim=-1)
    labels = torch.arange(images) % args.classes

    plain = PromptEncoder(clip, names, N_CTX)  # type: ignore[arg-type]
    plain.mode = "own"
    ctx = (torch.randn(1, N_CTX, plain.width) * 0.02).to(device).requires_grad_()
    pixels = torch.randn(BATCH, 3, 224, 224, device=device)
    first = bank[:BATCH, 0][None].to(device), labels[:BATCH][None].to(device)
    learners = {
        members: PromptLearner(
            PromptEncoder(clip, names, N_CTX),  # type: ignore[arg-type]
            bank,
            labels,
            range(members),
            Train(epochs=EPOCHS),
            LOGIT_SCALE,
        )
        for members in (1, 16)
    }
    encode = partial(torch.inference_mode()(clip.model.encode_image), pixels)
    times = interleaved(
        {
            "images": encode,
            "plain step": partial(step, plain, ctx, *first),
            "epoch of 1": partial(learners[1].train_epoch, 1),
            "epoch of 16": partial(learners[16].train_epoch, 1),
        },
        args.repeats,
    )
    seconds = {side: median(t) for side, t in times.items()}
    bank_seconds = images * VIEWS / BATCH * seconds["images"]
    rows = []
    for members in (1, 16):
        published = members * EPOCHS * steps * (seconds["images"] + seconds["plain step"])
        training = EPOCHS * seconds[f"epoch of {members}"]
        rows.append(
            {
                "members": members,
                "published [min]": published / 60,
                "ours [min]": (bank_seconds + training) / 60,
                "of it view bank [min]": bank_seconds / 60,
                "ratio": published / (bank_seconds + training),
                "ratio, bank reused": published / training,
            }
        )
    report("training", rows, classes=args.classes, seconds=seconds, hardware=hardware(device), torch=torch.__version__)


if __name__ == "__main__":
    main()

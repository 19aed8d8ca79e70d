"""Peak memory and time of one training step with many classes, in a process that does nothing else.

python -m benchmarks.memory --classes 1000 --memory 1
python -m benchmarks.memory --classes 21000 --memory 2

RN50's text tower with random weights, 16 context tokens, batch 32, one member, fp32. `--memory` is what activations may
take [GiB]; classes are processed in chunks, exactly, to stay below. The peak is the process' own (`VmHWM`), with
weights, libraries and class names; beside it, what the process had taken before its first step.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import nn

from benchmarks.measure import hardware, peak_host_gib, report, seconds_of
from benchmarks.prompt_step import BATCH, LOGIT_SCALE, N_CTX, RandomClip
from upl_ray.config.settings import Train
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner


def class_names(n: int) -> tuple[str, ...]:
    """ImageNet's class names, then the same with adjectives and numbers before them."""
    pairs = itertools.product(["", "small ", "old ", "red ", *[f"{i} " for i in range(100)]], IMAGENET_CLASSNAMES)
    return tuple(adjective + name for adjective, name in itertools.islice(pairs, n))


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--memory", type=float, default=1.0, help="GiB for activations")
    args = parser.parse_args()
    names = class_names(args.classes)
    clip = RandomClip("cpu")
    learner = PromptLearner(
        PromptEncoder(clip, names, N_CTX),  # type: ignore[arg-type]
        nn.functional.normalize(torch.randn(BATCH, 1, 1024), dim=-1),
        torch.randint(len(names), (BATCH,)),
        [0],
        Train(),
        LOGIT_SCALE,
        args.memory * 2**30,
    )
    before = peak_host_gib()
    row = {
        "classes": len(names),
        "chunks": len(learner.encoder.chunks),
        "first step [s]": seconds_of(lambda: learner.train_epoch(1)),
        "before [GiB]": before,
        "peak [GiB]": peak_host_gib(),
    }
    report("memory", [row], hardware=hardware("cpu"), torch=torch.__version__)


if __name__ == "__main__":
    main()

"""One training step: a plain CoOp-style step (77 tokens, every class in full) against the packed one.

python -m benchmarks.prompt_step --classes 100 --members 1 --precision fp32 bf16

RN50's text tower with random weights, 16 context tokens, batch 32, ImageNet's class names. The plain step of more than
`--plain-limit` classes does not fit in memory; it is measured at the limit and scaled linearly, which favours it. It is
in fp32; beside a packed step in bf16 it is measured in bf16, too. The share of the matmul peak is the linear layers'
arithmetic (no padding, no attention) over the rate of a 2048 x 2048 product (on a GPU 8192 x 8192), the best of three
in the same round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, Literal

import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

from benchmarks.measure import hardware, interleaved, matmul_rate, report
from upl_ray.upl.clip_model import DTYPES
from upl_ray.upl.prompt_encoder import PromptEncoder

BATCH, N_CTX, LOGIT_SCALE = 32, 16, 100.0
PLAIN_CLASSES = 100  # of the plain step, on CPUs
PLAIN_SHARE = 0.2  # of a GPU's free memory that the plain step may take


class RandomClip:
    """RN50 with random weights, as much of a `ClipModel` as the prompt encoder needs."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.model = open_clip.create_model("RN50", load_weights=False, device=device).eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer("RN50")
        self.spec = argparse.Namespace(name="RN50")


Precision = Literal["fp32", "bf16"]


def step(
    encoder: PromptEncoder, ctx: Tensor, image_features: Tensor, labels: Tensor, precision: Precision = "fp32"
) -> Tensor:
    """Class features of one forward and backward pass; the gradient is left in `ctx.grad`."""
    ctx.grad = None
    text_features = encoder(ctx, precision)
    logits = LOGIT_SCALE * image_features @ text_features.transpose(1, 2)  # [G, B, C]
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    features: Tensor = text_features.detach()
    return features


def step_of_each(encoder: PromptEncoder, ctx: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Class features [G, C, D] and gradient [G, M, W] of one step in fp32, member by member, which saves memory."""
    found, gradients = [], []
    for g in range(len(ctx)):
        one = ctx[g : g + 1].detach().requires_grad_()
        found.append(step(encoder, one, features[g : g + 1], labels[g : g + 1]))
        assert one.grad is not None
        gradients.append(one.grad / len(ctx))  # the loss is the mean over all members' images
    return torch.cat(found), torch.cat(gradients)


def plain_limit(clip: RandomClip) -> int:
    """Classes that the plain step can hold: `PLAIN_CLASSES`, or on a GPU as many as `PLAIN_SHARE` of it holds."""
    if clip.device.type == "cpu":
        return PLAIN_CLASSES
    one = PromptEncoder(clip, ("cat",), N_CTX)  # type: ignore[arg-type]
    one.mode = "own"
    return max(1, int(PLAIN_SHARE * torch.cuda.mem_get_info()[0] / one.activation_bytes()))


def linear_flop(encoder: PromptEncoder, members: int) -> float:
    """Multiplications and additions that the linear layers need, forward and for the input's gradient; no padding."""
    w, layers, c = encoder.width, len(encoder.tower.transformer.resblocks), len(encoder.ids)
    p = encoder.packed[0].stop
    n = p + int((encoder.eos - p + 1).sum())
    middle = 24 * w * w * n * (layers - 2)
    first = 6 * w * w * p + 18 * w * w * n
    last = 4 * w * w * n + 20 * w * w * c  # keys and values of all; query, projection and MLP at EOS
    return 2.0 * members * (first + middle + last)


def measure(
    clip: RandomClip, classes: int, members: int, precision: Precision, args: argparse.Namespace
) -> dict[str, object]:
    """One row: both sides' seconds, their ratio, agreement, and the share of the matmul peak."""
    device, dtype = clip.device.type, DTYPES[precision]
    plain_classes = min(classes, args.plain_limit)
    names = tuple(IMAGENET_CLASSNAMES[:classes])
    ours = PromptEncoder(clip, names, N_CTX)  # type: ignore[arg-type]
    plain = PromptEncoder(clip, names[:plain_classes], N_CTX)  # type: ignore[arg-type]
    plain.mode = "own"
    generator = torch.Generator().manual_seed(1)
    ctx = torch.nn.Parameter((torch.randn(members, N_CTX, ours.width, generator=generator) * 0.02).to(device))
    features = nn.functional.normalize(torch.randn(members, BATCH, 1024, generator=generator), dim=-1).to(device)
    labels = torch.randint(plain_classes, (members, BATCH), generator=generator).to(device)

    same = PromptEncoder(clip, names[:plain_classes], N_CTX)  # type: ignore[arg-type]
    reference, reference_gradient = step_of_each(plain, ctx, features, labels)
    packed, packed_gradient = step(same, ctx, features, labels, precision), ctx.grad
    assert packed_gradient is not None
    rates: list[float] = []
    first = ctx[:1].detach().requires_grad_(), features[:1], labels[:1]
    sides: dict[str, Callable[[], Any]] = {
        "plain": partial(step, plain, *first),
        "packed": partial(step, ours, ctx, features, labels, precision),
        "peak": lambda: rates.append(matmul_rate(dtype, device)),
    }
    if precision != "fp32":
        sides["plain alike"] = partial(step, plain, *first, precision)
    rounds = interleaved(sides, args.repeats)
    seconds = {side: median(times) for side, times in rounds.items()}
    scale = classes / plain_classes * members
    flop = linear_flop(ours, members)
    shares = [flop / s / rate for s, rate in zip(rounds["packed"], rates[1:], strict=True)]  # the first: warm-up
    return {
        "classes": classes,
        "members": members,
        "precision": precision,
        "plain [s]": scale * seconds["plain"],
        "plain is": "measured" if classes == plain_classes and members == 1 else "scaled",
        "packed [s]": seconds["packed"],
        "ratio": scale * seconds["plain"] / seconds["packed"],
        "ratio, same precision": scale * seconds.get("plain alike", seconds["plain"]) / seconds["packed"],
        "features differ": float((packed - reference).abs().max()),
        "gradient differs": float((packed_gradient - reference_gradient).norm() / reference_gradient.norm()),
        "share of matmul peak": median(shares),
    }


def main() -> None:
    """Print a row for each combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--members", type=int, nargs="+", default=[1])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain-limit", type=int, help="largest number of classes of the plain step")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = RandomClip(device)
    args.plain_limit = args.plain_limit or plain_limit(clip)
    combinations = [(c, m, p) for c in args.classes for m in args.members for p in args.precision]
    rows = [measure(clip, c, m, p, args) for c, m, p in combinations]
    report("prompt_step", rows, hardware=hardware(device), torch=torch.__version__)


if __name__ == "__main__":
    main()

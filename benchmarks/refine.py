"""Refined labels against fused ones on cached features with true labels, from balanced to uneven and absent classes.

python -m benchmarks.refine --data FILE.npz

The file holds `labels` [N], `classes` [C] and, for each backbone, `NAME/images` [N, D] and `NAME/texts` [C, D], such as
the features of OpenAI's RN50, ViT-B/32 and ViT-L/14 for WHU-RS19 that RS-TransCLIP (MIT) has published. Prints a table
and a line of JSON: accuracy [%] of all labels, the mean over draws, and the worst draw against the fused labels.

python -m benchmarks.refine --speed

Seconds of one sweep, which is `memberships` and `statistics`, over random float16 features, with one torch thread and
with two where the machine has them. The limit is the sweep's 4 N C sum(D_b) operations at the rate of a 2048 x 2048
product in float32 with as many threads, the best of three in the same round. `--images 4000` is a quick try.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.measure import hardware, interleaved, matmul_rate, report
from upl_ray.upl.refine import memberships, refine, statistics
from upl_ray.upl.zero_shot import probabilities

LOGIT_SCALE = 100.0  # OpenAI's models
Rows = npt.NDArray[np.int64]


def draws(labels: Rows, imbalance: float = 1, present: int | None = None, seeds: int = 5) -> list[Rows]:
    """Rows of each draw: classes whose sizes fall geometrically by `imbalance`, or only some of the classes."""
    n_classes = int(labels.max()) + 1
    rows = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(n_classes)
        if present is not None:
            rows.append(np.flatnonzero(np.isin(labels, order[:present])))
        elif imbalance == 1:
            return [np.arange(len(labels))]
        else:
            sizes = [max(1, round(50 * imbalance ** (-k / (n_classes - 1)))) for k in range(n_classes)]
            kept = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(order, sizes, strict=True)]
            rows.append(np.sort(np.concatenate(kept)))
    return rows


def read(path: str) -> tuple[Rows, dict[str, tuple[Tensor, Tensor]]]:
    """True labels [N], and each backbone's normalised features and zero-shot probabilities."""
    data = np.load(path)
    backbones = {}
    for name in (key.removesuffix("/images") for key in data if key.endswith("/images")):
        images, texts = (torch.from_numpy(data[f"{name}/{what}"]).float() for what in ("images", "texts"))
        images, texts = (torch.nn.functional.normalize(x, dim=1) for x in (images, texts))
        backbones[name] = (images, probabilities(images, texts, LOGIT_SCALE))
    return data["labels"].astype(np.int64), backbones


def measure(labels: Rows, backbones: list[tuple[Tensor, Tensor]], rows: list[Rows], beta: float) -> dict[str, float]:
    """Mean accuracy of fused and refined labels over draws [%], and the worst difference."""
    fused: list[float] = []
    refined: list[float] = []
    for some in rows:
        p = torch.stack([p[some] for _, p in backbones]).mean(dim=0)
        z = refine([x[some] for x, _ in backbones], p, beta=beta).probabilities
        for accuracies, of in ((fused, p), (refined, z)):
            accuracies.append(100 * float((of.argmax(dim=1).numpy() == labels[some]).mean()))
    worst = min(b - a for a, b in zip(fused, refined, strict=True))
    return {"fused": float(np.mean(fused)), "refined": float(np.mean(refined)), "worst": worst}


def random_images(n: int, c: int, widths: list[int]) -> tuple[list[Tensor], Tensor]:
    """Normalised float16 features B x [N, D_b] and probabilities [N, C]."""
    generator = torch.Generator().manual_seed(0)
    features = []
    for width in widths:
        x = torch.randn(n, width, generator=generator)
        features.append(torch.nn.functional.normalize(x, dim=1).half())
    return features, torch.randn(n, c, generator=generator).mul(3).softmax(dim=1)


def measure_speed(features: list[Tensor], p: Tensor, threads: int, repeats: int) -> dict[str, object]:
    """Seconds of a sweep beside the matmul limit."""
    torch.set_num_threads(threads)
    widths = [x.shape[1] for x in features]
    refined = refine(features, p, sweeps=1)
    rates: list[float] = []
    seconds = interleaved(
        {
            "memberships": partial(memberships, features, p, refined.mixture, beta=5.0),
            "statistics": partial(statistics, features, refined.probabilities),
            "peak": lambda: rates.append(matmul_rate(torch.float32, "cpu")),
        },
        repeats,
    )
    sweeps = [a + b for a, b in zip(seconds["memberships"], seconds["statistics"], strict=True)]
    limits = [4 * p.numel() * sum(widths) / rate for rate in rates[1:]]  # the first: warm-up
    return {
        "images": p.shape[0],
        "classes": p.shape[1],
        "widths": "+".join(map(str, widths)),
        "threads": threads,
        "memberships [s]": median(seconds["memberships"]),
        "statistics [s]": median(seconds["statistics"]),
        "sweep [s]": median(sweeps),
        "limit [s]": median(limits),
        "share of matmul peak": median(a / b for a, b in zip(limits, sweeps, strict=True)),
    }


def main() -> None:
    """Every corpus with all backbones, and with each alone; or the speed of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", help="features with true labels, an npz file")
    what.add_argument("--speed", action="store_true", help="measure one sweep on random features")
    parser.add_argument("--beta", type=float, default=5.0)
    parser.add_argument("--images", type=int, default=100_000, help="of --speed, as all that follow")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.speed:
        features, p = random_images(args.images, args.classes, args.widths)
        threads = range(1, min(2, os.cpu_count() or 1) + 1)
        rows = [measure_speed(features, p, n, args.repeats) for n in threads]
        report("refine_speed", rows, hardware=hardware("cpu"), torch=torch.__version__)
    else:
        print_accuracies(args.data, args.beta)


def print_accuracies(path: str, beta: float) -> None:
    """A table and a line of JSON."""
    labels, backbones = read(path)
    n = int(labels.max()) + 1
    corpora = {
        "all classes": draws(labels),
        "imbalance 10": draws(labels, imbalance=10),
        "imbalance 50": draws(labels, imbalance=50),
        f"{(n + 1) // 2} of {n} classes": draws(labels, present=(n + 1) // 2),
        f"{(n + 2) // 4} of {n} classes": draws(labels, present=(n + 2) // 4),
    }
    results = []
    for names in [list(backbones), *([name] for name in backbones if len(backbones) > 1)]:
        for corpus, rows in corpora.items():
            row = measure(labels, [backbones[name] for name in names], rows, beta)
            results.append(
                {"backbones": " + ".join(names), "corpus": corpus, **{k: round(v, 1) for k, v in row.items()}}
            )
    print(f"{'backbones':<32}{'corpus':<22}{'fused':>8}{'refined':>9}{'worst':>8}")
    for r in results:
        print(f"{r['backbones']:<32}{r['corpus']:<22}{r['fused']:>8.1f}{r['refined']:>9.1f}{r['worst']:>+8.1f}")
    print(json.dumps({"benchmark": "refine", "beta": beta, "rows": results}))


if __name__ == "__main__":
    main()

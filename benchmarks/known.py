"""Do known images lie apart from unknown ones? AUROC [%] of `known` and of confidence, on true labels.

python -m benchmarks.known --run STORAGE

Of a finished run whose corpus has folders as labels: an image whose label is no class is unknown.

python -m benchmarks.known --data FILE.npz

On cached features (see benchmarks.refine): in each of 20 draws half of the classes are there, a quarter are the words
that compete, and the images of the last quarter are unknown. Prints means over draws, of each backbone and all fused.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.refine import LOGIT_SCALE
from upl_ray.report.finished import open_run
from upl_ray.storage.store import absolute
from upl_ray.upl.zero_shot import known, probabilities

DRAWS = 20
Shares = npt.NDArray[np.float32]


def auroc(is_known: npt.NDArray[np.bool_], shares: Shares) -> float:
    """Chance that a known image has a larger share than an unknown one [%]."""
    return round(100 * float(roc_auc_score(is_known, shares)), 1)


def of_run(uri: str) -> dict[str, float]:
    """Of the exported variant's pseudo-labels."""
    run = open_run(absolute(uri))
    corpus, variant, found = run.corpora["corpus"], run.variants[0], []
    true: dict[str, str] = {}
    for shard in corpus.shards:
        listing = corpus.listing(shard, ["image_id", "label"])
        true |= dict(zip(listing["image_id"].to_pylist(), listing["label"].to_pylist(), strict=True))
        found += variant.chain.pseudo_labels.read_shard(shard.state).to_pylist()
    of_class = np.array([true[r["image_id"]] in run.classnames for r in found])
    return {
        "images": len(found),
        "unknown": int((~of_class).sum()),
        **{name: auroc(of_class, np.array([r[name] for r in found])) for name in ("known", "confidence")},
    }


def of_features(path: str) -> dict[str, dict[str, float]]:
    """The mean over draws, of each backbone and of all fused."""
    data = np.load(path)
    labels = data["labels"]
    names = [key.removesuffix("/images") for key in data if key.endswith("/images")]
    n_classes, sums = int(labels.max()) + 1, {name: np.zeros(2) for name in [*names, "fused"]}
    for seed in range(DRAWS):
        order = np.random.default_rng(seed).permutation(n_classes)
        classes, words, rest = np.split(order, [n_classes // 2, n_classes // 2 + n_classes // 4])
        rows = np.flatnonzero(np.isin(labels, [*classes, *rest]))
        of_class, each = np.isin(labels[rows], classes), []
        for name in names:
            images, texts = (torch.from_numpy(data[f"{name}/{what}"]).float() for what in ("images", "texts"))
            images, texts = (torch.nn.functional.normalize(x, dim=-1) for x in (images[rows], texts))
            shares = known(images, texts[classes], texts[words], LOGIT_SCALE).numpy()
            each.append((shares, probabilities(images, texts[classes], LOGIT_SCALE).numpy()))
            sums[name] += auroc(of_class, shares), auroc(of_class, each[-1][1].max(axis=1))
        shares, p = (np.mean(of, axis=0) for of in zip(*each, strict=True))
        sums["fused"] += auroc(of_class, shares), auroc(of_class, p.max(axis=1))
    means = {name: (total / DRAWS).round(1).tolist() for name, total in sums.items()}
    return {name: dict(zip(("known", "confidence"), mean, strict=True)) for name, mean in means.items()}


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="STORAGE")
    which.add_argument("--data", metavar="FILE.npz")
    options = parser.parse_args()
    print(json.dumps(of_run(options.run) if options.run else of_features(options.data)))


if __name__ == "__main__":
    main()

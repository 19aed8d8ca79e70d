"""What a report says first: what was run, what came of it, and how sure that is."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from upl_ray.metrics import wilson
from upl_ray.progress import duration
from upl_ray.report.exhibit import of_part, share
from upl_ray.report.findings import Findings, gain, mean_confidence, zero_shot_accuracy
from upl_ray.report.finished import FinishedRun, manifest_of

STEPS = {
    "pseudo": "pseudo-labels",
    "selection": "selection",
    "views": "views",
    "members": "training",
    "classifier": "export",
    "predictions": "predictions",
}


def sentences(run: FinishedRun, found: list[Findings]) -> list[str]:
    """The verdict in words: one sentence a variant, and what it does not say."""
    first = found[0]
    part = first.judged_part
    if part is None:
        said = [_without_labels(run, f) for f in found]
        return [
            *said,
            "No labels were given, so nothing on this page is an accuracy. Agreement shows that models say the same, "
            "confidence that they are sure; they can be wrong together, and sure of it. A few hundred labeled images, "
            "named in the field scored, would tell.",
        ]
    said = [_with_labels(run, f, part) for f in found]
    return [*said, "True labels score this page; no step of the run has seen them."]


def _with_labels(run: FinishedRun, f: Findings, part: str) -> str:
    n = f.parts[part]["labeled"]
    right = sum(f.parts[part]["right"]["ensemble"])
    low, high = wilson(right, n)
    difference, worst, best = gain(f, part)
    if worst > 0:
        judgement = "better than"
    elif best < 0:
        judgement = "worse than"
    else:
        judgement = "not distinguishable from"
    return (
        f"{f.title} classifies {share(right / n)} of {of_part(part, n)} right (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}): {judgement} the zero-shot prompt of {run.target}, which has "
        f"{share(zero_shot_accuracy(f, part))}. "
        f"On the same images they differ by {100 * difference:+.1f} points ({100 * worst:+.1f} to {100 * best:+.1f})."
    )


def _without_labels(run: FinishedRun, f: Findings) -> str:
    numbers = f.corpus
    n = max(numbers["images"], 1)
    agree = sum(numbers["members_agree"]) / len(numbers["members_agree"]) / n
    return (
        f"{f.title} gives {share(numbers['change']['changed'] / n)} of {numbers['images']:,} images another label than "
        f"the zero-shot prompt of {run.target}. Its members agree with their ensemble on {share(agree)}; its mean "
        f"confidence is {share(mean_confidence(f, 'corpus', 'ensemble'))}, that of zero-shot "
        f"{share(mean_confidence(f, 'corpus', 'target'))}."
    )


def facts(run: FinishedRun, found: list[Findings]) -> list[tuple[str, str, str]]:
    """Numbers at a glance: value, what it is, and a remark."""
    summary, config = run.summary, run.config
    selection = found[0].scores["selection"]
    held_out = found[0].parts.get("scored")
    rows = [
        (f"{summary['images']:,}", "images", "in the corpus"),
        *([(f"{held_out['images']:,}", "held-out images", "scored, never learned from")] if held_out else []),
        (f"{len(run.classnames):,}", "classes", f"{len(selection['starved'])} starved: no image selected"),
        (f"{summary['rejected']:,}", "rejected", "images that could not be read"),
        (f"{sum(selection['images_per_class']):,}", "pseudo-labels", f"top {config['label']['top_k']} of each class"),
        (f"{config['train']['members']}", "members", f"{config['train']['epochs']} epochs each"),
    ]
    return rows


def step_rows(run: FinishedRun) -> list[tuple[str, str, str, str]]:
    """What each step made: step, how long it took when it last had work, folder, when it was finished."""
    seconds: dict[str, float] = run.summary["steps"]

    def took(key: str) -> str:
        return duration(seconds[key]) if key in seconds else "–"

    rows = []
    features: dict[str, str] = run.summary["artifacts"]["features"]
    for i, (name, folder) in enumerate(features.items()):
        when = took("features") if i == 0 else "with the first"
        rows.append((f"features of {name}", when, folder, _time(run, folder)))
    for variant in run.variants:
        for step, name in STEPS.items():
            folder = getattr(variant, step).folder
            rows.append((f"{variant.title}: {name}", took(folder), folder, _time(run, folder)))
        if manifest_of(variant.predictions)["shards"] != [s.state for s in run.corpora["corpus"].shards]:
            rows[-1] = (*rows[-1][:3], "has grown since")
    return rows


def _time(run: FinishedRun, folder: str) -> str:
    written = run.store.read_sealed(f"{folder}/manifest.json")["provenance"]["time"]
    return str(written).replace("T", " ").replace("+00:00", " UTC")


def provenance_rows(run: FinishedRun) -> dict[str, Any]:
    """How to make the same again. The predictions' manifest would tell of the nightly job, which lets them grow."""
    about = manifest_of(run.variants[0].classifier)["provenance"]
    return {
        "command": shlex.join(["python", *about["command"]]),
        "python": about["python"],
        "versions": about["versions"],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }

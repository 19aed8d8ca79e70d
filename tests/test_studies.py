"""What a comparison and an ablation refuse before they embed anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from upl_ray.ablate import ablate
from upl_ray.compare import check_samples, compare, pools_of
from upl_ray.config import Config, ConfigError
from upl_ray.methods.few_shot import held_out
from upl_ray.studies import study_inputs

LONG = "dog " * 8  # fits the demo's model behind one context token, not behind 16


def settings(root: Path, names: tuple[str, ...] = ("cat", "dog"), **sections: Any) -> Config:
    """Eight images of each class to learn from and two to score, all labeled by their folders."""
    rng = np.random.default_rng(0)
    for part, count in (("corpus", 8), ("scored", 2)):
        for name in names:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{part}-{i}.png")
    data = {
        "corpus": {"uri": str(root / "corpus"), "labels": "folders"},
        "scored": {"uri": str(root / "scored"), "labels": "folders"},
        "classnames": list(names),
        "backbones": ["demo:vit_a"],
        "storage_path": str(root / "run"),
        "compare": {"methods": ["coop", "tip-adapter"]},
    }
    return Config.model_validate({**data, **sections})


def refused(study: Any, config: Config, message: str) -> None:
    """In a sentence, without Ray and with nothing embedded."""
    running = ray.is_initialized()
    with pytest.raises(ConfigError, match=message):
        study(config)
    assert ray.is_initialized() == running
    assert list(Path(config.storage_path).glob("features-*")) == []


def test_names_that_do_not_fit_behind_coop_s_context_are_refused(tmp_path: Path) -> None:
    names, short = ("cat", LONG.strip()), {"template": "{}", "train": {"n_ctx": 1}}
    message = r"'dog dog .* does not fit behind 16 context tokens.* leave coop out of compare\.methods\."
    config = settings(tmp_path, names, **short)
    refused(compare, config, message)
    check_samples(study_inputs(config.model_copy(update={"compare": _only(config, "tip-adapter")})))


def _only(config: Config, *methods: str) -> Any:
    return config.compare.model_copy(update={"methods": methods})


def test_names_that_do_not_fit_beside_a_context_length_of_the_ablation_are_refused(tmp_path: Path) -> None:
    short = {"template": "{}", "train": {"n_ctx": 1}, "ablate": {"n_ctx": [1, 16]}}
    message = r"'dog dog .* does not fit behind 16 context tokens.* drop 16 from ablate\.n_ctx\."
    refused(ablate, settings(tmp_path, ("cat", LONG.strip()), **short), message)


def test_labels_of_one_class_are_refused_where_methods_learn_from_labels(tmp_path: Path) -> None:
    config = settings(tmp_path)
    for path in (tmp_path / "corpus" / "dog").iterdir():
        path.rename(tmp_path / "corpus" / path.name)  # images without a label
    message = r"corpus\.labels: all labeled images .* are 'cat'.*label more, or leave coop, tip-adapter out"
    refused(compare, config, message)
    check_samples(study_inputs(config.model_copy(update={"compare": _only(config, "upl")})))


def test_images_that_only_turn_out_to_be_unreadable_count_as_well(tmp_path: Path) -> None:
    inputs = study_inputs(settings(tmp_path))
    drawn, _ = pools_of(inputs)
    assert set(drawn.labels.tolist()) == {0, 1}
    dogs = [f"dog/corpus-{i}.png" for i in range(8)]
    assert not all(map(held_out, dogs))
    with pytest.raises(ConfigError, match="are 'cat', and two classes are needed"):
        pools_of(inputs, rejected=dogs)

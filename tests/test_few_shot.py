"""What methods are given: templates, samples and CoOp's recipe."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import resolve_folder, write_model
from torch.nn.functional import normalize

from upl_ray.config import ConfigError
from upl_ray.methods.few_shot import draw, held_out
from upl_ray.methods.prompts import coop_recipe
from upl_ray.methods.templates import read_templates
from upl_ray.zero_shot import average_templates

C, D = 4, 12


# Templates


def test_a_template_ensemble_is_the_normalised_mean_of_each_template_s_features() -> None:
    features = normalize(torch.randn(5, C, D, generator=torch.Generator().manual_seed(1)), dim=-1)
    averaged = average_templates(features)
    for c in range(C):
        total = [sum(float(features[t, c, d]) for t in range(5)) / 5 for d in range(D)]
        length = math.sqrt(sum(x * x for x in total))
        assert averaged[c].tolist() == pytest.approx([x / length for x in total], abs=1e-6)
    torch.testing.assert_close(average_templates(features[:1]), features[0])


def test_it_equals_open_clip_s_zero_shot_classifier(small_clip: open_clip.CLIP) -> None:
    templates, names = ("a photo of a {}.", "art of {}", "{}"), ("cat", "red car")
    ours = average_templates(
        torch.stack([small_clip.encode_texts([t.replace("{}", n) for n in names]) for t in templates])
    )
    theirs = open_clip.build_zero_shot_classifier(
        small_clip.model, small_clip.tokenizer, names, [t.format for t in templates], device="cpu"
    )
    torch.testing.assert_close(ours, theirs.T, rtol=0, atol=1e-6)


def test_templates_are_imagenet_s_a_file_s_or_given(tmp_path: Path) -> None:
    spec = resolve_folder(write_model(tmp_path / "model", text={"context_length": 40}))
    names = ("cat", "dog")
    assert len(read_templates("imagenet", spec, names)) == 80
    assert "a bad photo of a {}." in read_templates("imagenet", spec, names)
    (tmp_path / "templates.txt").write_text("a {}.\n\nthe {}\n")
    assert read_templates(str(tmp_path / "templates.txt"), spec, names) == ("a {}.", "the {}")
    assert read_templates(("one {}",), spec, names) == ("one {}",)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_templates(str(tmp_path / "none.txt"), spec, names)
    with pytest.raises(ConfigError, match=r"compare.templates 'foo://x/y' cannot be read .*give a text file"):
        read_templates("foo://x/y", spec, names)
    with pytest.raises(ConfigError, match="exactly one"):
        read_templates(("a photo",), spec, names)
    with pytest.raises(ConfigError, match="does not fit"):
        read_templates(("a {} " + 50 * "long ",), spec, names)


# Samples


def test_draws_are_nested_balanced_and_never_unlabeled() -> None:
    labels = np.array([2, 0, -1, 0, 0, 2, 0, 1, -1, 0])
    for seed in range(5):
        most = draw(labels, 3, seed)
        assert [len(rows) for rows in most] == [3, 1, 2]  # all of a class that has fewer
        for c, rows in enumerate(most):
            assert set(labels[rows]) == {c}
            assert len(set(rows.tolist())) == len(rows)
            for k in (1, 2):
                assert draw(labels, k, seed)[c].tolist() == rows[:k].tolist()
    pairs = {tuple(draw(labels, 2, seed, v)[0].tolist()) for seed in range(20) for v in (False, True)}
    assert len(pairs) > 10  # of the 20 ordered pairs of five images


def test_a_fifth_of_ids_is_held_out_whatever_else_there_is() -> None:
    share = np.mean([held_out(f"folder/{i}.jpg") for i in range(20_000)])
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 20_000))


# CoOp


@pytest.mark.parametrize(
    ("shots", "dataset", "epochs"),
    [(1, "dtd", 50), (2, "", 100), (4, "", 100), (5, "", 100), (8, "", 200), (16, "", 200)],
)
def test_coop_s_recipe(shots: int, dataset: str, epochs: int) -> None:
    recipe = coop_recipe(shots, dataset, seed=4)
    assert (recipe.epochs, recipe.members, recipe.seed, recipe.n_ctx) == (epochs, 1, 4, 16)
    assert (recipe.lr, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (0.002, 32, 0.9, 5e-4)
    assert coop_recipe(shots, "imagenet", 4).epochs == 50

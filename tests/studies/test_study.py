"""Settings and images that a comparison and an ablation refuse before they embed anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from models import resolve_folder, write_model
from PIL import Image

from upl_ray.config.settings import Config
from upl_ray.errors import ConfigError
from upl_ray.studies.ablate import ablate
from upl_ray.studies.compare import check_samples, check_validation_labels, compare, read_train_and_validation
from upl_ray.studies.methods.templates import read_templates
from upl_ray.studies.samples import kept_for_validation
from upl_ray.studies.study import check_corpus_labels, study_inputs

LONG = "dog " * 8  # fits the demo's model behind one context token, not behind 16
SHORT_CONTEXT = {"template": "{}", "train": {"n_ctx": 1}}


def settings(root: Path, names: tuple[str, ...] = ("cat", "dog"), **sections: Any) -> Config:
    """Eight images of each class to learn from and two to score, all labeled by their folders."""
    rng = np.random.default_rng(0)
    for part, count in (("corpus", 8), ("scored", 2)):
        for name in names:
            (root / part / name).mkdir(parents=True, exist_ok=True)
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


def test_names_that_do_not_fit_beside_a_context_are_refused(tmp_path: Path) -> None:
    names, message = ("cat", LONG.strip()), r"'dog dog .* does not fit behind 16 context tokens.* "
    config = settings(tmp_path, names, **SHORT_CONTEXT)
    refused(compare, config, message + r"leave coop out of compare\.methods\.")
    check_samples(study_inputs(settings(tmp_path, names, **SHORT_CONTEXT, compare={"methods": ["tip-adapter"]})))
    longer = settings(tmp_path, names, **SHORT_CONTEXT, ablate={"n_ctx": [1, 16]})
    refused(ablate, longer, message + r"drop 16 from ablate\.n_ctx\.")


def test_labels_of_one_class_are_refused_where_methods_learn_from_labels(tmp_path: Path) -> None:
    config = settings(tmp_path)
    inputs = study_inputs(config)
    train, _ = read_train_and_validation(inputs)
    assert set(train.labels.tolist()) == {0, 1}
    dogs = [f"dog/corpus-{i}.png" for i in range(8)]
    assert not all(map(kept_for_validation, dogs))
    with pytest.raises(ConfigError, match="are 'cat', and two classes are needed"):
        read_train_and_validation(inputs, rejected=dogs)
    for path in (tmp_path / "corpus" / "dog").iterdir():
        path.rename(tmp_path / "corpus" / path.name)  # images without a label
    message = r"corpus\.labels: all labeled images .* are 'cat'.*label more, or leave coop, tip-adapter out"
    refused(compare, config, message)


def test_methods_with_labels_are_refused_without_them() -> None:
    def check(**sections: Any) -> None:
        given = {"backbones": ["demo:rn"], "classnames": ["a", "b"], "storage_path": "x"}
        config = Config.model_validate({**given, **sections})
        check_corpus_labels(config)
        check_validation_labels(config)

    source = {"uri": "x", "labels": "folders"}
    check(corpus=source, validation=source, compare={"transductive": True})
    with pytest.raises(ConfigError, match=r"compare\.transductive is True, but corpus\.labels is none"):
        check(corpus={"uri": "x"}, compare={"transductive": True})
    for thinned in ({"imbalance": 50}, {"classes_present": 0.5}):
        check(corpus=source, compare=thinned)
        with pytest.raises(ConfigError, match=r"thins the corpus by its labels, but corpus\.labels is none"):
            check(corpus={"uri": "x"}, compare=thinned)
    with pytest.raises(ConfigError, match=r"validation\.labels is none"):
        check(corpus=source, validation={"uri": "y"})
    check(corpus=source, validation={"uri": "y"}, compare={"methods": ["upl"]})


def test_templates_are_imagenet_s_a_file_s_or_given(tmp_path: Path) -> None:
    spec = resolve_folder(write_model(tmp_path / "model", text={"context_length": 40}))
    names, file = ("cat", "dog"), tmp_path / "templates.txt"
    file.write_text("a photo of a {}, a type of pet.\n")  # CoOp's for OxfordPets
    assert read_templates(str(file), spec, names) == ("a photo of a {}, a type of pet.",)
    file.write_text('"{}"\na {},\n')
    assert read_templates(str(file), spec, names) == ('"{}"', "a {},")
    file.write_text("a {}.\n\nthe {}\n")
    assert len(read_templates("imagenet", spec, names)) == 80
    assert "a bad photo of a {}." in read_templates("imagenet", spec, names)
    assert read_templates(str(file), spec, names) == ("a {}.", "the {}")
    assert read_templates(("one {}",), spec, names) == ("one {}",)
    (tmp_path / "notebook.txt").write_text("'a bad {}.',\n'the {}.',\n")
    odd = ("- a {}", "1. a {}", "1\ta {}", "a {}\t1", "a {},0", '{"a {}", "b {}"}', "['a {}']", "# {}")
    for i, line in enumerate(odd):
        (tmp_path / f"{i}.txt").write_text(f"a photo of a {{}}.\n{line}\n")
    for given, message in (
        (str(tmp_path / "none.txt"), "cannot be read"),
        ("foo://x/y", r"compare.templates 'foo://x/y' cannot be read .*give a text file"),
        (("a photo",), "exactly one"),
        (("a {} " + 50 * "long ",), "does not fit"),
        (("a {}", "the {}", "a {}"), "'a {}' stands twice"),
        *((str(tmp_path / f"{i}.txt"), "holds .* write templates alone") for i in range(len(odd))),
        (str(tmp_path / "notebook.txt"), r"'.*notebook\.txt' holds \"'a bad {}\.',\"; write templates alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_templates(given, spec, names)

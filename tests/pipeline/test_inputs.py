"""What is checked before work starts, against a real folder of images."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MakeModel
from PIL import Image
from tokenizer_families import TOKENIZERS

from upl_ray import demo
from upl_ray.config.settings import Config
from upl_ray.errors import ConfigError
from upl_ray.pipeline import inputs
from upl_ray.pipeline.features import feature_step
from upl_ray.pipeline.inputs import prepare
from upl_ray.pipeline.text import text_step
from upl_ray.storage.step import Step
from upl_ray.upl.classifier import classifier_spec
from upl_ray.upl.ensemble import ensemble_bytes, load_ensemble

NAMES = ("beer_bottle", "cat", "dog")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (name == "cat" and "white") or "black").save(tmp_path / "photos" / name / "a.png")
    return tmp_path / "photos"


MARKED_LINES = {
    "yaml": ["- cat", "- dog"],
    "json": ['"cat",', '"dog"'],
    "table": ["0,cat", "1,dog"],
    "numbered": ["001.cat", "002.dog"],
    "wordnet": ["n01440764 tench", "n01443537 goldfish"],
    "stars": ["* cat", "* dog"],
    "indented": ["[", '  "cat",', '  "dog"', "]"],
    "columns": ["id,name", "0,cat", "1,dog"],
    "turned": ["cat: 0", "sea lion: 1"],
    "commas": ["cat,", "dog"],
    "counted": ["cat,120", "dog,77"],
    "gaps": ["1. cat", "2. dog", "4. bird"],
    "folders": ["cat/", "dog/"],
    "paths": ["/data/cat", "/data/dog"],
    "ids": ["n01440764", "n01443537"],
    "sections": ["train/cat", "train/dog"],
    "counts": ["   12 cat", "    5 dog"],
    "two": ["cat,Katze", "dog,Hund"],
    "semicolons": ["name;de", "cat;Katze"],
    "bars": ["cat|Katze", "dog|Hund"],
    "equal": ["cat = Katze", "dog = Hund"],
    "backslashes": ["photos\\cat", "photos\\dog"],
    "html": ["<li>cat</li>", "<li>dog</li>"],
    "images": ["cat.jpg", "dog.PNG"],
    "tabs": ["cat\tFelis", "dog"],
    "quoted": ["cat", '"dog, big"'],
    "mac": ["cat\rdog\rbird"],
    "commas-alone": ["tree, house"],
    "notes": ["# animals", "cat", "dog"],
}
# Lines of a file of names that are none.
STRANGE = [
    *("\u201ccat\u201d", "cat &amp; dog", "Br\ufffdtchen", "cat\rdog", "cat\x0cdog", "cat\u2028dog", "cat\x85dog"),
    *("version https://git-lfs.github.com/spec/v1", "\u251c\u2500\u2500 cat", "=======", "<<<<<<< HEAD"),
]


def config(photos: Path, **fields: Any) -> Config:
    data = {
        "corpus": {"uri": str(photos)},
        "classnames": "folders",
        "backbones": ["demo:vit_a"],
        "storage_path": str(photos.parent / "run"),
    }
    return Config.model_validate({**data, **fields})


def test_the_log_shows_class_names_files_left_out_and_labels_that_are_no_class(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "cat" / "b.heic").write_bytes(b"")
    caplog.set_level("INFO")
    inputs = prepare(config(photos, corpus={"uri": str(photos), "labels": "folders"}, classnames=["dog", "catt", "x"]))
    lines = [" ".join(record.getMessage().split()) for record in caplog.records]
    assert "corpus left out: 1 x .heic (cat/b.heic)" in lines
    assert "corpus 2 images are not scored: their labels are no class, such as 'beer_bottle', 'cat'" in lines
    assert "classes 3: 'dog', 'catt', 'x'" in lines
    assert dict(inputs.corpus.left_out.counts) == {".heic": 1}
    assert inputs.unknown_labels == {"corpus": {"cat": 1, "beer_bottle": 1}}


def test_class_names_come_from_folders_a_list_or_a_file(photos: Path) -> None:
    (photos.parent / "names.txt").write_text("dog\nbeer_bottle\n")
    some = (["1 dollar", "5 dollars"], ["'n roll", "rock"], ["- cat", "dog"], ["1 star", "2 stars", "3 stars"])
    for names in (["1. cat", "2. dog"], ['"Heroes"', "Low"], ["Paris, France"] * 1 + ["E=2"], ["cat/", "dog/"]):
        assert prepare(config(photos, classnames=names)).classnames == tuple(names)  # a list is meant as it stands
    for lines in (
        *some,
        ["Boeing 747", "A 380"],
        ["]", "[", "{"],
        ["क\u200dष", "❤\ufe0f", "1\ufe0f\u20e3"],
        ["cat, tabby", "1 owl", "7 dogs"],
        [
            '1/2" bolt',
            "<18",
            ">65",
            '"La" Bella',
            "[adult swim]",
            "\u00abFox\u00bb",
            "i`iwi",
            "3,5 mm",
            "a; b",
        ],
        ["1,000 yen", "2,000 yen"],
        ["Picture/Frame", "Hot/Cold"],
    ):
        (photos.parent / "odd.txt").write_text("\n".join(lines))
        assert prepare(config(photos, classnames=str(photos.parent / "odd.txt"))).classnames == tuple(lines)
    assert prepare(config(photos)).classnames == ("beer bottle", "cat", "dog")
    assert prepare(config(photos, classnames=["dog", "a_b"])).classnames == ("dog", "a b")
    assert prepare(config(photos, classnames=str(photos.parent / "names.txt"))).classnames == ("dog", "beer bottle")


def test_another_programs_file_in_the_folder_of_results_stays(photos: Path) -> None:
    folder = photos.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(
        ConfigError, match=r"storage_path '.*/model' holds a config\.json that no run has written; give"
    ):
        prepare(config(photos, storage_path=str(folder)))
    assert (folder / "config.json").read_text() == '{"architectures": ["CLIPModel"]}'
    (folder / "config.json").write_text("{")  # a run's own, damaged
    for _ in range(2):
        prepare(config(photos, storage_path=str(folder)))
    assert json.loads((folder / "config.json").read_text())["storage_path"] == str(folder)


def test_fast_decoding_is_part_of_the_identity_of_every_backbone_and_of_the_classifier(
    photos: Path, tmp_path: Path
) -> None:
    exact, fast = (
        prepare(config(photos, backbones=["demo:vit_a", "demo:rn"], label={"decode": how})).specs
        for how in ("exact", "fast")
    )
    assert {s.geometry.draft for s in exact.values()} == {0}
    assert {s.geometry.draft for s in fast.values()} == {2 * max(s.geometry.height for s in exact.values())}
    for name, spec in fast.items():
        assert spec.identity() != exact[name].identity()
        (tmp_path / name).mkdir()
        classifier = ensemble_bytes(spec, torch.zeros(1, 3, spec.dim), torch.zeros(1, 4, 8), classnames=list(NAMES))
        (tmp_path / name / "classifier.safetensors").write_bytes(classifier)
        assert classifier_spec(load_ensemble(str(tmp_path / name))).identity() == spec.identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": {"uri": "/no/such/folder"}}, "/no/such/folder.*check the address"),
        (
            {"corpus": {"labels": "folders"}, "classnames": ["Cat", "Dog"]},
            "corpus.labels is 'folders' .*no label is a class name; the first label is 'beer_bottle'.* is 'Cat'",
        ),
        (
            {"corpus": {"uri": "photos/cat", "labels": "folders"}, "classnames": ["cat", "dog"]},
            "but no image has a label; let the address lead to the folder above",
        ),
        ({"classnames": "/no/names.txt"}, "classnames '/no/names.txt' cannot be read.*give a text file"),
        ({"storage_path": "~nosuchuser/x"}, "storage_path '~nosuchuser/x' cannot be written .*write it out in full"),
        ({"storage_path": "loop/x"}, "storage_path 'loop/x' cannot be written .*[Ll]oop"),
        ({"storage_path": "s3:///x"}, "storage_path 's3:///x' cannot be written .*[Mm]issing bucket.*check it"),
        ({"storage_path": "s3a:///x"}, "storage_path 's3a:///x' cannot be written .*[Mm]issing bucket.*check it"),
        ({"storage_path": "foo://x/y"}, "storage_path 'foo://x/y' cannot be written .*foo.*check it"),
        ({"storage_path": "http://127.0.0.1:9/x"}, "storage_path 'http://127.0.0.1:9/x' cannot be written"),
        ({"corpus": {"uri": "~nosuchuser/x"}}, "'~nosuchuser/x' cannot be followed .*write it out in full"),
        ({"corpus": {"uri": "a" * 300 + "/x.jpg"}}, "/aa+/x.jpg' cannot be listed .*check the address"),
        (
            {"corpus": {"uri": "photos.txt", "roots": ["~nosuchuser/x"]}, "classnames": ["a", "b"]},
            "corpus: roots: .*'~nosuchuser/x' cannot be followed .*write it out in full",
        ),
        ({"classnames": "foo://x/y"}, "classnames 'foo://x/y' cannot be read.*foo.*give a text file"),
        ({"classnames": "~nosuchuser/x"}, "classnames '~nosuchuser/x' cannot be read.*give a text file"),
        ({"classnames": "latin.txt"}, "classnames 'latin.txt' cannot be read.*utf-8.*give a text file"),
        ({"classnames": "names.CSV"}, r"classnames 'names\.CSV' is no plain text; write one name a line into a"),
        ({"classnames": ["cat"]}, "number of class names is 1, 'cat'; a classifier needs at least 2, one a line"),
        *(
            ({"classnames": f"{name}.txt"}, f"Every name of classnames '{name}.txt' {words}, .* write names alone, one")
            for name, words in {
                "yaml": "begins with a dash or a star",
                "stars": "begins with a dash or a star",
                "indented": "stands in brackets",
                "columns": "begins with a number",
                "json": "stands in quotes",
                "table": "begins with a number",
                "numbered": "begins with a number",
                "wordnet": "begins with a number",
                "turned": "ends with a number",
                "commas": "ends with a comma",
                "counted": "ends with a number",
                "gaps": "begins with a number",
                "folders": "ends with a slash, as a folder",
                "paths": "begins with a slash, as a path",
                "ids": "is a number of WordNet",
                "sections": "holds a slash, as a path",
                "counts": "begins with a number",
                "two": "is parted by a comma",
                **dict.fromkeys(("semicolons", "bars", "equal", "backslashes"), "holds a mark of tables or paths"),
                "html": "stands in brackets",
                "images": "is the name of an image",
            }.items()
        ),
        ({"classnames": "tabs.txt"}, r"'tabs\.txt' holds 'cat\\tFelis', which is no plain name; write names alone"),
        ({"classnames": "quoted.txt"}, r"""'quoted\.txt' holds '"dog, big"', which is no plain name"""),
        *(
            (
                {"classnames": f"strange{i}.txt"},
                rf"'strange{i}\.txt' holds .*, which is no plain name; write names alone",
            )
            for i in range(len(STRANGE))
        ),
        ({"classnames": "header.txt"}, r"'header\.txt' begins with 'Class_Name', as a table; remove the line, or give"),
        ({"classnames": "mac.txt"}, r"lines of classnames 'mac\.txt' end at carriage returns; save it with line feeds"),
        ({"classnames": "notes.txt"}, r"classnames 'notes\.txt' holds '# animals', which would be .* remove the line"),
        (
            {"dataset": {"name": "dtd", "root": "~nosuchuser/x"}, "corpus": {"uri": ""}, "classnames": ""},
            "dataset.root: .*'~nosuchuser/x' cannot be followed .*write it out in full",
        ),
        ({"classnames": ["cat", "cat"]}, "'cat' stands more than once"),
        ({"classnames": ["cat", "a_b", "a b"]}, "'a b' stands more than once"),
        ({"classnames": ["cat", "\u201edog\u201c"]}, "class name '\u201edog\u201c' stands in typographic quotes"),
        ({"classnames": ["cat", " "]}, "Class name 2 of 2 is empty"),
        ({"classnames": ["cat", "dog " * 40]}, "'dog dog .* does not fit behind 16 context tokens.*lower train.n_ctx"),
        (
            {"classnames": ["cat", "dog " * 40], "train": {"n_ctx": 1}},
            "'dog dog .* does not fit behind 1 context tokens",
        ),
        ({"label": {"negatives": ["word " * 80]}}, "None of the 1 words of label.negatives fits the context of vit_a"),
        ({"label": {"negatives": "words.json"}}, "label.negatives 'words.json' is no plain text"),
        ({"label": {"negatives": "no.txt"}}, "label.negatives 'no.txt' cannot be read .*a list or `imagenet`"),
        *(
            ({"label": {"negatives": none, "min_known": 0.1}}, "min_known is 0.1, but .* holds no word that competes")
            for none in (["", " "], [], "")
        ),
        ({"template": "a photo " * 40 + "{}"}, "prompt 'a photo .* does not fit the context of vit_a; shorten"),
        *(
            ({"classnames": ["cat", *names]}, f"class names '{names[0]}' and '{names[1]}' are the same tokens.*rename")
            for names in (("Turkey", "turkey"), ("a & b", "a &amp; b"))
        ),
        ({"classnames": ["cat", "caf\u00e9", "cafe\u0301"]}, "class name 'caf\u00e9' stands more than once"),
        *(
            ({"classnames": ["dog", f"cat{mark}"]}, "holds a character that cannot be seen")
            for mark in "\u00ad\u034f\u200c\u200e\u202a\u2066\ufe0f\ufeff"
        ),
        (
            {"label": {"negatives": ["owl", "fox\u200e"]}},
            r"label\.negatives: 'fox\\u200e' holds a character that cannot",
        ),
        (
            {"label": {"negatives": "commas-alone.txt"}},
            "'commas-alone.txt' holds several, parted by commas, .*: 'tree, house'",
        ),
        ({"classnames": ["cat", "do\u200bg"]}, r"class name 'do\\u200bg' holds a character that cannot be seen"),
        (
            {"compute": {"workers_per_trial": 11}},
            "workers_per_trial is 11, .* share its classes, and there are 3; lower",
        ),
        ({"storage_path": "/proc/nothing/here"}, "storage_path '/proc/nothing/here' cannot be written"),
        ({"backbones": ["demo:vit_z"], "target": ""}, "no demo backbone 'demo:vit_z'; use one of .*demo:vit_a"),
        ({"backbones": ["local-dir:/no/folder"], "target": ""}, "'local-dir:/no/folder' cannot be read"),
        ({"backbones": ["RN51/openai"], "target": ""}, "no model 'RN51'; did you mean RN50"),
        (
            {"backbones": ["RN50/opanai"], "target": ""},
            "'opanai' of RN50 is neither a file nor one of the tags .*openai",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_value_and_the_remedy(
    photos: Path, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "corpus" in fields:
        fields = {**fields, "corpus": {"uri": str(photos), **fields["corpus"]}}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.chdir(photos.parent)
    (photos.parent / "loop").symlink_to("loop")
    (photos.parent / "latin.txt").write_bytes("é\nè\n".encode("latin-1"))
    (photos.parent / "photos.txt").write_text("photos/cat/a.png\n")
    for i, name in enumerate(STRANGE):
        (photos.parent / f"strange{i}.txt").write_bytes(f"cat\r\n{name}\r\nbird".encode())
    (photos.parent / "header.txt").write_text("Class_Name\ncat\ndog")
    for name, lines in MARKED_LINES.items():
        (photos.parent / f"{name}.txt").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        prepare(config(photos, **fields))


@pytest.mark.parametrize("family", TOKENIZERS)
def test_prompts_that_any_tokenizer_cuts_or_makes_equal_are_refused(
    photos: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, room = TOKENIZERS[family]
    spec = prepare(config(photos)).target
    monkeypatch.setattr(inputs, "load_tokenizer", lambda source: make())
    longest = ["x" * room, "x" * (room - 1) + "y"]
    inputs.check_prompts(spec, longest)
    with pytest.raises(ConfigError, match=rf"prompt '{longest[0]}z' does not fit the context of {spec.name}"):
        inputs.check_prompts(spec, [*longest, longest[0] + "z"])
    with pytest.raises(ConfigError, match=rf"prompts 'a Turkey' and 'a turkey' are the same tokens to {spec.name}"):
        inputs.check_prompts(spec, ["a Turkey", "a dog", "a turkey"])
    inputs.check_prompts(spec, ["a crane", "a dog", "a crane"])  # of a published data set, which repeats names


def test_a_tokenizer_of_a_larger_vocabulary_than_the_models_is_refused(photos: Path, make_model: MakeModel) -> None:
    folder = make_model("own", text={"vocab_size": 49407})  # CLIP's tokenizer has one more: its end token
    small = {"backbones": [f"local-dir:{folder}"], "train": {"n_ctx": 4}}
    with pytest.raises(ConfigError, match=r"tokenizer of own gives token 49407, but the model knows 49407; name the"):
        prepare(config(photos, **small))
    make_model("full", text={"vocab_size": 49408})
    assert prepare(config(photos, **{**small, "backbones": [f"local-dir:{folder.parent}/full"]})).target.name == "full"


def test_another_vocabulary_in_the_same_folder_makes_other_class_features_and_the_same_image_features(
    photos: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(Path(demo.__file__).parent / "backbones/vit_b", tmp_path / "own")

    def steps() -> tuple[Step, Step]:
        found = prepare(config(photos, backbones=[f"local-dir:{folder}"], train={"n_ctx": 4}))
        return text_step(found.store, found.target, ["a cat"]), feature_step(found.store, found.target)

    before = steps()
    file = folder / "bpe.txt.gz"
    version, *merges = gzip.decompress(file.read_bytes()).decode().splitlines()
    file.write_bytes(gzip.compress("\n".join([version, *reversed(merges)]).encode()))
    text, features = steps()
    assert text.fingerprint != before[0].fingerprint
    assert features == before[1]


def test_some_labels_that_are_no_class_are_only_not_scored(photos: Path) -> None:
    source = {"uri": str(photos), "labels": "folders"}
    assert prepare(config(photos, corpus=source, classnames=["dog", "Cat"])).classnames == ("dog", "Cat")


def test_unreachable_object_storage_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody")
    with pytest.raises(ConfigError, match="storage_path 's3://bucket/run' cannot be written"):
        prepare(config(photos, storage_path="s3://bucket/run"))


def test_a_storage_in_ray_s_copy_of_the_working_directory_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match=r"storage_path 'upl-run' lies in Ray's copy .*give an address .*absolute"):
        prepare(config(photos, storage_path="upl-run"))
    assert list(copy.iterdir()) == []
    assert prepare(config(photos, storage_path=str(tmp_path / "run"))).corpus.images == 3


def test_images_that_are_learned_from_are_not_held_out(photos: Path) -> None:
    labeled = {"uri": str(photos / "cat"), "labels": "none"}
    with pytest.raises(ConfigError, match=r"1 of 1 files of scored are files of corpus, too, .*cat/a\.png"):
        prepare(config(photos, scored=labeled))
    with pytest.raises(ConfigError, match=r"1 of 1 files of validation are files of corpus"):
        prepare(config(photos, validation=labeled), validation=True)
    apart = {"corpus": {"uri": str(photos / "dog")}, "classnames": list(NAMES)}
    with pytest.raises(ConfigError, match=r"1 of 1 files of validation are files of scored"):
        prepare(config(photos, **apart, scored=labeled, validation=labeled), validation=True)
    checked = prepare(config(photos, **apart, scored=labeled))
    assert checked.scored is not None
    assert (checked.corpus.images, checked.scored.images) == (1, 1)

"""Embedding against a plain loop with open_clip itself: resolutions, worker counts, bad images, resuming."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from models import write_model
from PIL import Image
from zoo import zoo

from upl_ray.config.settings import Backbone, Compute, Source
from upl_ray.corpus.shards import REJECTED, Corpus, Shard, list_corpus
from upl_ray.errors import ConfigError, JobError
from upl_ray.pipeline.features import (
    CHUNKS_PER_SPAN,
    SPANS_PER_DATASET,
    Encoder,
    check_rejected,
    check_some_images,
    commit_receipts,
    decode_chunks,
    feature_step,
    find_rejected,
    make_features,
    read_features,
    slice_work,
)
from upl_ray.progress import Progress
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.images import Geometry
from upl_ray.upl.rejection import MISSING, NO_BYTES

SIZES = (224, 288, 384, 448)  # the paper's four resolutions


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one noisy gradients of many sizes and one broken file."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(21):
        h, w = rng.integers(40, 600, 2)
        ramp = np.linspace(0, 255, w)[None, :, None] * np.ones((h, 1, 3))
        noisy = np.clip(ramp + rng.normal(0, 40, (h, w, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:02d}.{'jpg' if i % 2 else 'png'}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    return folder


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[ClipSpec]:
    """One random model of each resolution."""
    root = tmp_path_factory.mktemp("models")
    made = [write_model(root / f"m{s}", {"image_size": s, "patch_size": 32}, seed=s) for s in SIZES]
    return [resolve_backbone(Backbone(model=f"local-dir:{folder}")) for folder in made]


def embed_all(corpus: Corpus, specs: list[ClipSpec], compute: Compute) -> None:
    steps = {s.name: feature_step(corpus.step.store, s) for s in specs}
    make_features([corpus], specs, steps, compute, {s.name: {x.id for x in corpus.shards} for s in specs})


def chunk_of(*arguments: Any, gone: frozenset[str] = frozenset()) -> dict[str, Any]:
    """All images as one chunk; see `decode_chunks`."""
    (chunk,) = decode_chunks(*arguments, 100, gone)
    return chunk


def stored(corpus: Corpus, spec: ClipSpec) -> tuple[list[str], np.ndarray]:  # type: ignore[type-arg]
    shards = [read_features(feature_step(corpus.step.store, spec), s) for s in corpus.shards]
    ids = [i for shard_ids, _ in shards for i in shard_ids]
    features = np.concatenate([f for _, f in shards])
    order = np.argsort(ids)
    return sorted(ids), features[order]


@pytest.mark.slow
def test_four_resolutions_in_one_pass_equal_a_plain_open_clip_loop(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    corpus = list_corpus(Store(str(tmp_path)), Source(uri=str(pictures)), 10)
    embed_all(corpus, specs, Compute(chunk_size=4))
    for spec in specs:
        model, _, preprocess = open_clip.create_model_and_transforms(spec.source)
        model.eval()
        ids, features = stored(corpus, spec)
        assert ids == sorted(p.name for p in pictures.iterdir() if p.name != "broken.jpg")
        with torch.inference_mode():
            batch = torch.stack([preprocess(Image.open(pictures / i)) for i in ids])
            expected = model.encode_image(batch, normalize=True).numpy()
        np.testing.assert_allclose(features.astype(np.float32), expected, atol=1e-3)  # stored in half precision


@pytest.mark.slow
def test_features_are_bitwise_equal_for_any_number_of_actors(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    results = []
    for actors in (1, 2):
        corpus = list_corpus(Store(str(tmp_path / str(actors))), Source(uri=str(pictures)), 10)
        embed_all(corpus, specs[:1], Compute(chunk_size=4, max_actors=actors))
        results.append(stored(corpus, specs[0]))
    assert results[0][0] == results[1][0]
    assert np.array_equal(results[0][1], results[1][1])


def test_two_threads_get_the_features_of_one(specs: list[ClipSpec]) -> None:
    spec = specs[0]
    encoder = Encoder(spec, "features", True, "cpu", 2)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 224, 224, 3), dtype=np.uint8)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(encoder, [{"chunk": i, spec.geometry.key: pixels[i]} for i in range(8)]))
    for i, made in enumerate(found):
        alone = [encoder.clip.encode_crops(pixels[i, :2]), encoder.clip.encode_crops(pixels[i, 2:])]
        assert made.keys() == {"chunk", "features"}
        assert made["chunk"] == i
        assert np.array_equal(made["features"], np.concatenate(alone))


@pytest.mark.slow
def test_compiled_features_lie_beside_the_plain_ones_and_differ_by_rounding(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    plain = specs[0]
    compiled = replace(plain, backbone=plain.backbone.model_copy(update={"compile": True, "name": "compiled"}))
    corpus = list_corpus(Store(str(tmp_path)), Source(uri=str(pictures)), 10)
    embed_all(corpus, [plain, compiled], Compute(chunk_size=4))  # shards of 10: chunks of 4, 4 and 2
    (ids, features), (compiled_ids, found) = (stored(corpus, s) for s in (plain, compiled))
    assert feature_step(corpus.step.store, plain).folder != feature_step(corpus.step.store, compiled).folder
    assert ids == compiled_ids
    np.testing.assert_allclose(found.astype(np.float32), features.astype(np.float32), rtol=0, atol=1e-3)


@pytest.mark.faults
def test_only_missing_pairs_of_shard_and_backbone_are_computed(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    corpus = list_corpus(store, Source(uri=str(pictures)), 10)
    embed_all(corpus, specs[:1], Compute(chunk_size=4))
    lost = feature_step(store, specs[0])
    victim = corpus.shards[1].id
    kept = {s.id: lost.read_commit(s.id)["parts"] for s in corpus.shards if s.id != victim}
    (tmp_path / lost.path(f"commits/{victim}.json")).unlink()  # as if the run had been killed before this commit
    embed_all(corpus, specs[:2], Compute(chunk_size=4))  # and a second backbone was added since
    assert {s.id: lost.read_commit(s.id)["parts"] for s in corpus.shards if s.id != victim} == kept
    assert lost.committed() == feature_step(store, specs[1]).committed() == {s.id for s in corpus.shards}


def test_images_that_are_gone_are_not_looked_for_and_move_no_other(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    corpus = list_corpus(Store(str(tmp_path / "storage")), Source(uri=str(tmp_path / "pictures")), 30)
    (shard,), geometry = corpus.shards, Geometry(32, 32)
    whole = chunk_of(shard.root, corpus.listing(shard), [geometry])
    gone = frozenset(whole["image_ids"][:5])
    for image_id in gone:
        (tmp_path / "pictures" / image_id).unlink()
    rest = chunk_of(shard.root, corpus.listing(shard), [geometry], gone=gone)
    assert rest["image_ids"] == whole["image_ids"]
    assert rest["reasons"] == [MISSING] * 5 + whole["reasons"][5:]
    assert np.array_equal(rest[geometry.key][5:], whole[geometry.key][5:])
    first = chunk_of(shard.root, corpus.listing(shard).slice(0, 5), [geometry], gone=gone)  # all of a chunk
    assert first["reasons"] == [MISSING] * 5


def test_an_image_that_was_away_while_its_shard_was_embedded_is_embedded_when_it_is_back(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    folder, store = tmp_path / "pictures", Store(str(tmp_path / "storage"))
    shutil.copytree(pictures, folder)
    list_corpus(store, Source(uri=str(folder)), 30)
    (folder / "04.png").rename(tmp_path / "04.png")  # its time stays, as under a mount that is away for a night
    embed_all(list_corpus(store, Source(uri=str(folder)), 30), specs[:1], Compute(chunk_size=4))
    (tmp_path / "04.png").rename(folder / "04.png")
    corpus = list_corpus(store, Source(uri=str(folder)), 30)
    embed_all(corpus, specs[:1], Compute(chunk_size=4))
    assert stored(corpus, specs[0])[0] == sorted(p.name for p in pictures.iterdir() if p.name != "broken.jpg")
    assert list(find_rejected([feature_step(store, specs[0])], [corpus])[0]) == ["broken.jpg"]


@pytest.mark.faults
def test_a_listed_image_that_is_away_when_it_is_read_is_embedded_by_the_next_run(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    folder, store = tmp_path / "pictures", Store(str(tmp_path / "storage"))
    shutil.copytree(pictures, folder)
    corpus = list_corpus(store, Source(uri=str(folder)), 10)
    away = {"04.png", "05.jpg", "12.png"}
    for name in away:
        (folder / name).rename(tmp_path / name)
    embed_all(corpus, specs[:1], Compute(chunk_size=4))
    rejected = find_rejected([feature_step(store, specs[0])], [corpus])[0]
    assert {i for i, reason in rejected.items() if reason == MISSING} == away
    for name in away:
        (tmp_path / name).rename(folder / name)
    back = list_corpus(store, Source(uri=str(folder)), 10)
    assert (back.added, back.images) == (len(away), corpus.images)
    embed_all(back, specs[:1], Compute(chunk_size=4))
    assert stored(back, specs[0])[0] == sorted(p.name for p in pictures.iterdir() if p.name != "broken.jpg")
    assert list(find_rejected([feature_step(store, specs[0])], [back])[0]) == ["broken.jpg"]
    assert list_corpus(store, Source(uri=str(folder)), 10).digest == back.digest  # a broken one stays


@pytest.mark.faults
def test_what_a_manifest_names_in_vain_is_looked_for_twice(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    names = [f"{i:02d}.{'jpg' if i % 2 else 'png'}" for i in range(8)]
    manifest = tmp_path / "pictures" / "list.txt"
    store, source, added = Store(str(tmp_path / "storage")), Source(uri=str(manifest)), []
    for night in range(5):
        manifest.write_text("\n".join([*names, "no.jpg", *(["08.png"] if night > 2 else [])]))
        corpus = list_corpus(store, source, 30)
        added.append(corpus.added)
        embed_all(corpus, specs[:1], Compute(chunk_size=4))  # it is alone in its chunk
        assert corpus.images == 9 + (night > 2)
        assert find_rejected([feature_step(store, specs[0])], [corpus])[0] == {"no.jpg": MISSING}
    assert added == [9, 1, 0, 1, 0]


def test_a_folder_of_a_manifest_that_lost_its_mount_stops_the_job(pictures: Path, tmp_path: Path) -> None:
    mount, manifest = tmp_path / "mount", tmp_path / "lists" / "list.txt"
    shutil.copytree(pictures, mount / "cats")
    manifest.parent.mkdir()
    manifest.write_text(f"{mount}/cats/00.png\nfile://{mount}/cats/01.jpg\n")
    roots = (str(mount), f"file://{mount}")
    corpus = list_corpus(Store(str(tmp_path / "storage")), Source(uri=str(manifest), roots=roots), 30)
    (shard,) = corpus.shards
    assert chunk_of(shard.root, corpus.listing(shard), [Geometry(32, 32)])["reasons"] == ["", ""]
    shutil.rmtree(mount / "cats")
    for _ in range(2):
        with pytest.raises(JobError, match=r"None of 2 listed images is found .* every node must reach"):
            chunk_of(shard.root, corpus.listing(shard), [Geometry(32, 32)])
        (mount / "cats").mkdir(exist_ok=True)  # where nothing is mounted


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_zoo_in_a_folder_is_lost(tmp_path: Path) -> None:
    folder, beasts, geometry = tmp_path / "zoo", zoo(), Geometry(32, 32)
    folder.mkdir()
    for name, beast in beasts.items():
        (folder / name).write_bytes(beast.data)
    corpus = list_corpus(Store(str(tmp_path / "storage")), Source(uri=str(folder)), shard_size=20)
    seen: dict[str, str] = {}
    for shard in corpus.shards:
        chunk = chunk_of(shard.root, corpus.listing(shard), [geometry, Geometry(48, 40)])
        assert chunk[geometry.key].shape == (shard.rows, 32, 32, 3)
        seen |= dict(zip(chunk["image_ids"], chunk["reasons"], strict=True))
    assert set(seen) == set(beasts)
    for name, beast in beasts.items():
        if beast.usable is not None:
            assert bool(seen[name]) is not beast.usable, name


GEOMETRY = Geometry(32, 32)


def test_a_corpus_of_which_nothing_can_be_read_is_refused_before_work(pictures: Path, tmp_path: Path) -> None:
    missing = [f"no/{i}.jpg" for i in range(100)]
    manifest = tmp_path / "list.txt"
    roots = (str(pictures),)

    def check(
        names: list[str], limit: float = 0.01, size: int = 3, known: int = 0, geometry: Geometry = GEOMETRY
    ) -> None:
        manifest.write_text("\n".join(names))
        storage = Store(f"{tmp_path}/{len(list(tmp_path.iterdir()))}")
        corpus = list_corpus(storage, Source(uri=str(manifest), roots=roots), size)
        check_some_images([corpus], {s.id for s in corpus.shards[known:]}, limit, geometry)

    for size in (3, 40, 1000):
        with pytest.raises(ConfigError, match=r"No image of .*list\.txt .* 3\d .*'no/0\.jpg': missing file\. Correct"):
            check(missing, size=size)
    with pytest.raises(ConfigError, match=r"of 1 that were .*broken\.jpg': damaged image"):
        check([f"{pictures}/broken.jpg"])
    check([f"{pictures}/broken.jpg"], limit=1)
    check([*missing, f"{pictures}/00.png"], size=1000)
    Image.fromarray(np.full((40, 40), 9999, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match=r"deep\.png': not 8 bits a channel"):
        check(["deep.png"])
    with pytest.raises(ConfigError, match=r"00\.png': more than 5 pixels"):
        check([f"{pictures}/00.png"], geometry=replace(GEOMETRY, max_pixels=5))
    good = [f"{pictures}/{i:02d}.{'jpg' if i % 2 else 'png'}" for i in range(21)]
    check([*good, "no.jpg"], limit=0.05, size=21, known=1)  # the new shard may be bad as a whole
    with pytest.raises(ConfigError, match="of 1 that were tried"):
        check([*good, "no.jpg"], limit=0.04, size=21, known=1)


def test_files_that_may_not_be_read_are_refused_before_work() -> None:
    with tempfile.TemporaryDirectory() as root:  # where others may look, too
        photos = Path(root) / "photos"
        photos.mkdir()
        for name in ("a.png", "b.png"):
            Image.new("RGB", (9, 9)).save(photos / name)
        corpus = list_corpus(Store(f"{root}/run"), Source(uri=str(photos)), 10)
        for path in (photos / "b.png", *Path(root).rglob("run")):
            path.chmod(0 if path.suffix else 0o755)
        Path(root).chmod(0o755)
        root_user = os.getuid() == 0
        if root_user:  # whom a file's mode does not keep out
            os.setresuid(65534, 65534, 0)
        try:
            with pytest.raises(
                ConfigError, match=r"no permission to read files of .*photos, such as '.*b\.png'; grant"
            ):
                check_some_images([corpus], {s.id for s in corpus.shards}, 0.01, GEOMETRY)
            check_some_images([corpus], set(), 0.01, GEOMETRY)  # nothing of it is to be read
        finally:
            if root_user:
                os.setresuid(0, 0, 0)


@pytest.mark.parametrize(("first", "refused"), [(None, False), (b"x", False), (b"", True)])
def test_a_parquet_file_is_tried_beyond_its_first_row(
    pictures: Path, first: bytes | None, refused: bool, tmp_path: Path
) -> None:
    good = [] if refused else [(pictures / "00.png").read_bytes()]
    pq.write_table(pa.table({"jpg": pa.array([first, None, *good], pa.binary())}), tmp_path / "a.parquet")
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "a.parquet")), 10)
    with pytest.raises(ConfigError, match=r"'a\.parquet!0': empty file") if refused else nullcontext():
        check_some_images([corpus], {s.id for s in corpus.shards}, 0.01, GEOMETRY)


def test_failed_downloads_alone_refuse_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": pa.array([None] * 40 + [b"x"], pa.binary())}), tmp_path / "a.parquet")
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "a.parquet")), 50)
    check_some_images([corpus], {s.id for s in corpus.shards}, 0.01, GEOMETRY)


@pytest.mark.parametrize(("limit", "refused"), [(0.32, True), (0.34, False)])
def test_rows_without_bytes_are_rejected_and_do_not_count(
    limit: float, refused: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(pa.table({"jpg": [b"x", b"y", b"z", None, None, None]}), tmp_path / "a.parquet")
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "a.parquet")), 10)
    rejected = {f"a.parquet!{i}": NO_BYTES for i in (3, 4, 5)} | {"a.parquet!0": "not an image: x"}
    if refused:
        with pytest.raises(JobError, match=r"1 of 3 images under .* are unreadable, more than max_rejected = 0\.32"):
            check_rejected(corpus, rejected, "max_rejected", limit)
    else:
        kept = check_rejected(corpus, rejected, "max_rejected", limit)
        assert kept.read_table(REJECTED)["image_id"].to_pylist() == sorted(rejected)
    assert "4 images of" in caplog.text
    assert "3 no bytes in this row, 1 not an image" in caplog.text


def test_a_dataset_holds_few_spans_and_every_shard_is_in_one() -> None:
    shards = [Shard(f"s{i}", rows) for i, rows in enumerate([4096] * 2000 + [10, 3_000_000, 7])]
    parts = list(slice_work(shards, 64))
    assert [s for part in parts for s in part] == shards
    spans = [sum(-(-s.rows // (64 * CHUNKS_PER_SPAN)) for s in part) for part in parts]
    assert all(n <= SPANS_PER_DATASET or len(part) == 1 for n, part in zip(spans, parts, strict=True))
    assert len(parts) == 6


def test_receipts_commit_a_shard_once_and_late_copies_of_them_change_nothing(tmp_path: Path) -> None:
    step = Step(Store(str(tmp_path)), "features", "0" * 12)
    receipts = [
        {"shard": "a", "backbone": "b", "part": f"parts/{i}", "chunks": json.dumps([[i * 4, 4]]), "rejected": "{}"}
        for i in range(3)
    ]
    again = [{**receipts[0], "part": "parts/late"}]
    progress = Progress("features", 12, "images")
    commit_receipts([*receipts, *again], {"b": step}, [], [Shard("a", 12)], progress)
    assert step.read_commit("a") == {"rows": 12, "parts": ["parts/0", "parts/1", "parts/2"], "rejected": {}}
    assert progress.done == 12
    with pytest.raises(RuntimeError, match=r"Features of 1 \(shard, backbone\) pairs are incomplete"):
        commit_receipts(receipts[:2], {"b": step}, [], [Shard("a", 12)], progress)


def test_a_backbone_with_another_name_has_the_same_features(specs: list[ClipSpec], tmp_path: Path) -> None:
    renamed = replace(specs[0], backbone=specs[0].backbone.model_copy(update={"name": "another"}))
    store = Store(str(tmp_path))
    assert feature_step(store, renamed) == feature_step(store, specs[0]) != feature_step(store, specs[1])

"""The cost model against hand-computed cases, published profiles, the code it describes and real files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from upl_ray import artifacts, embed, estimate, images, schema, speeds, workload
from upl_ray.artifacts import Store
from upl_ray.config import UPL_STAR, Compute, Label, Train, Views
from upl_ray.corpus import Shard
from upl_ray.estimate import Estimate
from upl_ray.features import feature_table
from upl_ray.forecast import mean_bytes
from upl_ray.speeds import Model
from upl_ray.workload import Images, Learning, Machines

# open_clip's docs/model_profile.csv, column image_gflops.
RESNETS = {"RN50": 12.22, "RN101": 19.54, "RN50x4": 42.56, "RN50x16": 149.39, "RN50x64": 529.11}
VITS = {"ViT-B-32": 8.82, "ViT-B-16": 35.13, "ViT-L-14": 162.03, "ViT-L-14-336": 381.92, "ViT-H-14": 334.59}
PROFILE = RESNETS | VITS | {"ViT-B-16-plus-240": 54.76, "ViT-bigG-14": 967.5}
TINY = Model("tiny", dim=4, height=10, width=20, gflops=0.5, text_width=8, text_layers=2, weights_bytes=1000)
WIDE = Model("wide", dim=8, height=10, width=20, gflops=2.0)


def cost(
    corpus: Images, machines: Machines | None = None, models: tuple[Model, ...] = (TINY, WIDE), **measured: float
) -> Estimate:
    learning = Learning(classes=10, top_k=4, views=3, members=2, epochs=5)
    return estimate.estimate(corpus, models, models[0].name, learning, machines or Machines(cpus=4, gpus=0), measured)


def test_a_case_computed_by_hand() -> None:
    e = cost(Images(1000, 500, bytes_each=200, pixels_each=300), tiny=50.0, wide=25.0, decode=100.0)
    assert e.read_bytes == 100_000
    assert e.feature_bytes == {"tiny": 500 * 16, "wide": 500 * 24}
    assert e.view_bytes == 40 * (3 * 4 * 2 + 8)
    assert e.weights_bytes == 1000
    assert e.forward_hours == pytest.approx({"tiny": 10 / 3600, "wide": 20 / 3600})
    assert e.decode_hours == pytest.approx(5 / 3600)
    assert e.view_hours == pytest.approx(120 / 50 / 3600)
    # 4 CPUs share both: 30 s of encoding, and 500 * (10 ms + 2 reads * 30 ms / 16 at once) of decoding; 20 s to start
    forward, decode = 30 / 4, 500 * (0.01 + 2 * 0.03 / 16) / 4
    assert e.stage_wall_hours["forward"] == pytest.approx(forward / 3600)
    assert e.stage_wall_hours["decode"] == pytest.approx(decode / 3600)
    assert e.embed_wall_hours == pytest.approx((forward + decode + 20) / 3600)
    assert e.imbalance == 1
    # one step of 5 epochs, 2 members: 4 * 12 * 8^2 weights * 2 layers * (17 + 45) tokens
    assert e.train_hours == pytest.approx(2 * 5 * 4 * 12 * 64 * 2 * 62 / 70e9 / 3600)
    # 500 images by both models, 1,000 by the members twice, 2 * 10 classes each
    assert e.classify_hours == pytest.approx(20 * (500 * (4 + 8) + 1000 * 2 * 2 * 4) / 70e9 / 3600)
    assert e.label_bytes == pytest.approx(500 * (8 + 24) + 1000 * (8 + 8 + 2 * np.log2(10) / 8))


def test_requests_computed_by_hand() -> None:
    """Two shards of two parts, both new, one model: every read is a HEAD and a GET, every file written takes three."""
    corpus, machines = Images(4096, 4096, bytes_each=200), Machines(shard_size=2048)
    lists, gets, puts = workload.requests(corpus, [TINY], TINY, Learning(classes=10), machines)
    listing, rejected, features = 4 * 2, 2, 2 + 2 * 2
    labels, selection, predictions = 2 + features, 2 + 2, 2 + features + 2
    assert lists == 5
    assert gets == 4096 * 2 + 2 * (listing + rejected + labels + selection + predictions)
    assert puts == 3 * 2 * (1 + (2 + 1) + 2 + 2)  # listing; parts and commit; of labels; of predictions


def test_ten_times_the_images_are_ten_times_everything_that_grows() -> None:
    one, ten = (cost(Images(n, n)) for n in (40_960_000, 409_600_000))
    for name in ("read_bytes", "label_bytes", "lists", "gets", "puts", "decode_hours", "classify_hours"):
        assert getattr(ten, name) == pytest.approx(10 * getattr(one, name)), name
    assert ten.feature_bytes == pytest.approx({k: 10 * v for k, v in one.feature_bytes.items()})
    assert ten.forward_hours == pytest.approx({k: 10 * v for k, v in one.forward_hours.items()})
    assert (ten.view_bytes, ten.train_hours) == (
        one.view_bytes,
        one.train_hours,
    )  # C * K images, however many there are


def test_only_new_images_are_read_and_encoded() -> None:
    some, none = cost(Images(100_000, 1000)), cost(Images(100_000, 0))
    assert sum(some.forward_hours.values()) > sum(none.forward_hours.values()) == 0
    assert none.embed_wall_hours == none.read_bytes == none.decode_hours == 0
    assert some.label_bytes > none.label_bytes > 0  # predictions of all images, with new prompts
    assert len(none.lines()) == 5


@pytest.mark.parametrize("dim", [512, 1024])
def test_features_are_as_large_as_the_files_that_are_written(tmp_path: Path, dim: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1024, dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = [f"class_{i % 7}/image_{i:05}.jpg" for i in range(1024)]
    store = artifacts.Store(str(tmp_path))
    store.write_table("part.parquet", feature_table(ids, features.astype(np.float16), set()))
    estimated = cost(Images(1024, 1024), models=(replace(TINY, dim=dim),)).feature_bytes["tiny"]
    assert estimated == pytest.approx((tmp_path / "part.parquet").stat().st_size, rel=0.1)


def test_labels_and_predictions_are_at_most_as_large_as_estimated() -> None:
    rng, n, classes, members = np.random.default_rng(0), 4096, 1000, 16
    ids, label = [f"a/{i:06}.jpg" for i in range(n)], rng.integers(0, classes, n).astype(np.int32)
    own = list(rng.integers(0, classes, (n, 2)).astype(np.int32))
    confidence = rng.random(n).astype(np.float32)
    pseudo = pa.table([ids, label, confidence, own, list(rng.random((n, 2)).astype(np.float32))], schema.PSEUDO_LABELS)
    names = [f"class {i}" for i in label]
    votes = list(rng.integers(0, classes, (n, members)).astype(np.int32))
    predicted = pa.table([ids, label, names, confidence, votes], schema=schema.PREDICTIONS)
    written = 0
    for table in (pseudo, predicted):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        written += len(sink.getvalue())
    learning = Learning(classes=classes, members=members)
    e = estimate.estimate(Images(n, n), (TINY, WIDE), "tiny", learning, Machines())
    assert 0.5 * e.label_bytes < written < 1.15 * e.label_bytes  # random votes are the worst case


def test_more_of_a_resource_is_never_slower() -> None:
    corpus, cluster, eight = Images(1_000_000, 1_000_000), Machines(cpus=16, gpus=1), speeds.paper_models()
    for resource in ("cpus", "gpus", "network_bytes_s", "prefixes"):
        more = [replace(cluster, **{resource: n}) for n in (1, 2, 5, 8, 9, 16, 64)]
        hours = [cost(corpus, machines, eight).embed_wall_hours for machines in more]
        assert hours == sorted(hours, reverse=True), resource
    sizes = [cost(Images(n, n)).embed_wall_hours for n in (1, 1000, 1_000_000)]
    assert sizes == sorted(sizes)


def test_the_bottleneck_moves_with_the_setting_it_names() -> None:
    corpus, fast = Images(10**6, 10**6, bytes_each=100e3), {"tiny": 1e4, "wide": 1e4}
    cluster = Machines(cpus=4, gpus=2, decode_workers=4)
    assert cost(corpus, cluster, **fast).bottleneck == "decode"
    assert cost(corpus, cluster, **fast).setting == "more CPUs"
    many = replace(cluster, decode_workers=400)
    assert cost(corpus, many, **fast).bottleneck == "requests"
    shards = replace(corpus, per_file=10_000)
    assert cost(shards, many, **fast).bottleneck == "read"
    assert cost(shards, replace(many, network_bytes_s=1e10), **fast).bottleneck == "forward"
    assert "GPUs" in cost(shards, replace(many, network_bytes_s=1e10), **fast).setting


def test_a_local_corpus_makes_no_requests() -> None:
    e = cost(Images(5000, 5000, remote=False))
    assert (e.lists, e.gets, e.puts, e.driver_wall_hours) == (0, 0, 0, 0)
    assert "requests" not in e.stage_wall_hours
    assert len(e.lines()) == 4


def test_pools_that_do_not_fit_the_work_wait_for_the_slowest() -> None:
    corpus, fast, cluster = Images(3600, 3600), {"tiny": 2.0, "wide": 1.0}, Machines(cpus=100, gpus=3)
    models, learning = (TINY, WIDE), Learning(classes=10)
    equal = estimate.estimate(corpus, models, "tiny", learning, cluster, fast, [{"tiny": 1.5, "wide": 1.5}])
    ideal = estimate.estimate(corpus, models, "tiny", learning, cluster, fast, [{"tiny": 1, "wide": 2}])
    assert (equal.stage_wall_hours["forward"], equal.imbalance) == pytest.approx((1 / 1.5, 4 / 3))
    assert (ideal.stage_wall_hours["forward"], ideal.imbalance) == pytest.approx((0.5, 1))
    assert cost(corpus, cluster, **fast).stage_wall_hours["forward"] == pytest.approx(0.5)
    assert "1.3 times faster" in equal.setting


def test_every_pass_reads_and_decodes_the_images_again() -> None:
    corpus, cluster, learning = Images(4096, 4096), Machines(gpus=2), Learning(classes=10)
    models = (TINY, replace(WIDE, height=448, width=448))
    one, two = (
        estimate.estimate(corpus, models, "tiny", learning, cluster, {}, pools)
        for pools in ([{"tiny": 1, "wide": 1}], [{"tiny": 2}, {"wide": 2}])
    )
    assert two.read_bytes == 2 * one.read_bytes
    assert two.gets - one.gets == 4096 * 2 + 8 * 2  # images, and the listing by each decoding task
    assert one.decode_hours < two.decode_hours < 2 * one.decode_hours
    assert two.stage_wall_hours["requests"] == 2 * one.stage_wall_hours["requests"]
    assert two.forward_hours == one.forward_hours


def test_the_constants_are_those_of_the_job() -> None:
    assert (workload.CHUNKS_PER_PART, workload.CHUNKS_PER_SPAN) == (embed.CHUNKS_PER_PART, embed.CHUNKS_PER_SPAN)
    assert estimate.IO_THREADS == artifacts.IO_THREADS
    machines, compute = Machines(), Compute()
    assert (machines.shard_size, machines.chunk_size) == (compute.shard_size, compute.chunk_size)
    learning, train = Learning(), Train()
    for name in ("members", "epochs", "batch_size", "n_ctx", "precision"):
        assert getattr(learning, name) == getattr(train, name), name
    assert (learning.top_k, learning.views) == (Label().top_k, Views().count)
    assert tuple(m.name for m in speeds.paper_models()) == UPL_STAR


@pytest.mark.parametrize("name", PROFILE)
def test_operations_follow_from_open_clip_configurations(name: str) -> None:
    import open_clip

    config = json.loads((Path(open_clip.__file__).parent / "model_configs" / f"{name}.json").read_text())
    pixels = config["vision_cfg"]["image_size"]
    model = Model.from_config(name, config, pixels, pixels)
    assert model.gflops == pytest.approx(PROFILE[name], rel=0.01)
    assert (model.dim, model.text_width) == (config["embed_dim"], config["text_cfg"]["width"])
    for known in speeds.paper_models():
        if known.name == name:
            assert replace(known, weights_bytes=0) == model


def test_other_towers_are_guessed_from_their_weights() -> None:
    config = {"embed_dim": 512, "vision_cfg": {"timm_model_name": "vit_b", "image_size": 224}, "text_cfg": {}}
    assert Model.from_config("b", config, 224, 224, weights_bytes=4 * 86_000_000).gflops == pytest.approx(
        33.7, rel=0.01
    )


def test_speeds_are_the_published_ones_and_follow_the_gpu() -> None:
    for model in speeds.paper_models("fp16"):
        assert speeds.images_per_s(model, "RTX 3090") == speeds.PUBLISHED[model.name]
        assert speeds.images_per_s(replace(model, precision="fp32"), "RTX 3090") < speeds.PUBLISHED[model.name]
        assert (
            speeds.images_per_s(replace(model, name="x", arch=model.name + "-quickgelu"), "H100")
            > 2 * (speeds.PUBLISHED[model.name])
        )
        share = speeds.PUBLISHED[model.name] * model.gflops / 71e3  # FRACTION is the smallest of these
        assert speeds.FRACTION - 0.02 < share < 0.75
    assert [speeds.named_gpu(d) for d in ("NVIDIA L4", "NVIDIA GeForce RTX 3090", "NVIDIA A100-SXM4-80GB", "L40S")] == [
        *("L4", "RTX 3090", "A100", None)
    ]
    with pytest.raises(ValueError, match="'B200'; name the nearest of RTX 3090"):
        Machines(gpu="B200")


@pytest.mark.parametrize(("classes", "seconds"), [(100, 0.56), (1000, 4.8)])
def test_training_steps_take_what_the_benchmark_measured(classes: int, seconds: float) -> None:
    """benchmarks/README.md: one packed fp32 step of RN50 on two cores."""
    rn50 = speeds.paper_models()[0]
    assert speeds.train_step_gflops(rn50, classes, 16, 4.5) / (2 * speeds.CORE_GFLOPS) == pytest.approx(
        seconds, rel=0.15
    )


def test_decoding_costs_what_was_measured() -> None:
    """Milliseconds of Caltech-101's photographs and of mosaics of 3 x 3 of them on one core (speeds.py)."""
    every = {(s, s) for s in (224, 288, 384, 448)}
    for size_bytes, pixels, sizes, milliseconds in [
        *((14.8e3, 76e3, {(224, 224)}, 1.7), (14.8e3, 76e3, {(448, 448)}, 4.1), (14.8e3, 76e3, every, 10.1)),
        *((119.8e3, 675e3, {(224, 224)}, 7.7), (206.8e3, 675e3, every, 30.9)),
    ]:
        assert 1e3 * speeds.decode_s(size_bytes, pixels, sizes) == pytest.approx(milliseconds, rel=0.25)


def test_models_of_one_resolution_share_a_crop() -> None:
    eight = speeds.paper_models()
    shapes = {images.Geometry(m.height, m.width).key for m in eight}
    assert len(shapes) == 4
    corpus = Images(1000, 1000)
    two = cost(corpus, models=(TINY, WIDE)).decode_hours
    assert two == cost(corpus, models=(TINY,)).decode_hours
    assert two < cost(corpus, models=(TINY, replace(WIDE, height=50))).decode_hours


def test_the_size_of_an_image_in_an_archive_does_not_depend_on_what_is_done(tmp_path: Path) -> None:
    shards = [Shard(str(i), 100, "/in", archive=f"{i // 10}.tar", version="500000-9") for i in range(20)]
    store = Store(str(tmp_path))
    assert mean_bytes(store, shards, shards) == 500
    assert mean_bytes(store, shards[9:11], shards) == 500


def test_what_the_job_says_at_its_start() -> None:
    eight = speeds.paper_models()
    equal = [{m.name: 1.0 for m in eight}]
    e = estimate.estimate(
        *(Images(1_000_000, 250_000), eight, "RN50", Learning(), Machines(cpus=64, gpus=8), {}, equal)
    )
    text = "\n".join(e.lines())
    assert "250,000 of 1,000,000 images to embed: 25 GB to read, 2.9 GB of features to store" in text
    assert "RN50x64 52 %" in text
    assert "held up by forward" in text
    assert "precision: fp16" in text
    assert "4.1 times faster" in text
    assert [estimate.size(n) for n in (0, 999, 1e3, 2.5e9, 1.2e16)] == ["0 B", "999 B", "1 kB", "2.5 GB", "12,000 TB"]
    assert [estimate.span(h) for h in (0.5 / 60, 0.5, 5, 480)] == ["30 s", "30 min", "5 h", "20 days"]

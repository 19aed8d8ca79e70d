"""Finished runs in MLflow's store and in W&B's offline files, read back by the clients' own readers."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from mlflow import MlflowClient
from mlflow.entities import Run
from report_pages import reported, write_images
from wandb.proto.wandb_internal_pb2 import Record

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.config.settings import Tracking
from upl_ray.errors import ConfigError
from upl_ray.report import tracking
from upl_ray.report.finished import open_run
from upl_ray.report.page import PAGE, page_fingerprint
from upl_ray.report.tracking import BATCH, EXPERIMENT, FILE, LONGEST_VALUE, log_run, require_trackers
from upl_ray.storage.step import open_step
from upl_ray.storage.store import Store

REFEREES = {"alpha": {"gain": 0.02, "error": 0.01}, "beta": {"gain": None, "error": None}}
BETTER = {"answer": "better", "gain": 0.02, "error": 0.01, "changed": 0.5, "referees": REFEREES, "truth": None}
VERDICT = {"upl*": {"labels": BETTER, "classifier": BETTER}, "upl": {"labels": None, "classifier": BETTER}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two variants whose losses take more than one request, and whose class names do not fit a parameter."""
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "images", ("a", "b"), ("0.png", "1.png"))
    variants = ("upl*", "upl")
    run = SyntheticRun(folder / "run", folder / "images", ("a", "b"), variants, members=2, epochs=200, verdict=VERDICT)
    store = reported(run)
    summary = store.read_json("run.json")
    summary["config"]["classnames"] = ["a" * 3000, "b" * 3500]
    store.write_json("run.json", summary)
    return folder / "run"


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Store:
    """The same run in a folder of the test."""
    return Store(shutil.copytree(made, str(tmp_path / "run")))


@pytest.fixture
def mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in which MLflow keeps runs."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return (tmp_path / "mlflow").as_uri()


@pytest.fixture
def wandb_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder that W&B knows, without a key."""
    wandb.teardown()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield tmp_path / "wandb"
    wandb.teardown()


def mlflow_runs(uri: str, experiment: str = EXPERIMENT) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested mappings, by its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{name}/{key}" if name else key)
    elif isinstance(value, int | float):
        yield name, value


def expected_figures(store: Store) -> dict[str, float]:
    """The single numbers of run.json as trackers name them."""
    about = store.read_json("run.json")
    figures = {"images": about["images"], "rejected": about["rejected"]}
    for variant, prefix in (("upl*", ""), ("upl", "upl/")):
        scores = about["scores"][variant]
        chosen = scores["selection"]
        figures |= {prefix + name: value for name, value in numbers({**scores, "verdict": about["verdict"][variant]})}
        figures[f"{prefix}selection/images"] = sum(chosen["images_per_class"])
        figures[f"{prefix}selection/starved"] = len(chosen["starved"])
    return figures


def expected_losses(store: Store) -> dict[str, list[tuple[int, float]]]:
    """Epoch and loss of each member and of their mean, from the checkpoints' history."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for variant, prefix in (("upl*", ""), ("upl", "upl/")):
        members = open_step(store, store.read_json("run.json")["folders"]["variants"][variant]["members"])
        rows = sorted(members.read_table("history.parquet").to_pylist(), key=lambda r: r["epoch"])
        for r in rows:
            curves.setdefault(f"{prefix}member-{r['member']:02d}/loss", []).append((r["epoch"], r["loss"]))
        epochs = sorted({r["epoch"] for r in rows})
        curves[f"{prefix}loss"] = [
            (e, pytest.approx(np.mean([r["loss"] for r in rows if r["epoch"] == e]))) for e in epochs
        ]
    return curves


def test_mlflow_gets_configuration_losses_numbers_verdicts_and_page(
    finished: Store, mlflow_uri: str, tmp_path: Path
) -> None:
    require_trackers(Tracking(mlflow=mlflow_uri))
    log_run(finished, Tracking(mlflow=mlflow_uri))
    (run,) = mlflow_runs(mlflow_uri)
    about, client = finished.read_json("run.json"), MlflowClient(tracking_uri=mlflow_uri)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    parameters = run.data.params
    assert parameters["train.lr"] == "0.002"
    assert parameters["storage_path"] == about["config"]["storage_path"]
    assert len(parameters) > 60
    assert parameters["classnames"] == str(about["config"]["classnames"])[:LONGEST_VALUE]
    assert len(parameters["classnames"]) == LONGEST_VALUE
    losses = expected_losses(finished)
    assert sum(map(len, losses.values())) > BATCH
    for name, curve in losses.items():
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == curve
    figures = expected_figures(finished)
    assert {n: value for n, value in run.data.metrics.items() if n not in losses} == figures
    assert figures["predictions/corpus/accuracy/ensemble"] > 0
    assert figures["upl/verdict/classifier/gain"] == 0.02
    answers = {n: value for n, value in run.data.tags.items() if "verdict" in n}
    assert answers == dict.fromkeys(["verdict/labels", "verdict/classifier", "upl/verdict/classifier"], "better")
    page = client.download_artifacts(run.info.run_id, "index.html", str(tmp_path))
    assert Path(page).read_bytes() == finished.read(PAGE)


def wandb_records(folder: Path) -> list[Record]:
    """Records of the only offline run: a log of LevelDB, behind 7 bytes, in blocks of 32 KiB."""
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    data, place, record, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            records.append(Record.FromString(record))
            record = b""
    return records


def items(entries: Any) -> dict[str, Any]:
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}


def test_wandb_gets_the_same(
    finished: Store, wandb_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_trackers(Tracking(wandb="digits"))
    log_run(finished, Tracking(wandb="digits"))
    records = wandb_records(wandb_folder)
    (run,) = (r.run for r in records if r.HasField("run"))
    assert (run.project, run.display_name, run.run_id) == ("digits", "run", logged_ids(finished, "wandb digits")[0])
    assert sorted(run.tags) == [
        "upl/verdict/classifier: better",
        "verdict/classifier: better",
        "verdict/labels: better",
    ]
    config = items(run.config.update)
    assert (config["train.lr"], config["train.members"]) == (0.002, 2)
    assert len(config["classnames"]) == LONGEST_VALUE
    steps = [items(r.history.item) for r in records if r.HasField("history")]
    for name, curve in expected_losses(finished).items():
        assert [(s["_step"], s[name]) for s in steps] == curve
    summary: dict[str, Any] = {}
    for r in records:
        summary |= items(r.summary.update)
    assert {n: summary[n] for n in expected_figures(finished)} == expected_figures(finished)
    assert summary["verdict/labels"] == "better"
    (page,) = (r.artifact.manifest.contents[0] for r in records if r.HasField("artifact"))
    assert (page.path, Path(page.local_path).read_bytes()) == ("index.html", finished.read(PAGE))
    assert not any(r.HasField("output_raw") or r.HasField("stats") or r.HasField("files") for r in records)
    assert capfd.readouterr().out == ""


def logged_ids(store: Store, tracker: str) -> list[str]:
    return list(store.read_json(FILE)[tracker].values())


def test_a_run_is_logged_once_and_a_changed_one_again(finished: Store, mlflow_uri: str) -> None:
    settings = Tracking(mlflow=mlflow_uri)
    for _ in range(2):
        log_run(finished, settings)
    (first,) = mlflow_runs(mlflow_uri)
    assert logged_ids(finished, f"mlflow {mlflow_uri}") == [first.info.run_id]
    before = finished.read_json("run.json")
    finished.write_json("run.json", {**before, "config": {**before["config"], "template": "another {}."}})
    log_run(finished, settings)
    finished.write_json("run.json", {**before, "seconds": 99.0})
    log_run(finished, settings)
    assert sorted(r.info.run_id for r in mlflow_runs(mlflow_uri)) == sorted(
        logged_ids(finished, f"mlflow {mlflow_uri}")
    )
    assert len(mlflow_runs(mlflow_uri)) == 2
    log_run(finished, Tracking(mlflow=f"{mlflow_uri}-other"))
    assert len(mlflow_runs(f"{mlflow_uri}-other")) == 1


def test_a_damaged_record_of_logged_runs_costs_a_second_one(finished: Store, mlflow_uri: str) -> None:
    finished.write(FILE, b"{")
    log_run(finished, Tracking(mlflow=mlflow_uri))
    assert logged_ids(finished, f"mlflow {mlflow_uri}") == [r.info.run_id for r in mlflow_runs(mlflow_uri)]


def test_the_experiment_is_the_one_that_mlflow_is_told(
    finished: Store, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    log_run(finished, Tracking(mlflow=mlflow_uri))
    assert len(mlflow_runs(mlflow_uri, "digits")) == 1


def test_trackers_are_no_part_of_a_run_or_its_page(finished: Store) -> None:
    run = open_run(finished.uri)
    before = page_fingerprint(run), run.identity
    run.summary["config"]["tracking"] = {"mlflow": "http://tracker:5000", "wandb": "digits"}
    assert (page_fingerprint(run), run.identity) == before
    log_run(finished, Tracking())
    assert FILE not in finished.names("")


def test_a_server_that_is_not_there_or_silent_is_a_warning_within_seconds(
    finished: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # a variable that is set stays
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for port in (silent.getsockname()[1], closed.getsockname()[1]):
            caplog.clear()
            require_trackers(Tracking(mlflow=f"http://127.0.0.1:{port}"))
            log_run(finished, Tracking(mlflow=f"http://127.0.0.1:{port}"))
            (warning,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
            assert f"mlflow http://127.0.0.1:{port} did not take it" in warning.getMessage()
            assert "run the job again" in warning.getMessage()
    assert time.monotonic() - started < 60
    assert FILE not in finished.names("")


def test_a_run_whose_page_mlflow_cannot_keep_is_marked_as_failed(
    finished: Store, mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    MlflowClient(tracking_uri=mlflow_uri).create_experiment(EXPERIMENT, artifact_location="file:///dev/null/pages")
    log_run(finished, Tracking(mlflow=mlflow_uri))
    (run,) = mlflow_runs(mlflow_uri)
    assert run.info.status == "FAILED"
    assert "did not take it" in caplog.text
    assert not (Path(finished.uri) / FILE).exists()


@pytest.mark.usefixtures("wandb_folder")
def test_wandb_out_of_reach_is_a_warning_too(
    finished: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "7")
    monkeypatch.setattr(tracking, "WANDB_INIT_S", 3)
    require_trackers(Tracking(wandb="digits"))
    log_run(finished, Tracking(wandb="digits"))
    (warning,) = (r.getMessage() for r in caplog.records if "the run is finished" in r.getMessage())
    assert "wandb digits did not take it" in warning
    assert 40 * "7" not in caplog.text
    assert FILE not in finished.names("")


def test_what_one_tracker_refuses_the_other_gets(
    finished: Store, mlflow_uri: str, wandb_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log_run(finished, Tracking(mlflow=mlflow_uri, wandb="digits"))
    assert list(finished.read_json(FILE)) == [f"mlflow {mlflow_uri}"]
    assert len(mlflow_runs(mlflow_uri)) == 1


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_missing_package_is_named(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)  # an import of it fails, as where it is not installed
    with pytest.raises(ConfigError, match=rf"tracking\.{tracker}.*pip install 'upl-ray\[{tracker}\]'"):
        require_trackers(Tracking.model_validate({tracker: "somewhere"}))


def test_an_address_that_mlflow_refuses_is_an_error_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.mlflow is 'ftp://host/runs', which MLflow refuses: .*ftp"):
        require_trackers(Tracking(mlflow="ftp://host/runs"))
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_ALLOW_FILE_STORE=true"):
        require_trackers(Tracking(mlflow="mlruns"))


@pytest.mark.usefixtures("wandb_folder")
def test_wandb_without_a_key_is_an_error_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match=r"tracking\.wandb is 'digits'.*WANDB_API_KEY, or WANDB_MODE=offline"):
        require_trackers(Tracking(wandb="digits"))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("mlflow", "https://me:hush-hush@host/", "holds credentials"),
        ("mlflow", "https://host/?api_key=hush-hush", "holds credentials"),
        ("wandb", "https://wandb.ai/me/digits", "write PROJECT or ENTITY/PROJECT"),
    ],
)
def test_no_key_and_no_stranger_address_in_the_settings(field: str, value: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        Tracking(**{field: value})
    assert "hush" not in str(error.value)

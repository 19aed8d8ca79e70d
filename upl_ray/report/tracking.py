"""A finished run in an experiment tracker: MLflow, Weights & Biases, or both.

Both get the same record: the configuration, the members' losses by epoch, the numbers of run.json, the report's page.
`tracking.json` in the storage holds the tracker's id of each run that is logged, so no run is logged twice.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from upl_ray.config.settings import Tracking
from upl_ray.errors import ConfigError, Damaged, JobError, first_line
from upl_ray.report.findings import losses_of
from upl_ray.report.finished import FinishedRun, fields, open_run
from upl_ray.report.page import PAGE
from upl_ray.storage.step import fingerprint
from upl_ray.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

FILE = "tracking.json"
EXPERIMENT = "upl-ray"  # in MLflow, where MLFLOW_EXPERIMENT_NAME names no other
LONGEST_VALUE = 6000  # characters of a parameter's value that MLflow takes
BATCH = 1000  # metrics of one request to MLflow; parameters and tags: a tenth
# MLflow's own defaults try a server that does not answer for minutes: eight times 120 s. Variables that are set stay.
MLFLOW_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
WANDB_INIT_S = 60  # longest wait for the server of W&B
WANDB_FINISH_S = 300  # longest wait until everything is there

Item = TypeVar("Item")


@dataclass(frozen=True)
class Record:
    """A run as trackers hold it. Names of other variants than the exported one begin with theirs: `upl/loss`."""

    name: str
    parameters: dict[str, bool | int | float | str]
    curves: dict[str, list[float]]  # a value for each epoch
    figures: dict[str, float]
    answers: dict[str, str]  # of the verdicts: better, worse, cannot tell
    page: bytes


def require_trackers(tracking: Tracking) -> None:
    """Refuse to begin where a tracker's package, or the key of W&B, is missing, or MLflow refuses the address.

    Raises:
        ConfigError: the field, the reason and the remedy.
    """
    for tracker, place in tracking.model_dump().items():
        if not place:
            continue
        try:
            CHECKS[tracker](place)
        except ImportError as error:
            raise ConfigError(
                f"tracking.{tracker} is {place!r}, but a package is missing ({first_line(error)}); install it: pip "
                f"install 'upl-ray[{tracker}]'."
            ) from None


def log_run(store: Store, tracking: Tracking) -> None:
    """Log the run in a storage to each tracker that the settings name, if it has not got it yet.

    A tracker that fails costs a warning: the run itself is finished.
    """
    places = {tracker: place for tracker, place in tracking.model_dump().items() if place}
    if not places:
        return
    run = open_run(store.uri)
    digest = fingerprint(run.identity)
    for tracker, place in places.items():
        logged, key = _read_logged(store), f"{tracker} {place}"
        ids = logged.get(key, {})
        if digest in ids:
            log.info("%-12s already in %s: %s", "tracking", key, ids[digest])
            continue
        record = record_of(run)
        try:
            ids[digest] = LOGGERS[tracker](place, record)
        except Exception as error:  # noqa: BLE001  # of clients, their servers and storages; the run is finished
            log.warning(
                "%-12s the run is finished, but %s did not take it (%s); repair that or correct tracking.%s, and run "
                "the job again, which only logs it",
                *("tracking", key, first_line(error), tracker),
            )
            continue
        store.write_json(FILE, {**logged, key: ids})
        log.info("%-12s logged in %s: %s", "tracking", key, ids[digest])


def _read_logged(store: Store) -> dict[str, dict[str, str]]:
    """Of each tracker: fingerprint of a run -> its id there."""
    try:
        return store.read_json(FILE)
    except (FileNotFoundError, Damaged):  # the price of a damaged one is a run that is logged twice
        return {}


def record_of(run: FinishedRun) -> Record:
    """Everything about a run that a tracker is given."""
    about = run.summary
    curves: dict[str, list[float]] = {}
    figures = {"images": about["images"], "rejected": about["rejected"]}
    answers: dict[str, str] = {}
    for variant in run.variants:
        prefix = "" if variant == run.variants[0] else f"{variant.slug}/"
        losses = losses_of(run, variant)
        curves[f"{prefix}loss"] = losses.mean(axis=0).tolist()
        curves |= {f"{prefix}member-{i:02d}/loss": member.tolist() for i, member in enumerate(losses)}
        found = about.get("verdict", {}).get(variant.name, {})  # older runs have none
        figures |= _figures({**about["scores"][variant.name], "verdict": found}, prefix)
        answers |= {f"{prefix}verdict/{what}": of["answer"] for what, of in found.items() if of}
    return Record(
        name=run.store.uri.rstrip("/").rpartition("/")[2],
        parameters={
            name: value if isinstance(value, bool | int | float) else str(value)[:LONGEST_VALUE]
            for name, value in fields(run.config)
        },
        curves=curves,
        figures=figures,
        answers=answers,
        page=run.store.read(PAGE),
    )


def _figures(scores: dict[str, Any], prefix: str) -> dict[str, float]:
    """All single numbers of a variant's scores and verdicts by their place in run.json, and sizes of the selection."""
    selection = scores["selection"]
    sizes = {"images": sum(selection["images_per_class"]), "starved": len(selection["starved"])}
    named = fields({**scores, "selection": {**selection, **sizes}}, prefix, "/")
    return {name: value for name, value in named if isinstance(value, int | float) and not isinstance(value, bool)}


# MLflow.


def _mlflow_client(uri: str) -> MlflowClient:
    """A client of a tracking server or store; a server is not asked yet.

    Raises:
        ConfigError: MLflow refuses the address.
    """
    for name, value in MLFLOW_VARIABLES.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs each attempt
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise ConfigError(
            f"tracking.mlflow is {uri!r}, which MLflow refuses: {first_line(error).strip()}. Correct it."
        ) from None


def _log_to_mlflow(uri: str, record: Record) -> str:
    """Log a record as one run in MLflow; returns its id."""
    client = _mlflow_client(uri)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    run_id = str(client.create_run(experiment_id, run_name=record.name).info.run_id)
    status = "FAILED"
    try:
        _fill_mlflow_run(client, run_id, record)
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return run_id


def _fill_mlflow_run(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(1000 * time.time())
    metrics = [Metric(k, value, now, step) for k, curve in record.curves.items() for step, value in enumerate(curve)]
    metrics += [Metric(k, value, now, 0) for k, value in record.figures.items()]
    parameters = [Param(k, str(value)) for k, value in record.parameters.items()]
    for some in _batches(metrics, BATCH):
        client.log_batch(run_id, metrics=some)
    for some in _batches(parameters, BATCH // 10):
        client.log_batch(run_id, params=some)
    client.log_batch(run_id, tags=[RunTag(k, value) for k, value in record.answers.items()])
    with tempfile.TemporaryDirectory() as local:
        client.log_artifact(run_id, str(_write_page(record, local)))


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _write_page(record: Record, folder: str) -> Path:
    page = Path(folder) / Path(PAGE).name
    page.write_bytes(record.page)
    return page


# Weights & Biases.


def _check_wandb(project: str) -> None:
    """Find the key of W&B, or have it asked for on a terminal, as long as nobody has waited for results.

    Raises:
        ConfigError: there is none.
    """
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled"):
        return
    try:
        wandb.login(verify=False)
    except wandb.errors.UsageError as error:
        raise ConfigError(
            f"tracking.wandb is {project!r}, but {first_line(error)}. Set WANDB_API_KEY, or WANDB_MODE=offline."
        ) from None


def _log_to_wandb(project: str, record: Record) -> str:
    """Log a record as one run of W&B; returns its id."""
    import wandb

    if wandb.setup().settings.mode == "disabled":
        raise JobError("W&B is switched off: WANDB_MODE is disabled")
    entity, _, name = project.rpartition("/")
    settings = wandb.Settings(
        init_timeout=WANDB_INIT_S,
        finish_timeout=WANDB_FINISH_S,
        finish_timeout_raises=True,
        silent=True,
        console="off",  # neither output nor facts about code and machine: nothing but the record
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    tags = [f"{name}: {answer}" for name, answer in record.answers.items()]
    options = {"name": record.name, "config": record.parameters, "tags": tags, "settings": settings}
    with (
        tempfile.TemporaryDirectory() as local,
        wandb.init(entity=entity or None, project=name, reinit="create_new", **options) as run,
    ):
        for epoch, values in enumerate(zip(*record.curves.values(), strict=True)):
            run.log(dict(zip(record.curves, values, strict=True)), step=epoch)
        run.summary.update(record.figures | record.answers)
        page = wandb.Artifact("report", type="report")
        page.add_file(str(_write_page(record, local)))
        run.log_artifact(page)
        return str(run.id)


CHECKS: dict[str, Callable[[str], Any]] = {"mlflow": _mlflow_client, "wandb": _check_wandb}
LOGGERS: dict[str, Callable[[str, Record], str]] = {"mlflow": _log_to_mlflow, "wandb": _log_to_wandb}

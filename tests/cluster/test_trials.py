"""Trials on a real cluster, as tasks and as runs of Ray Train: reports, attempts, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upl_ray.cluster.connect import job_error_in
from upl_ray.cluster.trials import Report, Trial, Workers, run_trials
from upl_ray.errors import JobError


def count_to(last: int, folder: Path, fails: int) -> Callable[[], Iterator[Report]]:
    """Body that goes on from where the attempt before has failed, which the first `fails` ones do."""

    def body() -> Iterator[Report]:  # workers cannot import this file
        attempts = len(list(folder.iterdir()))
        (folder / str(attempts)).touch()
        for n in range(attempts, last):
            yield {"n": n}
            if attempts < fails:
                raise JobError(f"No. {attempts} failed.")

    return body


@pytest.mark.parametrize(
    "ray_train",
    [pytest.param(False, id="tasks"), pytest.param(True, id="ray_train", marks=pytest.mark.slow)],
)
def test_a_trial_is_repeated_alone_and_its_error_is_the_jobs(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, ray_train: bool
) -> None:
    folders = [tmp_path / name for name in ("good", "once", "always")]
    for folder in folders:
        folder.mkdir()
    bodies = [count_to(3, folder, fails) for folder, fails in zip(folders, (0, 1, 9), strict=True)]
    trials = [Trial(folder.name, body) for folder, body in zip(folders, bodies, strict=True)]
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    with pytest.raises(RuntimeError, match=r"1 of 3 trials failed; the first: .*") as failed:
        run_trials(trials, Workers(1, {"CPU": 1.0}, ray_train), 60, lambda i, report: seen[i].append(report["n"]))
    assert job_error_in(failed.value) == "No. 2 failed."
    assert seen == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]}
    assert [len(list(folder.iterdir())) for folder in folders] == [1, 2, 3]
    reasons = sorted(r.getMessage().partition(" failed: ") for r in caplog.records if " failed: " in r.getMessage())
    assert [name.split()[-1] for name, _, _ in reasons] == ["always", "always", "always", "once"]
    assert all(reason.endswith(" failed") and reason.startswith("No. ") for _, _, reason in reasons), reasons

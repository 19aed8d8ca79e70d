"""The Ray cluster of a run: joined or started at the first step with work to do, waited for, checked and watched."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.util.placement_group import placement_group, remove_placement_group

import upl_ray
from upl_ray.cluster.watch import FOR_WORK, Watch
from upl_ray.config.settings import Compute
from upl_ray.corpus.listing import is_below
from upl_ray.errors import ConfigError, Damaged, JobError, StoppedAtStart, describe_storage_error, first_line, quoted
from upl_ray.progress import Laps

log = logging.getLogger(__name__)
# Set by the job, or by Ray.
OWN_VARIABLES = frozenset(
    ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL", "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_CLIENT_MODE")
)

POLL_S = 1.0  # between two looks at the nodes while waiting for them
HEAD_S = 10.0  # for the head's answer
HOST_AND_PORT = re.compile(r"[^/\s]+:\d{1,5}")


class RayCluster:
    """Joins Ray at the first step that has something to do, or starts it on this machine.

    Args:
        compute: the address to join, the resources to ask for, the longest wait.

    Raises:
        ConfigError: the address is none that a job can join.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self._address, self._source = find_address(compute)
        self.used = False
        self.laps = Laps()  # of the steps that had something to do
        self._watch = Watch(FOR_WORK, compute.wait_for_resources_s)
        self.joined = False  # a cluster that this process has not started
        self._preflight: Callable[[], None] | None = None

    def check_nodes(self, preflight: Callable[[], None]) -> None:
        """Check the nodes of a cluster that was joined, which may be unlike this machine, before the next step."""
        self._preflight = preflight

    def start(self, step: str) -> None:
        """Join or start the cluster for a step with work to do, unless that was done; wait for nodes and check them.

        Raises:
            JobError: no node for work came up in time.
            ConfigError: a node is not fit for the work.
        """
        self.used = True
        self.laps.start(step)
        if not ray.is_initialized():
            self._join()
        if self._preflight and self.joined:
            self._preflight()
            self._preflight = None

    def _join(self) -> None:
        address, local = self._address, self._address == "local"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if local:  # Ray's own log files keep what is not shown here
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            if folder := os.environ.get("RAY_TMPDIR"):
                os.environ["RAY_TMPDIR"] = os.path.abspath(folder)  # Ray's processes do not find a relative one
            check_working_folder()
        elif HOST_AND_PORT.fullmatch(address):
            check_head(address, self._source)
        at_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces the handler by one that ends without a log line
        try:
            with _addressed(address, self.compute.workers_per_trial > 1) as for_workers:
                ray.init(
                    address=address,
                    logging_level=logging.ERROR if local else logging.WARNING,
                    log_to_driver=not local,
                    include_dashboard=False if local else None,
                    runtime_env={"env_vars": for_workers} if for_workers else None,
                )
        except (
            SystemExit,
            KeyboardInterrupt,
        ) as error:  # the first by Ray's handler, which is in place while it starts
            signal.alarm(0)  # by which Ray's C++ handler would abort after three seconds
            number = signal.SIGTERM if isinstance(error, SystemExit) else signal.SIGINT
            raise StoppedAtStart(number) from None
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise _not_joined(error, self._source, local) from None
        except OSError as error:
            if "AF_UNIX" in str(error):
                raise ConfigError(
                    f"The folder of temporary files is too long a path for Ray's sockets ({first_line(error)}); set "
                    f"RAY_TMPDIR to a shorter one, for example /tmp."
                ) from None
            if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
                raise _unwritable(error) from None
            raise
        except ValueError as error:
            raise _not_understood(error) from None
        except Exception as error:
            if type(error) is not Exception:  # Ray has no other for its own processes that do not come up
                raise
            raise JobError(f"Ray did not start ({first_line(error)}); run the job again.") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_sigterm)
        wait_for_resources(self.compute, local)
        resources, nodes = ray.cluster_resources(), sum(n["Alive"] for n in ray.nodes())
        log.info("%-12s %g CPUs, %g GPUs, %d node(s)", "ray", resources.get("CPU", 0), resources.get("GPU", 0), nodes)
        if not local:
            self.joined = True
            self._watch.start()

    @contextmanager
    def watched(self, last: bool = True) -> Iterator[None]:
        """Raise errors of tasks that name a remedy as the job's, and abort instead of waiting without limit.

        Args:
            last: no other work follows, so a cluster that was joined is left at the end. Else Ray's late warnings about
                nodes would follow the job's last line.

        Raises:
            JobError: a task raised one; or no node for work was alive for `compute.wait_for_resources_s`.
        """
        self._watch = Watch(FOR_WORK, self.compute.wait_for_resources_s)
        if self.joined:
            self._watch.start()
        done = False
        try:
            with self._watch.guard():
                yield
            done = True
        except (RuntimeError, ray.exceptions.RayError) as error:
            if sentence := job_error_in(error):
                raise JobError(sentence) from None
            raise
        finally:
            if self.joined and (last or not done):
                ray.shutdown()


def find_address(compute: Compute) -> tuple[str, str]:
    """The address of Ray, `local`, `auto` or `HOST:PORT`, and where it comes from, in words.

    Raises:
        ConfigError: it is another address.
    """
    given = compute.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    source = f"{'compute.ray_address' if compute.ray_address else 'RAY_ADDRESS'} = {given!r}"
    if given in ("local", "auto") or HOST_AND_PORT.fullmatch(given):
        return given, source
    remedy = f"send it the job (ray job submit --address {given} ...), or " if given.startswith("http") else ""
    raise ConfigError(
        f"{source} is no address that a job can join; {remedy}name the head's HOST:PORT (usually port 6379), auto, or "
        f"local."
    )


def _not_joined(error: Exception, source: str, local: bool) -> ConfigError | JobError:
    """The error of a cluster that is not there, or of a token that is missing."""
    if local:
        return ConfigError(
            f"Ray does not start on this machine without the token that RAY_AUTH_MODE = "
            f"{os.environ.get('RAY_AUTH_MODE', '')!r} asks for ({first_line(error)}); unset RAY_AUTH_MODE, or make one "
            f"(ray get-auth-token --generate)."
        )
    return JobError(
        f"The Ray cluster of {source} cannot be joined: {first_line(error)}; start it or correct the address, and give "
        f"this process the cluster's token if it has one (RAY_AUTH_TOKEN_PATH)."
    )


def check_head(address: str, source: str) -> None:
    """Raise a JobError at once where nobody listens; Ray would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise JobError(f"No Ray head answers at {source} ({reason}); start it, or correct the address.") from None


def check_working_folder() -> None:
    """Refuse a working folder with another checkout of this package, or of what it imports: workers would import that.

    Raises:
        ConfigError: there is one.
    """
    shadows = _shadows(Path.cwd())
    if shadows:
        raise ConfigError(
            f"The working folder holds {shadows[0].name!r}, which Ray's workers would import instead of the module "
            f"{shadows[0].stem!r} ({shadows[0].parent}); rename it, or run from another folder."
        )
    other, mine = Path.cwd() / upl_ray.__name__, Path(upl_ray.__file__).parent
    if (other / "__init__.py").exists() and not other.samefile(mine):
        raise ConfigError(
            f"The working folder holds another {upl_ray.__name__} ({other}) than the one that runs ({mine}), and Ray's "
            f"workers would import it; run from another folder, or run that one's jobs."
        )


def _shadows(folder: Path) -> list[Path]:
    """Files and packages in a folder that are named like modules which this process has imported from elsewhere."""
    used = {name for name in sys.modules if "." not in name} | sys.stdlib_module_names
    named = [*folder.glob("*.py"), *(file.parent for file in folder.glob("*/__init__.py"))]
    return sorted(p for p in named if p.stem in used - {"__main__", upl_ray.__name__} and not _is_loaded_from(p))


def _is_loaded_from(path: Path) -> bool:
    file = getattr(sys.modules.get(path.stem), "__file__", None)
    return file is not None and Path(file).resolve() in (path.resolve(), path.resolve() / "__init__.py")


@contextmanager
def _addressed(address: str, ray_train: bool) -> Iterator[dict[str, str]]:
    """Tell workers which cluster is theirs: gives the variables for those of a cluster that is joined by `HOST:PORT`.

    Processes of Ray Train ask Ray's state API about their run. Without RAY_ADDRESS they ask the cluster that was
    started last on their machine: if that is dead, they wait for 12 s when a run ends; if it is another one, it does
    not know the run, and they take it for dead (Ray 2.60).
    """
    if address != "local" or not ray_train:
        yield {"RAY_ADDRESS": address} if HOST_AND_PORT.fullmatch(address) else {}
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    given = {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given  # inherited by every process of Ray
    try:
        yield {}
    finally:
        for name, value in before.items():
            del os.environ[name]
            os.environ |= {} if value is None else {name: value}


def _unwritable(error: OSError) -> ConfigError:
    """The refusal of a folder that Ray cannot write while it starts: its temporary one, or `~/.ray` for a token."""
    place, temporary = str(error.filename or ""), os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    at_home = is_below(place, os.path.expanduser("~")) and not is_below(place, temporary)
    return ConfigError(
        f"Ray cannot write its {'token' if at_home else 'temporary files'} ({first_line(error)}); set "
        f"{'HOME' if at_home else 'RAY_TMPDIR'} to a folder that can be written, for example /tmp."
    )


def _not_understood(error: ValueError) -> ConfigError:
    """The refusal of a variable that Ray cannot read, or of a folder that its sockets cannot have."""
    if isinstance(error, UnicodeEncodeError):
        place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        return ConfigError(
            f"The folder of temporary files {quoted(place)} holds letters beyond ASCII, which its sockets cannot have; "
            f"set RAY_TMPDIR to another one, for example /tmp."
        )
    given = ", ".join(sorted(name for name in os.environ if name.startswith("RAY_") and name not in OWN_VARIABLES))
    return ConfigError(
        f"Ray cannot be started ({first_line(error)}); correct its variables{given and f', of which {given} are set'}."
    )


def job_error_in(error: BaseException) -> str:
    """The sentence of a JobError that a task or an actor raised, or one about its OSError; else an empty string.

    Exceptions of other processes survive as text only.
    """
    if isinstance(error, JobError) and not isinstance(error, ray.exceptions.RayTaskError):
        return ""  # the driver's own; one of a plain task is both, and its text is a traceback
    if found := re.search(rf"^\S*\b(?:{JobError.__name__}|{Damaged.__name__}): (.+)$", str(error), re.MULTILINE):
        return found[1]
    found = re.search(
        r"^\S*\b(?:OSError|PermissionError|FileNotFoundError|TimeoutError|BrokenPipeError|Connection\w*Error): (.+)$",
        str(error),
        re.MULTILINE,
    )
    return describe_storage_error(found[1]) if found else ""


def wait_for_resources(compute: Compute, local: bool = False) -> None:
    """Ask an autoscaling cluster for `compute.request`, or else for one CPU, and wait until it is there.

    The request is made of placement groups, so it ends with this driver, however that ends: no node stays up for a dead
    job. Each group is for one unit, as the autoscaler starts nothing for a group that it cannot serve as a whole. The
    job goes on with the resources that came in time, unless there are none.

    Raises:
        JobError: after `compute.wait_for_resources_s` there is no CPU.
    """
    wanted = compute.request or {"CPU": 1}
    if not missing(wanted):
        return
    if local:  # nothing can join a Ray that this job has started for itself
        log.warning("%-12s is local and goes on without %s of compute.request", "ray", missing(wanted))
        return
    log.info("%-12s waits up to %d s for %s", "ray", compute.wait_for_resources_s, missing(wanted))
    groups = [placement_group([{kind: 1.0}]) for kind, count in wanted.items() for _ in range(count)]
    deadline = time.monotonic() + compute.wait_for_resources_s
    while missing(wanted) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for group in groups:
        remove_placement_group(group)
    if not ray.cluster_resources().get("CPU"):
        raise JobError(
            f"No node with a CPU for work came up within compute.wait_for_resources_s = {compute.wait_for_resources_s} "
            f"s; start one, let the autoscaler start more (max_workers), or wait longer, and run the job again."
        )
    if missing(wanted):
        log.warning("%-12s goes on without %s of compute.request", "ray", missing(wanted))


def missing(wanted: Mapping[str, int]) -> str:
    """The wanted resources that the cluster lacks, in words; empty if it has all."""
    there = ray.cluster_resources()
    lacking = {kind: count - there.get(kind, 0.0) for kind, count in wanted.items()}
    return ", ".join(f"{count:g} {kind}" for kind, count in lacking.items() if count > 0)

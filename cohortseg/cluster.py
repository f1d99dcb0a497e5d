"""Ray: connect to a cluster or start one on this machine, and check at once that the requested workers fit.

Nothing is sent anywhere: usage statistics are off, and Ray's servers started on this machine listen on loopback
only. (While workers train, torch listens for them on every interface: docs/training.md.)
Import ``ray`` only within `connected`, since ray reads some of its settings on import.
"""

import hashlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import torch

from cohortseg import __version__
from cohortseg.errors import ConfigError, WorkerError
from cohortseg.processors import num_processors

if TYPE_CHECKING:
    from types import ModuleType

_log: Final = logging.getLogger(__name__)

_EVERYWHERE: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
_LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_LOCAL: Final = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # The one way to make Ray's servers bind 127.0.0.1 rather than every interface; read while ray is imported.
    _LOOPBACK: "0",
    # Its C++ side writes harmless errors on stderr for every pool of actors; on a cluster, where the head can be lost,
    # it is the only one to say why it then ends this process.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_OBJECT_STORE_BYTES: Final = 256 * 1024**2
_ANSWER_S: Final = 10.0
LONGEST_WAIT_S: Final = 1800.0
"""Longest wait for a lost node to come back, or for the next series to end, which takes far less."""
WATCH_EVERY_S: Final = 5.0
_HERE: Final = "local"
"""Ray's address for a cluster that is to be started on this machine."""
_RUNNING_HERE: Final = "auto"
_EXIT_S: Final = 5.0
"""Longest wait for a process to end, first by itself, then as it is told."""
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK: Final = re.compile(r'Traceback|File "[^"]*", line \d')
_ADVICE: Final = {
    "No module named 'cohortseg'": "install the same cohortseg on every node of the cluster",
    "connectFullMesh": "set GLOO_SOCKET_IFNAME to the nodes' network interface before Ray starts on them, "
    "as cluster/README.md says",
}
"""What to do about causes that a repetition does not mend, by a part of their text."""


def _package_sha256() -> str:
    root = Path(__file__).parent
    digest = hashlib.sha256(__version__.encode())  # all that is known of a package inside an archive
    for path in sorted(root.rglob("*.py")):
        if not path.name.startswith(".") and path.is_file():
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


PACKAGE_SHA256: Final = _package_sha256()
"""Hash of the cohortseg sources that this process started with."""


def require_same_package(sha256: str) -> None:
    """Refuse, on a worker, to serve a run of another cohortseg: results would mix two methods, or not be found.

    Raises
    ------
    ConfigError
        If the sources here differ from those that the run was started with.
    """
    if sha256 != PACKAGE_SHA256:
        raise ConfigError(
            f"this node has another cohortseg ({__version__}) than the run was started with, or one changed since; "
            "have the same on every node, restart the cluster and run the same command again"
        )


class RayStartError(WorkerError):
    """Ray does not start on this machine."""


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of the nodes that workers can run on."""

    nodes: tuple[tuple[float, float], ...]
    """(CPUs, GPUs) of each node."""
    where: str
    """Name in messages: "this machine" or "the cluster"."""

    @property
    def num_cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def num_gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(gpus for _, gpus in self.nodes)

    def fitting(self, cpus_per_worker: float, gpus_per_worker: float) -> int:
        """Return how many workers fit, each entirely on one node."""
        return sum(_fitting(node, (cpus_per_worker, gpus_per_worker)) for node in self.nodes)

    def largest_share(self, num_workers: int, gpus_per_worker: float = 0.0) -> float:
        """Return the most CPUs that each of the workers can have, rounded down to a hundredth; 0 if they do not fit."""
        # With the largest share the workers fill some node, whose CPUs are thus a whole number of shares.
        shares = {int(100 * cpus / count) / 100 for cpus, _ in self.nodes for count in range(1, num_workers + 1)}
        fit = (share for share in shares if share > 0 and self.fitting(share, gpus_per_worker) >= num_workers)
        return max(fit, default=0.0)


def _fitting(node: tuple[float, float], worker: tuple[float, float]) -> int:
    # The small term keeps 8 x 0.25 in 2 from falling to rounding.
    return min(
        (int(have / need + 1e-9) for have, need in zip(node, worker, strict=True) if need > 0), default=sys.maxsize
    )


def local_resources() -> Resources:
    """Return the CPUs this process may use and the GPUs torch sees."""
    return Resources(nodes=((float(num_processors()), float(torch.cuda.device_count())),), where="this machine")


def cluster_address(address: str | None) -> str | None:
    """Return the address of the cluster to use: the given one, else ``RAY_ADDRESS``; None for this machine alone."""
    given = address or os.environ.get("RAY_ADDRESS") or None
    return None if given == _HERE else given


@dataclass(frozen=True, kw_only=True)
class WorkerRequest:
    """How many workers to run, and what each reserves; each runs entirely on one node."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float

    @property
    def num_threads(self) -> int:
        """Threads of each worker: its CPUs rounded down, at least one."""
        return max(1, int(self.cpus_per_worker))

    def check(self, resources: Resources, *, cpus_flag: bool = False) -> None:
        """Refuse workers that would wait forever for resources that do not exist.

        ``cpus_flag`` tells whether the command has ``--cpus-per-worker``, which the message then suggests too.

        Raises
        ------
        ConfigError
            If they do not fit; the message gives the numbers, and flags that would fit.
        """
        count, cpus, gpus = self.num_workers, self.cpus_per_worker, self.gpus_per_worker
        fits = resources.fitting(cpus, gpus)
        if count <= fits:
            return
        lacks = [_lack(count, cpus, "CPU")] + ([_lack(count, gpus, "GPU")] if gpus > 0 else [])
        advice = [f"--workers {fits}"] if fits else []
        share = resources.largest_share(count, gpus)
        if cpus_flag and share > 0:
            advice.append(f"--cpus-per-worker {share:g}")
        spread = f" on {len(resources.nodes)} nodes" if len(resources.nodes) > 1 else ""
        raise ConfigError(
            f"{count} workers x {' and '.join(lacks)}, {resources.where} has {resources.num_cpus:g}"
            f"{f' and {resources.num_gpus:g}' if gpus > 0 else ''}{spread}; "
            f"use {' or '.join(advice) if advice else 'a larger machine'}"
        )


def _lack(num_workers: int, each: float, unit: str) -> str:
    total = num_workers * each
    return f"{each:g} {unit} need {total:g} {unit}{'s' if total != 1 else ''}"


def worker_request(num_workers: int | None, cpus_per_worker: float | None, resources: Resources) -> WorkerRequest:
    """Return the complete request; by default one worker per GPU (else one), with an equal share of the cores each."""
    gpus = int(resources.num_gpus)
    count = num_workers or max(gpus, 1)
    gpus_per_worker = 1.0 if gpus else 0.0
    cpus = cpus_per_worker or max(1.0, float(int(resources.largest_share(count, gpus_per_worker))))
    return WorkerRequest(num_workers=count, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker)


def check_here(num_workers: int | None, cpus_per_worker: float | None = None, *, cpus_flag: bool = False) -> None:
    """Refuse workers that do not fit on this machine; parameters as in `worker_request` and `WorkerRequest.check`.

    Raises
    ------
    ConfigError
        If they do not fit.
    """
    machine = local_resources()
    worker_request(num_workers, cpus_per_worker, machine).check(machine, cpus_flag=cpus_flag)


@contextmanager
def connected(address: str | None = None) -> Iterator[Resources]:
    """Connect to Ray for the duration of the block, and yield the resources of its nodes.

    Parameters
    ----------
    address
        As in `cluster_address`: a cluster's address, or None for one that is started on this machine, bound to
        loopback, and stopped at the end. If this process is already connected to Ray, that connection is used.

    Raises
    ------
    ConfigError
        If there is no cluster at the address, or Ray was imported before it could be told to use loopback only.
    RayStartError
        If Ray cannot be started on this machine.
    """
    address = cluster_address(address)
    is_connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if not address and "ray" in sys.modules and not is_connected and _LOOPBACK not in os.environ:
        raise ConfigError(
            f"ray was imported before cohortseg could tell it to listen on loopback only; set {_LOOPBACK}=0, or import "
            "ray later"
        )
    if address and not is_connected:
        require_answer(address)  # before ray is imported, which takes seconds
    for name, value in {**_EVERYWHERE, **({} if address else _LOCAL)}.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if is_connected:
        yield connected_resources()
        return
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(named).resolve())
    try:
        # Ray's workers import from the working directory of the process that connects before their own packages: use
        # one in which no user has files named like a module.
        with _own_sigterm(), chdir("/"):
            _init(ray, address)
    except BaseException:
        ray.shutdown()
        if not address:
            _kill_ray_below(Path(ray.__file__).parent)  # Ray itself may not know yet what it was starting
        raise
    with _messages_logged():
        try:
            yield connected_resources("the cluster" if address else "this machine")
        finally:
            workers = [] if address else _workers()
            ray.shutdown()
            _end(workers)


@contextmanager
def _messages_logged() -> Iterator[None]:
    """Log what Ray tells of lost nodes and actors within the block, for those who ask for details.

    Ray prints it on stdout, which belongs to results, and ``log_to_driver=False`` does not keep it from that.
    """
    from ray._private import worker

    def log(data: dict[str, Any], ignore_prefix: bool) -> None:
        _log.debug("Ray: %s", one_line("\n".join(data["lines"])))

    printed, worker.print_to_stdstream = worker.print_to_stdstream, log
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put the handler of SIGTERM back that Ray replaces within the block: its own would end the program in its way."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:  # of Ray's handler
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _workers() -> list[psutil.Process]:
    """Return Ray's workers that this process, or one below it, has started."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            if "".join(process.cmdline()).startswith("ray::"):
                workers.append(process)
    return workers


def _kill_ray_below(package: Path) -> None:
    """Kill the processes that Ray, whose package lies there, has started from this one, and those that they started."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended
            if any(argument.startswith(str(package)) for argument in child.cmdline()):
                child.suspend()  # so it begins no more
                for process in (*child.children(recursive=True), child):
                    process.kill()


def _end(processes: list[psutil.Process]) -> None:
    """See to it that processes end: now and then a worker waits for ever on its way out, and outlives its cluster."""
    _, left = psutil.wait_procs(processes, timeout=_EXIT_S)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with suppress(psutil.Error):
                end(process)
        _, left = psutil.wait_procs(left, timeout=_EXIT_S)


@contextmanager
def cluster_with_room(
    address: str | None, num_workers: int | None, cpus_per_worker: float | None = None, *, cpus_flag: bool = False
) -> Iterator[None]:
    """Connect to a cluster, if one is used, for the duration of the block, and refuse workers that do not fit there.

    This comes before long work: the cluster may not answer, or have too little room. Parameters are as in `connected`,
    `worker_request` and `WorkerRequest.check`.

    Raises
    ------
    ConfigError
        If no cluster answers, or the workers do not fit.
    """
    if cluster_address(address) is None:
        yield
        return
    with connected(address) as resources:
        worker_request(num_workers, cpus_per_worker, resources).check(resources, cpus_flag=cpus_flag)
        yield


def connected_resources(where: str = "the cluster") -> Resources:
    """Return the resources of the nodes that Ray now considers alive; only within `connected`."""
    import ray

    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return Resources(tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in nodes), where)


def head_answers() -> bool:
    """Return whether the head node of the cluster accepts connections; only within `connected`."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_S):
            return True
    except OSError:
        return False


def require_answer(address: str | None) -> None:
    """Refuse an invalid address, or one at which nothing accepts connections: Ray itself would wait for minutes.

    Raises
    ------
    ConfigError
        If the address is one of these.
    """
    given = cluster_address(address)
    if given is None or given == _RUNNING_HERE:
        return
    host, _, port = given.rpartition(":")
    bare_ipv6 = ":" in host and not host.startswith("[")
    if not host or not port.isdecimal() or "/" in host or bare_ipv6:
        raise ConfigError(f"{given}: no address of a Ray cluster; give HOST:PORT of its head node (6379 unless set)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(f"no Ray cluster answers at {host}:{port} ({error}); check the address") from error


def last_line(message: str) -> str:
    """Return the last line of a message of Ray's, which names the cause, without the codes that colour it."""
    return _COLOUR.sub("", message).strip().rpartition("\n")[2].strip()


def one_line(message: str) -> str:
    """Return a message of Ray's on one line: of a traceback the last, which names the cause."""
    return last_line(message) if _TRACEBACK.search(message) else " ".join(_COLOUR.sub("", message).split())


def advice(cause: str, otherwise: str) -> str:
    """Return what to do about a cause; ``otherwise`` is for those that are not known."""
    return next((f"{known}, and then {otherwise}" for part, known in _ADVICE.items() if part in cause), otherwise)


@contextmanager
def followed(follow: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a function in a thread beside the block; at the end of the block, set the event it takes and join it."""
    over = threading.Event()
    thread = threading.Thread(target=follow, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tell_of_wait(address: str, over: threading.Event) -> None:
    if not over.wait(_ANSWER_S):
        _log.warning("waiting for Ray at %s, where connections are taken, but no answer of Ray's has come yet", address)


def _token_path() -> Path:
    """Return the path of the token that Ray's processes share."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path("~/.ray/auth_token").expanduser())


def _init(ray: "ModuleType", address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is not None:
        try:
            with followed(partial(_tell_of_wait, address)):
                ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            said = " ".join(str(error).split())
            if "ersion mismatch" in said:
                raise ConfigError(f"the Ray cluster at {address} cannot be used from here: {said}") from error
            raise ConfigError(
                f"no Ray cluster answers at {address} ({said}); run this on a node of that cluster, check the address, "
                "and set RAY_AUTH_MODE=token if the cluster asks for Ray's token (it does where it was started beside "
                "a ~/.ray/auth_token, which any local run leaves)"
            ) from error
        return
    ((num_cpus, num_gpus),) = local_resources().nodes
    try:
        token = _token_path()
        is_ours = not token.exists()
        ray.init(
            address="local",
            num_cpus=int(num_cpus),
            num_gpus=int(num_gpus),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        if is_ours:  # Ray leaves it readable by every user of the machine, whom it should keep out
            with suppress(OSError):
                token.chmod(0o600)
    except Exception as error:  # Ray raises a bare Exception if its processes do not come up
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise RayStartError(
            f"Ray cannot be started on this machine: {what}; it writes into the home folder (or where "
            "RAY_AUTH_TOKEN_PATH says) and into TMPDIR (or RAY_TMPDIR), which must be a short path in ASCII"
        ) from error

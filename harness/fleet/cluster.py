# SPDX-License-Identifier: GPL-2.0-only
"""Connect to a fleet: a scheduler that runs, workers of our own on this host, or a cluster from a file."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.base import itself, paths, process, yamlfile
from harness.base.errors import HostError, InfraError, UsageError
from harness.base.output import tell
from harness.fleet.address import FleetAddress, check_encrypted, is_loopback, unencrypted
from harness.fleet.keys import security
from harness.fleet.supervisor import Slot
from harness.lab.units import UNIT_SECONDS

CONNECT_SECONDS = 30.0
"""How long a scheduler may take to answer."""

LOG_DIRECTORY = "fleet"
"""The directory of a run with what the processes print that it starts."""

STORE_LOG = "store.log"
CLUSTER_LOG = "cluster.log"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetWish:
    """A fleet as it was asked for."""

    address: FleetAddress
    text: str
    """The address as it was given."""
    keys: Path | None = None
    """The directory with the fleet's certificates."""
    insecure: bool = False

    @property
    def warning(self) -> str:
        """What to say first of an unencrypted connection; empty if there is nothing.  Raises UsageError."""
        if not self.address.scheduler:
            return ""
        return check_encrypted("--fleet", self.address.scheduler, insecure=self.insecure, keys=self.keys)


def require_distributed() -> None:
    """Raise HostError when Dask's distributed is not installed."""
    try:
        importlib.import_module("distributed")
    except ImportError as error:
        hint = "pip install 'vfio-harness[fleet]'"
        raise HostError("a fleet needs Dask's distributed, which is not installed", hint=hint) from error
    # It prints tracebacks of what we handle, from loggers with levels of their own.
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _check_keys(wish: FleetWish) -> None:
    """Refuse certificates where nothing is encrypted."""
    address = wish.address
    if wish.keys is not None and address.file is None and not address.scheduler.startswith("tls:"):
        hint = "leave them out, or give tls:// if the scheduler has certificates"
        raise UsageError(f"--fleet {wish.text} is not encrypted: --fleet-keys are not used", hint=hint)


def check(wish: FleetWish) -> str:
    """Refuse a fleet that cannot be reached, before anything slow begins; return the warning to print first.

    Raises UsageError for an address, certificates and files that are wrong, InfraError when nobody answers.
    """
    require_distributed()
    _check_keys(wish)
    warning, secure = wish.warning, security(wish.keys)
    if wish.address.file is not None:
        _read_cluster(wish.address.file)
    elif wish.address.scheduler:
        connect(wish.address.scheduler, secure).close()
    return warning


@contextlib.contextmanager
def connector(wish: FleetWish, run_dir: Path, *, builds: bool = False) -> Iterator[Callable[[], Any]]:
    """Yield what makes a distributed.Client of the fleet of *wish*; ends what was started for it.

    With *builds*, the workers of `local:N` build kernels, too.

    Raises UsageError for a file that is wrong and for certificates that do not fit, InfraError when nobody
    answers.
    """
    require_distributed()
    import dask
    import distributed

    from harness.fleet.enlist import Enlist
    from harness.fleet.link import UNIT

    address, secure = wish.address, security(wish.keys)
    with contextlib.ExitStack() as stack:
        if address.scheduler:
            yield lambda: connect(address.scheduler, secure)
            return
        # Until Dask has seen how long units take, it would sooner have one worker do all than move a kernel.
        dask.config.set({"distributed.scheduler.default-task-durations": {UNIT: f"{UNIT_SECONDS:.0f}s"}})
        if address.local:
            cluster = distributed.LocalCluster(
                n_workers=0,
                processes=False,
                protocol="tcp",
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            )
            stack.callback(cluster.close, timeout=CONNECT_SECONDS)
            for number in range(1, address.local + 1):
                stack.enter_context(
                    _local_worker(f"local-{number}", cluster.scheduler_address, run_dir, builds=builds)
                )
        else:
            assert address.file is not None
            cluster, workers = _cluster_of(address.file, secure, run_dir / LOG_DIRECTORY / CLUSTER_LOG)
            stack.callback(cluster.close)
            if not (at := str(cluster.scheduler_address)).startswith("tls:") and not is_loopback(at):
                if not wish.insecure:
                    hint = "give --fleet-keys DIR; on a network that you trust: --insecure"
                    raise UsageError(
                        f"--fleet {address.file}: its scheduler {at} is not encrypted", hint=hint
                    )
                tell(unencrypted(at))
            cluster.scale(workers)
            with contextlib.closing(connect(cluster, secure)) as client:
                # Its workers are Dask's own, not those of `vfio-harness worker`.
                client.register_plugin(Enlist())
        yield lambda: connect(cluster, secure)


@contextlib.contextmanager
def store_process(address: str, wish: FleetWish, run: str, run_dir: Path) -> Iterator[Callable[[], object]]:
    """Have a process give away what this host's store has for *run*, as a worker of the fleet.

    Yields what starts it again if it has died.
    """
    keys = ["--keys", str(wish.keys.absolute())] if wish.keys is not None else []
    name = f"store-{run}"
    with (run_dir / LOG_DIRECTORY / STORE_LOG).open("ab") as log:
        slot = Slot([address, name, "--store", run, *keys], name, log)
        slot.look()
        try:
            yield slot.look
        finally:
            slot.stop()


def connect(address: Any, secure: Any) -> Any:
    """Return a Client of the scheduler at *address*, or of a cluster.  Raises InfraError if none answers."""
    import distributed

    try:
        return distributed.Client(address, timeout=CONNECT_SECONDS, security=secure, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise no_scheduler(address, error) from error


def no_scheduler(address: Any, error: BaseException) -> InfraError:
    """Return the error of a scheduler that cannot be reached because of *error*."""
    chain = tuple(_chain(error))
    if any(isinstance(part, ssl.SSLError) for part in chain):
        return InfraError(
            f"no TLS connection to the scheduler at {address}: the certificates do not match",
            hint="every host of a fleet needs the same ca.pem, fleet.pem and fleet-key.pem",
        )
    if isinstance(error, RuntimeError):
        return InfraError(f"the scheduler at {address} does not take this worker: {chain[-1]}")
    return InfraError(
        f"no scheduler answers at {address} (tried for up to {CONNECT_SECONDS:.0f} s)",
        hint="start one: dask scheduler; is its port open, and is it tcp:// or tls://?",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _local_worker(name: str, address: str, run_dir: Path, *, builds: bool) -> Iterator[None]:
    """Run a worker on this host with a HOME and a cache of its own, which later runs find again."""
    place = paths.cache_dir() / "fleet" / name
    home, log = place / "home", run_dir / LOG_DIRECTORY / f"{name}.log"
    try:
        home.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError as error:
        raise HostError(f"cannot start worker {name}: {error.filename}: {error.strerror}") from error
    own = {"HOME": str(home), "VFIO_HARNESS_CACHE": str(place / "cache"), "XDG_CACHE_HOME": str(home)}
    # In a run the store's process builds: with the source and the objects of earlier builds.
    words = ["worker", address, "--name", name, "--vms", "1", *([] if builds else ["--no-builds"])]
    with (
        file,
        process.spawn(
            itself.argv(words), env={**itself.env(), **own}, stdout=file, stderr=file, whole_group=True
        ),
    ):
        yield


def _read_cluster(path: Path) -> tuple[Any, dict[str, Any], int]:
    """Return the class of clusters that the file *path* names, its arguments and the number of workers."""
    from distributed.deploy.cluster import Cluster

    section = yamlfile.load(path)
    named, workers = section.text("class"), section.number("workers", 1)
    arguments = section.mapping("arguments")
    section.done()
    module, _, name = named.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "such as dask_jobqueue.SLURMCluster; is its package installed?"
        raise UsageError(f"{path}: there is no class {named!r}: {error}", hint=hint) from error
    if not isinstance(found, type) or not issubclass(found, Cluster):
        raise UsageError(f"{path}: {named} is no class of Dask clusters", hint="dask_jobqueue.SLURMCluster")
    return found, arguments, workers


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Have processes that are started print into *log*: tracebacks of what we say in one sentence."""
    with log.open("ab") as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _cluster_of(path: Path, secure: Any, log: Path) -> tuple[Any, int]:
    """Return the cluster that the file *path* describes, and how many workers it asks for."""
    found, arguments, workers = _read_cluster(path)
    named = found.__name__
    try:
        with _stderr_to(log):
            cluster = found(**arguments, **({"security": secure} if secure is not None else {}))
    except TypeError as error:
        raise UsageError(f"{path}: {named}: {error}", hint="arguments are those of the class") from error
    except Exception as error:
        message = f"{path}: {named} cannot be started: {error}"
        raise InfraError(message, hint=f"are its arguments right? see {log}") from error
    return cluster, workers

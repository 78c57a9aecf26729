# SPDX-License-Identifier: GPL-2.0-only
"""`python -m harness.fleet ADDRESS NAME`: one Dask worker, which runs one VM at a time.

`vfio-harness worker` starts these, and starts another one when one ends.  With `--store RUN` it runs no VM,
but gives away what this host's store has for that run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from harness.base.errors import ExitCode, HarnessError
from harness.base.output import complain, tell
from harness.fleet import resources
from harness.fleet.address import listening
from harness.fleet.cargo import fleet_dir
from harness.fleet.cluster import CONNECT_SECONDS, no_scheduler, require_distributed
from harness.fleet.keys import security
from harness.fleet.supervisor import LOST_SCHEDULER, TROUBLED
from harness.fleet.tasks import crew

_STORE_THREADS = 2
"""A kernel is built while another one is packed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Work until the scheduler goes away or SIGTERM; return the exit code if that cannot begin."""
    parser = argparse.ArgumentParser(prog="python -m harness.fleet", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("name")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--store", metavar="RUN", default="")
    parser.add_argument("--no-builds", action="store_true")
    asked = parser.parse_args(argv)
    try:
        require_distributed()
        asyncio.run(_work(asked))
    except HarnessError as error:
        complain(error.message, error.hint)
        return error.exit_code


def _options(asked: argparse.Namespace) -> dict[str, Any]:
    if asked.store:
        return {"nthreads": _STORE_THREADS, "resources": resources.of_store(asked.store)}
    offered = resources.of_worker(crew.prove(), builds=not asked.no_builds)
    return {"nthreads": 1, "executor": ThreadPoolExecutor(1, "task"), "resources": offered}


async def _work(asked: argparse.Namespace) -> NoReturn:
    import distributed

    address, name = asked.address, asked.name
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    worker = distributed.Worker(
        address,
        name=name,
        memory_limit=0,
        security=security(asked.keys),
        local_directory=str(fleet_dir() / "dask"),
        death_timeout=CONNECT_SECONDS,
        dashboard=False,
        **listening(address),
        **_options(asked),
    )
    crew.enlist(worker)
    try:
        await worker
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        if "name taken" in str(error):
            complain(f"the fleet has a worker {name} already", "give --name")
            _end(ExitCode.USAGE)
        raise no_scheduler(address, error) from error
    tell(f"worker {name}: connected to {address}")
    finished, ended = asyncio.ensure_future(worker.finished()), asyncio.ensure_future(ending.wait())
    await asyncio.wait((finished, ended), return_when=asyncio.FIRST_COMPLETED)
    if ending.is_set():
        crew.leave_undone()
        await worker.close(executor_wait=False, reason="asked to end")
        _end(ExitCode.GOOD)
    if crew.trouble:
        complain(f"worker {name} left the fleet: {crew.trouble}", "see: vfio-harness doctor --worker")
        _end(TROUBLED)
    tell(f"worker {name}: the connection to {address} was lost")
    _end(LOST_SCHEDULER)


def _end(code: int) -> NoReturn:
    """Exit at once: VMs end with this process, and Dask would wait for the thread of the unit."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())

# SPDX-License-Identifier: GPL-2.0-only
"""Find the source lines of a run's splats: of a new kind at once, of all others when the tests are over."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from harness.base.deadline import Deadline
from harness.base.errors import HarnessError
from harness.base.output import tell
from harness.base.places import CodeAddress
from harness.kernel.lines import find_places
from harness.kernel.plan import KernelPlan
from harness.kernel.ready import ReadyKernel
from harness.machine.addresses import addresses_in
from harness.results import Run, RunState
from harness.results.fingerprint import fingerprint
from harness.results.store import RunStore, count_splats, load
from harness.session.pipeline import PlannedRun

BUDGET_SECONDS = 120.0
"""Timeout for all splats of a run; an object takes some two seconds, and a splat has code of 5 to 20."""


_POLL_SECONDS = 2.0
"""How often the results are asked for new splats, which takes a millisecond."""


@contextlib.contextmanager
def telling_splats(planned: PlannedRun) -> Iterator[None]:
    """While the with block runs, decode and print each new kind of splat soon after it was recorded."""
    stop = threading.Event()
    directory = planned.checked.run_dir

    def deadline() -> Deadline:
        # At once when the tests are over: what is left then has a deadline of its own.
        return Deadline(time.monotonic() + BUDGET_SECONDS, lambda: -BUDGET_SECONDS if stop.is_set() else 0.0)

    def watch() -> None:
        known, told = 0, set[str]()
        while not stop.wait(_POLL_SECONDS):
            with contextlib.suppress(HarnessError):
                if (count := count_splats(directory)) != known:
                    known = count
                    _tell_new(planned, told, deadline())

    thread = threading.Thread(target=watch, name="splats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _tell_new(planned: PlannedRun, told: set[str], deadline: Deadline) -> None:
    """Print the splats whose fingerprints are not in *told*, and add these."""
    from harness.report.splats import essence_of

    run = load(planned.checked.run_dir)
    prints = ((fingerprint(result.splat), result) for result in run.results if result.splat)
    new = {name: result for name, result in prints if name not in told}
    if new:
        told |= set(new)
        locate_splats(planned, dataclasses.replace(run, results=tuple(new.values())), deadline)
        run = load(planned.checked.run_dir)
    for result in new.values():
        lines = [f"{result.address} [{result.job}]:", *essence_of(run, result)]
        tell("\n" + "\n  | ".join(lines))


def locate_splats(planned: PlannedRun, run: Run, deadline: Deadline | None = None) -> bool:
    """Record the source lines of the addresses in the splats of *run*; return whether any are new.

    Without a *deadline* the tests are over: there are BUDGET_SECONDS, and what had no lines so far is tried
    again, as when another process was building from the source.  A run without splats costs nothing.  An
    error is printed and changes no result.
    """
    wanted = _wanted(run, again=deadline is None)
    if not wanted or run.state is RunState.OVERTAKEN:
        return False
    plans = _plans(planned, run)
    deadline = deadline or Deadline.after(BUDGET_SECONDS)
    try:
        places = {
            kernel: find_places(plans[kernel], addresses, deadline)
            for kernel, addresses in wanted.items()
            if kernel in plans
        }
        with RunStore.open(Path(run.directory)) as store:
            store.locate(places)
    except HarnessError as error:
        tell(f"the splats have no source lines: {error}")
        return False
    return True


def _wanted(run: Run, *, again: bool) -> dict[str, list[CodeAddress]]:
    """Return the addresses to find by JobRecord.kernel; with *again* also those that were not found."""
    kernels = {job.name: job.kernel for job in run.jobs}
    wanted: dict[str, dict[str, CodeAddress]] = defaultdict(dict)
    for splat, job in dict.fromkeys((one.splat, one.job) for one in run.results if one.splat):
        known = run.places.get(kernels.get(job, ""), {})
        for address in addresses_in(splat):
            place = known.get(address.text)
            if place is None or (again and not place.lines):
                wanted[kernels.get(job, "")].setdefault(address.text, address)
    return {kernel: list(found.values()) for kernel, found in wanted.items()}


def _plans(planned: PlannedRun, run: Run) -> dict[str, KernelPlan | ReadyKernel]:
    """Return how the kernels of *run* were built, by JobRecord.kernel."""
    kernels = {job.name: job.kernel for job in run.jobs}
    found = {}
    for wish, job in planned.jobs.items():
        plan = planned.kernels[wish.kernel].plan
        if plan is not None and job.name in kernels:
            found[kernels[job.name]] = plan
    return found

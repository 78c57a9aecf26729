# SPDX-License-Identifier: GPL-2.0-only
"""Run a plan on a fleet in place of pytest: its results come into the same run, one by one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from harness.base.cause import Cause
from harness.base.errors import HarnessError, InfraError
from harness.base.files import write_atomic
from harness.base.outcome import Outcome
from harness.base.output import tell
from harness.base.words import count_of
from harness.fleet.client import FleetClient
from harness.fleet.cluster import LOG_DIRECTORY, FleetWish, connector, store_process
from harness.fleet.evidence import take_in
from harness.fleet.link import FleetJob, Link
from harness.fleet.messages import Account, Said
from harness.fleet.resources import for_unit
from harness.lab.abilities import Abilities, resources_of
from harness.lab.artefacts import BuildOrder, artefacts_of, provide_disks
from harness.lab.ledger import Ledger
from harness.lab.units import refused, units_of
from harness.plan import Job, Plan
from harness.plugin.engine import Ended
from harness.results import Run, RunState, reach_verdict
from harness.results.store import RunStore
from harness.suites.catalogue import to_do
from harness.suites.model import Work

Provided = Callable[[str, HarnessError | None], object]

EVIDENCE_MIB = 512
"""The most that is kept of VM directories of a run, beside results and logs of the cases."""


_WORKERS, _BETWEEN = "workers", " | "

_EVIDENCE_FILE = "evidence"
"""The file among the logs that says how many bytes of evidence all parts of the run have taken in."""


def run_on_fleet(plan: Plan, wish: FleetWish, orders: Mapping[str, BuildOrder], provided: Provided) -> Ended:
    """Run what is to be done of *plan* on the fleet of *wish*; return how that ended.

    *orders* says how the kernels with these digests are built that the store does not have; *provided* is
    called with the digest of each that the fleet has built, and with the error if it could not.

    Raises UsageError and InfraError when there is no fleet, InfraError when it went away or when results
    cannot be stored: what is finished is in the run.
    """
    run_dir = Path(plan.run_dir)
    provide_disks(plan.jobs)
    (run_dir / LOG_DIRECTORY).mkdir(exist_ok=True)
    with RunStore.open(run_dir) as store, contextlib.ExitStack() as stack:
        link = Link(stack.enter_context(connector(wish, run_dir)), plan.run_id)
        stack.callback(link.close)
        if link.dashboard and not wish.address.local:
            tell(f"fleet: {wish.text}; Dask's dashboard: {link.dashboard}")
        before = store.read()
        recorder = _Recorder(plan, store)
        store.add(*refused(plan))
        client = FleetClient(
            link,
            recorder,
            units_of(plan, wish.address.local or 1),
            {job.name: _fleet_job(plan, job, orders.get(job.kernel.digest)) for job in plan.jobs},
            until=plan.until,
            tell=tell,
            provided=provided,
            keep_up=stack.enter_context(store_process(link.address, wish, plan.run_id, run_dir)),
            waits=wish.address.file is not None,
            log=str(run_dir / LOG_DIRECTORY),
        )
        ended = Ended.RAN
        try:
            client.run()
        except KeyboardInterrupt:
            link.abandon()
            ended = Ended.INTERRUPTED
        finally:
            store.amend(_accel(plan, client.joined.values(), before), _workers(client.joined, before))
            _charge(store, client.build_cpu_seconds)
        recorder.close(interrupted=ended is Ended.INTERRUPTED)
        return ended


def _fleet_job(plan: Plan, job: Job, order: BuildOrder | None) -> FleetJob:
    return FleetJob(
        plan=_text_of(plan, job), needs=for_unit(resources_of(job)), artefacts=artefacts_of(job), order=order
    )


def _accel(plan: Plan, hosts: Iterable[Abilities], before: Run) -> str:
    """Return the accelerators that the workers had, and the parts of the run *before*.

    With both, durations are not compared with others.
    """
    arches = {job.arch for job in plan.jobs}
    asked = {job.accel for job in plan.jobs} - {"auto"}
    found = (one.emulators[arch].accel for one in hosts for arch in sorted(arches & set(one.emulators)))
    # Until a VM has run, the run has what its client would use.
    earlier = before.info.inputs.accel.split("; ") if any(one.vm_dir for one in before.results) else ()
    return "; ".join(sorted({*(asked or found), *filter(None, earlier)}))


def _workers(joined: Mapping[str, Abilities], before: Run) -> dict[str, str]:
    """Return who ran it, for Inputs.extra; the names are in those of VM directories."""
    earlier = before.info.inputs.extra.get(_WORKERS, "").split(_BETWEEN)
    named = {one.partition(": ")[0]: one for one in earlier if one}
    named |= {name: f"{name}: {host.summary}" for name, host in joined.items()}
    return {_WORKERS: _BETWEEN.join(named[name] for name in sorted(named))}


def _charge(store: RunStore, seconds: float) -> None:
    """Add *seconds* to the CPU time of the run's builds."""
    if seconds:
        run = store.read()
        store.account({**run.spent, "builds": run.spent.get("builds", 0.0) + seconds}, run.tested)


def _text_of(plan: Plan, job: Job) -> str:
    """Return the file of *plan* with *job* alone; what else is to be done is for the client."""
    rerun = {name: command for name, command in plan.reruns.items() if name == job.name}
    alone = dataclasses.replace(plan, jobs=(job,), only=(), done=(), seconds={}, reruns=rerun, until=None)
    with tempfile.TemporaryDirectory(prefix="vfio-harness-plan-") as directory:
        path = Path(directory) / "plan.json"
        alone.save(path)
        return json.dumps(json.loads(path.read_text(encoding="utf-8")))


class _Recorder:
    """Writes what workers say into the run, each piece of work once."""

    def __init__(self, plan: Plan, store: RunStore) -> None:
        work = to_do(plan)
        self._work: Mapping[str, Work] = {one.key: one for one in work}
        self._store = store
        self._ledger = Ledger(work, Path(plan.run_dir))
        self._left = {one.key for one in work if one.refusal is None}
        self._taken = store.directory / LOG_DIRECTORY / _EVIDENCE_FILE
        self._evidence = int(self._taken.read_text(encoding="ascii")) if self._taken.is_file() else 0
        self._dropped = 0
        store.add(*self._ledger.leftovers())
        self._ledger.expect(one for one in work if one.refusal is None)

    def is_reported(self, key: str) -> bool:
        return key not in self._left

    def keep(self, said: Said) -> None:
        work = self._work.get(said.key)
        if not said.key:
            # What a kernel printed outside work.
            self._store.add(*said.results)
        elif work is None or self.is_reported(said.key):
            # Also from a worker of an earlier session, of work that has its results.
            return
        elif not said.final:
            self._ledger.keep(work, said.results)
        else:
            self._store.add(*self._ledger.with_kept(work, said.results))
            self._done(work)

    def give_up(self, key: str, reason: str, cause: Cause, outcome: Outcome = Outcome.NOT_RUN) -> None:
        if not self.is_reported(key):
            work = self._work[key]
            self._store.add(*self._ledger.lost(work, reason, cause, outcome))
            self._done(work)

    def take_in(self, account: Account) -> None:
        self._store.add(*account.late)
        self._dropped += account.dropped
        if self._evidence + len(account.evidence) > EVIDENCE_MIB << 20:
            self._dropped += 1
            return
        self._evidence += len(account.evidence)
        try:
            take_in(account.evidence, self._store.directory, below="vm")
            if account.evidence:
                self._taken.parent.mkdir(exist_ok=True)
                write_atomic(self._taken, str(self._evidence))
        except InfraError as error:
            self._dropped += 1
            tell(f"fleet: files of VM directories from {account.worker} are refused: {error}")
        except OSError as error:
            raise InfraError(f"cannot write to {self._store.directory}: {error.strerror}") from error

    def close(self, *, interrupted: bool) -> None:
        """Account for what did not run, and close the run."""
        if self._dropped:
            files = count_of(self._dropped, "file")
            tell(f"fleet: {files} of VM directories stayed on the workers, which keep them for three days")
        self._store.add(*self._ledger.unreported(interrupted=interrupted))
        state = RunState.INTERRUPTED if interrupted else RunState.FINISHED
        verdict = reach_verdict(dataclasses.replace(self._store.read(), state=state)).verdict
        self._store.finish(verdict, state)

    def _done(self, work: Work) -> None:
        self._ledger.reported(work)
        self._left.discard(work.key)

# SPDX-License-Identifier: GPL-2.0-only
"""Make the Report of a bisect: read the commits from git, and the evidence for both sides from their runs."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

from harness.base.errors import HarnessError
from harness.bisect import git
from harness.bisect.git import CommitFacts, Position
from harness.bisect.report import Evidence, Report
from harness.bisect.state import BisectState, GitVerdict, Step
from harness.bisect.verdict import describe_result
from harness.results import KERNEL_SUITE, Run
from harness.results.store import load
from harness.session.reporting import told_splat
from harness.suites.registry import declared_cases

_MACHINE_OPTIONS = ("-machine", "-accel", "-cpu", "-smp", "-m", "-append", "-device")
_OWN_DEVICES = re.compile(r"netdev=ssh|virtio-serial|virtserialport|pvpanic|drive=")
"""The harness's own devices, which are no part of the topology."""

_PROMISES = 3
"""How many cases a report describes."""

_SYMBOLS = re.compile(r"CONFIG_(?:VFIO|IOMMU|IOMMUFD)\w*=.*")


def make_report(state: BisectState, position: Position, bisect_log: str) -> Report:
    """Return the report of a bisect that ended at *position*."""
    repository = Path(state.request.repository)
    found = git.read_commit(repository, position.found) if position.found else None
    old, new = last_old(state, position), first_new(state, position) or state.new_end
    before, after = (_evidence(state, step) if step is not None else None for step in (old, new))
    failing, passing = (before, after) if state.rules.find_fix else (after, before)
    run = _run_of(state, new) or _run_of(state, old)
    config = next(iter(sorted(Path(run.directory).glob("*.config"))), None) if run else None
    people, lists = git.recipients(repository, found.commit) if found else ((), ())
    if lists and not state.rules.find_fix:
        lists = (*lists, "regressions@lists.linux.dev")
    return Report(
        state=state,
        found=found,
        suspects=tuple(git.read_commit(repository, commit) for commit in position.suspects),
        parent_tested=found is not None and old is not None and _is_next(state, old, found),
        failing=failing,
        passing=passing,
        symbols=_symbols(config) if config else (),
        config=str(config) if config else "",
        host=f"QEMU {run.info.inputs.qemu}, {run.info.inputs.accel.upper()}" if run else "",
        to=tuple(dict.fromkeys((found.author, *people))) if found and people else (),
        cc=lists,
        promises=_promises(state),
        user=git.user_of(repository),
        bisect_log=bisect_log,
    )


def last_old(state: BisectState, position: Position) -> Step | None:
    """Return the old commit closest to the first new one, or to the first suspect."""
    if not position.found and not position.suspects:
        return state.old_end
    repository, new = Path(state.request.repository), position.found or position.suspects[0]
    rules = state.rules
    old = [s for s in state.tested if rules.verdict(s.status) is GitVerdict.OLD or s is state.old_end]
    ahead = [(far, step) for step in old if (far := git.distance(repository, step.commit, new))]
    return min(ahead, key=lambda pair: pair[0])[1] if ahead else None


def first_new(state: BisectState, position: Position) -> Step | None:
    """Return the step of the first new commit; None when that is not known."""
    return next((step for step in state.tested if step.commit == position.found), None)


def _promises(state: BisectState) -> tuple[str, ...]:
    """Return what the first cases promise, and the kernel source that they cite."""
    cases = {case.address: case for case in declared_cases()}
    return tuple(
        f"{address}: {cases[address].promise} ({cases[address].cites})"
        for address in state.cases[:_PROMISES]
        if address in cases
    )


def _is_next(state: BisectState, old: Step, found: CommitFacts) -> bool:
    """Whether no commit between *old* and *found* touches the paths."""
    return git.count_commits(state.request, old.commit, found.commit) <= 1


def _run_of(state: BisectState, step: Step | None) -> Run | None:
    """Return the run that decided *step*; None if it has been removed."""
    if step is not None and step.same_as:
        step = next((twin for twin in state.tested if twin.commit == step.same_as), step)
    typical = step.typical if step else None
    if typical is None or not typical.run_dir:
        return None
    try:
        return load(Path(typical.run_dir))
    except HarnessError:
        return None  # removed in the meantime; the verdict stands


def _evidence(state: BisectState, step: Step) -> Evidence:
    run = _run_of(state, step)
    command = shlex.join(["vfio-harness", "run", *state.request.options.words(state.cases)])
    wanted = (
        [r for r in run.cases if str(r.address) in state.cases or r.address.suite == KERNEL_SUITE]
        if run
        else []
    )
    worst = max(wanted, key=lambda result: result.outcome.severity, default=None)
    if worst is None or run is None:
        return Evidence(step=step, command=command)
    return Evidence(
        step=step,
        reason=describe_result(worst),
        log=worst.log,
        splat=told_splat(run, worst),
        machine=_machine(Path(run.directory), worst.vm_dir),
        run_dir=run.directory,
        command=command,
    )


def _machine(run_dir: Path, vm_dir: str) -> tuple[str, ...]:
    """The options of QEMU that describe the machine, without the harness's own devices and disks."""
    commands = [run_dir / vm_dir / "qemu.cmd"] if vm_dir else sorted(run_dir.glob("vm/*/qemu.cmd"))
    found = next((path for path in commands if path.is_file()), None)
    if found is None:
        return ()
    words = shlex.split(found.read_text(encoding="utf-8"))
    pairs = ((option, value) for option, value in itertools.pairwise(words) if option in _MACHINE_OPTIONS)
    return tuple(shlex.join(pair) for pair in pairs if not _OWN_DEVICES.search(pair[1]))


def _symbols(config: Path) -> tuple[str, ...]:
    return tuple(line for line in config.read_text(encoding="utf-8").splitlines() if _SYMBOLS.fullmatch(line))

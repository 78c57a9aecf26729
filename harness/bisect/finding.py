# SPDX-License-Identifier: GPL-2.0-only
"""From the end of a hunt to its Finding: the culprit, what both of its sides left, how to see it again."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

from harness.bisect import gitbisect
from harness.bisect.gitbisect import CommitFacts, Position
from harness.bisect.judge import Trial
from harness.bisect.model import Mark, Step
from harness.bisect.report import Evidence, Finding
from harness.bisect.state import HuntState
from harness.errors import HarnessError
from harness.results import KERNEL_SUITE, Run, load
from harness.suites.probes import SUITE as PROBES
from harness.suites.probes import probe_cases

_MACHINE_OPTIONS = ("-machine", "-accel", "-cpu", "-smp", "-m", "-append", "-device")
_PLUMBING = re.compile(r"netdev=ssh|virtio-serial|virtserialport|pvpanic|drive=")
"""Devices that are ours."""

_TOLD = 3
"""How many cases are described."""

_SYMBOLS = re.compile(r"CONFIG_(?:VFIO|IOMMU|IOMMUFD)\w*=.*")


def last_old(state: HuntState, position: Position) -> Step | None:
    """The old commit that is nearest to the culprit, or to the first of the suspects."""
    repository, culprit = Path(state.quarry.repository), position.found or position.suspects[0]
    old = [step for step in state.tested if state.aim.mark(step.sight) is Mark.OLD or step is state.old_end]
    ahead = [(far, step) for step in old if (far := gitbisect.distance(repository, step.commit, culprit))]
    return min(ahead, key=lambda pair: pair[0])[1] if ahead else None


def first_new(state: HuntState, position: Position) -> Step | None:
    """The culprit as it was judged; None when it is not known."""
    return next((step for step in state.tested if step.commit == position.found), None)


def describe_finding(state: HuntState, position: Position, trial: Trial) -> Finding:
    """All that a report says."""
    repository = Path(state.quarry.repository)
    found = gitbisect.read_commit(repository, position.found) if position.found else None
    suspects = tuple(gitbisect.read_commit(repository, commit) for commit in position.suspects)
    old = last_old(state, position) if found or suspects else state.old_end
    new = first_new(state, position) or state.new_end
    before, after = (_evidence(state, step, trial) if step is not None else None for step in (old, new))
    failing, passing = (before, after) if state.aim.find_fix else (after, before)
    run = _run_of(state, new) or _run_of(state, old)
    config = _config_of(run)
    return Finding(
        state=state,
        found=found,
        suspects=suspects,
        parent_tested=found is not None and old is not None and _is_next(state, old, found),
        failing=failing,
        passing=passing,
        symbols=_symbols(config),
        config=str(config) if config else "",
        host=f"QEMU {run.info.inputs.qemu}, {run.info.inputs.accel.upper()}" if run else "",
        promises=_promises(state),
        user=gitbisect.user_of(repository),
    )


def _promises(state: HuntState) -> tuple[str, ...]:
    """What the hunted probes say of themselves, and the kernel source that they are about."""
    probes = {f"{PROBES}/{case.address}": case for case in probe_cases()}
    return tuple(
        f"{address}: {probes[address].promise} ({probes[address].cites})"
        for address in state.hunted[:_TOLD]
        if address in probes
    )


def _is_next(state: HuntState, old: Step, found: CommitFacts) -> bool:
    """Whether nothing lies between *old* and *found* that touches the paths."""
    return gitbisect.count_between(Path(state.quarry.repository), state.quarry, old.commit, found.commit) <= 1


def _judged_as(state: HuntState, step: Step | None) -> Step | None:
    """The step that was really judged when *step* borrowed its verdict."""
    if step is None or not step.same_as:
        return step
    return next((twin for twin in state.tested if twin.commit == step.same_as), step)


def _run_of(state: HuntState, step: Step | None) -> Run | None:
    judged = _judged_as(state, step)
    seen = judged.telling() if judged else None
    if seen is None or not seen.run_dir:
        return None
    try:
        return load(Path(seen.run_dir))
    except HarnessError:
        return None  # somebody cleaned up; the verdict stands


def _evidence(state: HuntState, step: Step, trial: Trial) -> Evidence:
    run = _run_of(state, step)
    wanted = (
        [r for r in run.cases if str(r.address) in state.hunted or r.address.suite == KERNEL_SUITE]
        if run
        else []
    )
    worst = max(wanted, key=lambda result: result.outcome.severity, default=None)
    rerun = shlex.join(["vfio-harness", "run", *trial.options(state.hunted), "--tree", ""]).removesuffix("''")
    if worst is None or run is None:
        return Evidence(step=step, rerun=rerun)
    reason = f"{worst.address} {worst.outcome.value}" + (f": {worst.reason}" if worst.reason else "")
    return Evidence(
        step=step,
        reason=reason,
        log=worst.log,
        splat=worst.splat,
        machine=_machine(Path(run.directory), worst.vm_dir),
        run_dir=run.directory,
        rerun=rerun,
    )


def _machine(run_dir: Path, vm_dir: str) -> tuple[str, ...]:
    """What of QEMU's command line makes the machine, an option a line; ways in and disks are left out."""
    commands = [run_dir / vm_dir / "qemu.cmd"] if vm_dir else sorted(run_dir.glob("vm/*/qemu.cmd"))
    found = next((path for path in commands if path.is_file()), None)
    if found is None:
        return ()
    words = shlex.split(found.read_text(encoding="utf-8"))
    pairs = ((option, value) for option, value in itertools.pairwise(words) if option in _MACHINE_OPTIONS)
    return tuple(shlex.join(pair) for pair in pairs if not _PLUMBING.search(pair[1]))


def _config_of(run: Run | None) -> Path | None:
    return next(iter(sorted(Path(run.directory).glob("*.config"))), None) if run else None


def _symbols(config: Path | None) -> tuple[str, ...]:
    if config is None:
        return ()
    return tuple(line for line in config.read_text(encoding="utf-8").splitlines() if _SYMBOLS.fullmatch(line))

# SPDX-License-Identifier: GPL-2.0-only
"""Make one Run of several: shards of a matrix, or the same night on several hosts."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from harness.base.errors import InfraError, UsageError
from harness.results.model import MISSING, Dump, Inputs, JobRecord, Result, Run, RunInfo, RunState
from harness.results.store import RunStore, RunSummary, new_run_id, record_dumps
from harness.results.verdict import reach_verdict

MERGED = "merged"
"""The key in Inputs.extra of the ids of the Runs that a Run was made of; the history leaves those out."""

_SHARD = "shard"


def merge(runs: Sequence[Run], root: Path, command: tuple[str, ...]) -> Run:
    """Write one Run with everything of *runs* below *root* and return it; *command* is recorded.

    Where two have results of the same case, the attempts are settled as those of one Run.  Directories of VMs
    are linked or copied.  Raises UsageError for runs that are not parts of one, InfraError when the Run
    cannot be written.
    """
    runs = sorted(runs, key=lambda run: run.info.started)
    _check(runs)
    info = _info(runs, command)
    directory = root / info.id
    with RunStore.create(directory, info) as store:
        for job in _jobs(runs):
            store.add_job(job)
        dumps: dict[str, Dump] = {}
        taken: set[str] = set()
        for run in runs:
            renamed = _take_vms(run, directory, taken)
            store.add(*(_moved(result, renamed) for result in run.results))
            store.locate(run.places)
            dumps |= {renamed[old]: _moved_dump(dump, renamed[old]) for old, dump in run.dumps.items()}
        uses = dict.fromkeys(use for run in runs for use in run.spent)
        spent = {use: sum(run.spent.get(use, 0.0) for run in runs) for use in uses}
        store.account(spent, max(run.tested for run in runs))
        is_cut = any(run.state is not RunState.FINISHED for run in runs)
        state = RunState.INTERRUPTED if is_cut else RunState.FINISHED
        verdict = reach_verdict(dataclasses.replace(store.read(), state=state)).verdict
        store.finish(verdict, state, at=max(run.finished or run.info.started for run in runs))
    if dumps:
        record_dumps(directory, dumps)
    with RunStore.open(directory) as store:
        return store.read()


def parts_of(info: RunInfo) -> list[str]:
    """Return the ids of the Runs that the Run of *info* was made of."""
    return info.inputs.extra.get(MERGED, "").split()


def in_turn(found: Iterable[RunSummary], merged: Iterable[str]) -> list[Path]:
    """Return the directories of the readable Runs *found*, oldest first.

    Without those that another one was made of, or that are among the ids *merged*.
    """
    told = [(one.info, one.directory) for one in found if one.info is not None]
    parts = {*merged, *(part for info, _ in told for part in parts_of(info))}
    told.sort(key=lambda pair: (pair[0].started, pair[1]))
    return [directory for info, directory in told if info.id not in parts]


def _check(runs: Sequence[Run]) -> None:
    """Refuse runs that are not parts of one: the report would compare what cannot be compared."""
    if len({run.info.id for run in runs}) < len(runs) or len(runs) < 2:
        raise UsageError("--merge needs two or more different runs", hint="report --merge RUN RUN...")
    _check_apart(runs)
    first = runs[0]
    for run in runs[1:]:
        for name, mine, theirs in (
            ("cases", first.info.inputs.cases, run.info.inputs.cases),
            ("matrix", first.info.inputs.extra.get("matrix"), run.info.inputs.extra.get("matrix")),
        ):
            if mine != theirs:
                raise UsageError(
                    f"runs {first.info.id} and {run.info.id} are not parts of one: their {name} differ",
                    hint=f"{first.info.id}: {mine or 'all'}; {run.info.id}: {theirs or 'all'}",
                )
    found: dict[str, tuple[JobRecord, str]] = {}
    for run in runs:
        for job in run.jobs:
            other, where = found.setdefault(job.name, (job, run.info.id))
            if job.series != other.series or (job.kernel and other.kernel and job.kernel != other.kernel):
                raise UsageError(
                    f"job {job.name} has one kernel in run {where} and another in {run.info.id}",
                    hint="merge runs of one tree",
                )


def _check_apart(runs: Sequence[Run]) -> None:
    """Refuse runs that were made of the same one: its results would be there twice."""
    holders: dict[str, str] = {}
    for run in runs:
        for part in (run.info.id, *parts_of(run.info)):
            if (holder := holders.setdefault(part, run.info.id)) != run.info.id:
                raise UsageError(
                    f"runs {holder} and {run.info.id} both have the results of run {part}",
                    hint="leave one of them out",
                )


def _info(runs: Sequence[Run], command: tuple[str, ...]) -> RunInfo:
    first, inputs = runs[0].info, runs[0].info.inputs
    every = [run.info.inputs for run in runs]
    cells = {job.cell for run in runs for job in run.jobs}
    extra: dict[str, str] = {}
    for name in dict.fromkeys(name for one in every for name in one.extra if name != _SHARD):
        extra[name] = _joined(one.extra.get(name, "") for one in every)
    extra[MERGED] = " ".join(part for run in runs for part in (run.info.id, *parts_of(run.info)))
    extra.pop(MISSING, None)
    if missing := set.intersection(*map(_other_shards, every)):
        extra[MISSING] = " ".join(sorted(missing))
    merged = dataclasses.replace(
        inputs,
        tree=_joined(one.tree for one in every),
        kernels={name: digest for one in every for name, digest in one.kernels.items()},
        qemu=_joined(one.qemu for one in every),
        accel=_joined(one.accel for one in every),
        timeout_factor=max(one.timeout_factor for one in every),
        topologies=tuple(dict.fromkeys(name for one in every for name in one.topologies)),
        suites=tuple(dict.fromkeys(name for one in every for name in one.suites)),
        narrowed=any(one.narrowed for one in every),
        compare=all(one.compare for one in every),
        elsewhere=tuple(dict.fromkeys(c for one in every for c in one.elsewhere if c not in cells)),
        extra=extra,
    )
    return dataclasses.replace(first, id=new_run_id(first.started), command=command, inputs=merged)


def _other_shards(inputs: Inputs) -> set[str]:
    """Return the shards of the matrix, such as `3/8`, that a Run with *inputs* does not have."""
    own = inputs.extra.get(_SHARD)
    if own is None:
        return set(inputs.missing_shards)
    count = int(own.partition("/")[2])
    return {f"{number}/{count}" for number in range(1, count + 1)} - {own}


def _joined(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(word for word in words if word))


def _jobs(runs: Sequence[Run]) -> tuple[JobRecord, ...]:
    """Return the jobs of *runs*, each once; one that could be carried out before one that could not."""
    found: dict[str, JobRecord] = {}
    for run in runs:
        for job in run.jobs:
            if job.name not in found or (found[job.name].problem and not job.problem):
                found[job.name] = job
    return tuple(found.values())


def _take_vms(run: Run, directory: Path, taken: set[str]) -> dict[str, str]:
    """Link the VM directories of *run* into *directory*; return the new name of each, not one of *taken*.

    Also of those that are gone.  The new names are added to *taken*.
    """
    there = {f"vm/{path.name}" for path in Path(run.directory, "vm").glob("*")}
    named = {*(result.vm_dir for result in run.results if result.vm_dir), *run.dumps}
    renamed: dict[str, str] = {}
    try:
        for old in sorted(there | named):
            name = PurePosixPath(old).name
            numbered = (f"vm/{number}-{name}" for number in itertools.count(2))
            renamed[old] = new = next(one for one in itertools.chain([old], numbered) if one not in taken)
            taken.add(new)
            if old in there:
                copied = directory / new
                shutil.copytree(Path(run.directory, old), copied, symlinks=True, copy_function=_link)
    except (OSError, shutil.Error) as error:
        raise InfraError(f"cannot copy {run.directory}/vm: {error}", hint="make room") from error
    return renamed


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        # Another file system.
        return str(shutil.copy2(source, target))
    return target


def _moved(result: Result, renamed: dict[str, str]) -> Result:
    return dataclasses.replace(result, vm_dir=renamed.get(result.vm_dir, result.vm_dir))


def _moved_dump(dump: Dump, vm_dir: str) -> Dump:
    return dataclasses.replace(dump, file=dump.file and f"{vm_dir}/{PurePosixPath(dump.file).name}")

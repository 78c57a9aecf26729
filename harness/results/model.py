# SPDX-License-Identifier: GPL-2.0-only
"""Results as values: Address, Result, JobRecord, Inputs, Run."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from harness.base.cause import Cause
from harness.base.errors import ExitCode, UsageError
from harness.base.outcome import Outcome
from harness.base.places import Place

WHOLE_PROGRAM = "(program)"
"""The case name of a result that is about a program as a whole, e.g. one that died before its first case."""

FLAKY = "FLAKY"
"""The label of a case that failed, and passed when it was retried in a fresh VM."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Address:
    """The address of a case, `suite/program/case`; stable between runs."""

    suite: str
    program: str
    case: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `suite/program/case`; further slashes belong to the case.

        Raises UsageError when a part is missing.
        """
        parts = text.split("/", 2)
        if len(parts) != 3 or not all(parts):
            raise UsageError(f"{text!r} is not a case address", hint="write suite/program/case")
        return cls(suite=parts[0], program=parts[1], case=parts[2])

    @property
    def program_path(self) -> str:
        """`suite/program`."""
        return f"{self.suite}/{self.program}"

    def __str__(self) -> str:
        return f"{self.suite}/{self.program}/{self.case}"


KERNEL_SUITE = "kernel"
"""The suite of results about a kernel as a whole."""

KCONFIG_SUITE = "kconfig"
"""The suite of results about a blocked variant, which is never built: whether Kconfig refuses it."""

BOOTS = Address(suite=KERNEL_SUITE, program="console", case="boots")
"""Whether the kernel boots; there is a result only if it did not, or not at the first try."""

QUIET = Address(suite=KERNEL_SUITE, program="console", case="is_quiet_between_cases")
"""Splats outside any case; there is a result only if there were any."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one attempt at one case."""

    address: Address
    job: str
    """The Job's name."""
    outcome: Outcome
    reason: str = ""
    """One line; the skip reason, the failed check, why the guest was lost."""
    cause: Cause | None = None
    """Why the case did not run or was cut off; nothing decides by the words of the reason."""
    stopped_by: Outcome | None = None
    """With Cause.NOT_REACHED: the outcome that ended the program before this case."""
    duration: float = 0.0
    """Seconds."""
    attempt: int = 1
    """Counts up when a case is retried after infrastructure trouble, or to confirm a failure."""
    log: str = ""
    """The end of what the case printed, and the console while it ran."""
    splat: str = ""
    """The kernel's splat, whole."""
    vm_dir: str = ""
    """The VM's directory, relative to the run directory; empty when no VM was used."""
    rerun: str = ""
    """A command line that runs only this case."""
    confirms: bool = False
    """Whether this attempt was made in a fresh VM, to see if a failure repeats."""
    flaky: bool = False
    """Whether a settled case failed, and passed in the attempt to confirm that."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", " ".join(self.reason.split()))

    @property
    def is_failure(self) -> bool:
        """Whether it speaks against the kernel: a failure that repeated, or a crash, repeated or not."""
        return self.outcome.is_failure and (not self.flaky or self.outcome is Outcome.CRASH)

    @property
    def is_bad(self) -> bool:
        """Whether a good run has no such case."""
        return self.is_failure or (self.outcome.is_infra and self.cause is not Cause.BY_WISH)

    @property
    def label(self) -> str:
        """Its name in reports: FLAKY, or its outcome."""
        return FLAKY if self.flaky and not self.is_failure else self.outcome.value


MISSING = "missing"
"""The key in Inputs.extra of Inputs.missing_shards."""

_CONTENT = re.compile(r"@[0-9a-f]{6}(?=[ +]|$)")
"""The digest that results append to the name of a user's own file."""


def without_content(text: str) -> str:
    """Return *text* without the digests of the user's own files."""
    return _CONTENT.sub("", text)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One Job of the plan, as reports need it."""

    name: str
    kernel: str = ""
    """The kernel's short identity, e.g. `7.3.4 1f0c9a2b`."""
    arch: str = ""
    """The kernel's architecture; empty where an older harness did not record it."""
    cross: str = ""
    """The same, if it is not that of the host that planned the run."""
    variant: str = ""
    topology: str = ""
    """A user's own with a digest of its content: `edu-igb@3fa1c2`."""
    addons: tuple[str, ...] = ()
    """Add-on fragments, and the user's own with a digest of their content."""
    toolchain: str = ""
    """What the kernel is built with; empty for the default one."""
    compiler: str = ""
    """What that compiler calls itself; empty for a job without a kernel."""
    tree: str = ""
    """Identity of the source: commit and dirtiness, or package version and digest."""
    exact_tree: str = ""
    """A `--tree` that always opens this source, if the requested one may move."""
    commit: str = ""
    """The commit of its source, in the user's repository or in that of the cache; empty without git."""
    line: str = ""
    """The line of development it belongs to, as it was asked for, e.g. `debian:7.3` or `/src/linux@topic`."""
    features: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    """Its suites, with `own/mytest@3fa1c2` for each of the user's own programs; empty where an older harness
    recorded only the suites of the whole Run."""
    problem: str = ""
    """Why the Job could not be carried out at all, in one sentence."""
    problem_code: ExitCode = ExitCode.GOOD
    """The exit code of that error."""
    cause: Cause | None = None
    """The cause of that error."""
    applicable: bool = True
    """False when the problem is that this tree cannot express the variant: no failure."""

    @property
    def config(self) -> str:
        """`variant+addon+toolchain+architecture`, the last two where they are not the default ones."""
        return "+".join((self.variant, *self.addons, *filter(None, (self.toolchain, self.cross))))

    @property
    def series(self) -> str:
        """The identity it shares with the same Job of other Runs: `line variant+addon topology`.

        It does not change with the release, but with the content of the user's own files, so that results are
        compared with results of the same files.
        """
        return f"{self.line} {self._what}".strip() or self.name

    @property
    def cell(self) -> str:
        """Its place in the matrix: the series without the digests of the user's own files.

        A Job is lost when no Job has its cell any more; editing a file does not lose it.
        """
        return f"{self.line} {without_content(self._what)}".strip() or self.name

    @property
    def _what(self) -> str:
        return f"{self.config} {self.topology}".strip()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The identity of everything that influenced the Run."""

    tree: str = ""
    """Commit and dirtiness, or package version and digest."""
    kernels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variant -> digest of its kernel."""
    qemu: str = ""
    accel: str = ""
    """`kvm` or `tcg`."""
    timeout_factor: float = 1.0
    """The factor of every timeout."""
    topologies: tuple[str, ...] = ()
    root: str = ""
    """`virtme` or `image`; the image is in `extra`, because it does not decide which cases apply."""
    machine: str = ""
    """vCPUs and memory: with the topology they decide which cases apply."""
    seed: int | None = None
    suites: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    """Address patterns of the cases that were run.  Empty: all."""
    narrowed: bool = False
    """Whether pytest selected cases too (-k, -x, --lf), so that a missing case means nothing."""
    compare: bool = True
    """Whether earlier Runs count in the Verdict."""
    elsewhere: tuple[str, ...] = ()
    """Cells of the Jobs that other shards of the matrix have: these are not lost."""
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More facts: host, compiler, the harness's commit, the image, matrix, shard."""

    def of(self, job: JobRecord) -> Inputs:
        """Return the inputs of *job* alone: other Jobs of the Run may have other suites."""
        return dataclasses.replace(self, suites=job.suites or self.suites)

    @property
    def missing_shards(self) -> tuple[str, ...]:
        """The shards of its matrix, `3/8`, that are in none of the Runs that it was merged of."""
        return tuple(self.extra.get(MISSING, "").split())

    @property
    def matrix(self) -> str:
        """The matrix and the shard of the Jobs: `nightly 3/8`; empty without."""
        return " ".join(self.extra[key] for key in ("matrix", "shard") if key in self.extra)


class Verdict(enum.Enum):
    """What a Run means to its caller."""

    GOOD = "good"
    BAD = "bad"
    UNTESTABLE = "untestable"
    INFRASTRUCTURE = "infrastructure"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command that made the Run."""
        match self:
            case Verdict.GOOD:
                return ExitCode.GOOD
            case Verdict.BAD:
                return ExitCode.CASE_FAILED
            case Verdict.UNTESTABLE:
                return ExitCode.KERNEL
            case Verdict.INFRASTRUCTURE:
                return ExitCode.INFRA


class RunState(enum.Enum):
    """How far a Run came."""

    RUNNING = "running"
    """Still going on, or killed."""
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    OVERTAKEN = "overtaken"
    """Interrupted because a source file was saved (`run --watch`)."""

    @property
    def is_cut_off(self) -> bool:
        """Whether it was ended before everything had run."""
        return self in (RunState.INTERRUPTED, RunState.OVERTAKEN)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The facts about a Run that are known when it starts."""

    id: str
    started: datetime.datetime
    """The start, in UTC with a time zone."""
    harness_version: str
    command: tuple[str, ...] = ()
    """The command line that started it."""
    inputs: Inputs = dataclasses.field(default_factory=Inputs)

    def __post_init__(self) -> None:
        if self.started.tzinfo is None:
            raise ValueError("RunInfo.started must carry a time zone")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """The memory of a guest that panicked or hung, and what was found in it."""

    file: str = ""
    """The dump, relative to the run directory; empty if there is none."""
    bytes: int = 0
    seconds: float = 0.0
    """How long the guest stood still for it."""
    answers: str = ""
    """What drgn found in it, in sections; empty if it was not asked."""
    reason: str = ""
    """Why there is no dump, or else why there are no answers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a plan of Jobs: the only thing reports read."""

    info: RunInfo
    jobs: tuple[JobRecord, ...] = ()
    results: tuple[Result, ...] = ()
    """Every attempt, in order of arrival."""
    state: RunState = RunState.RUNNING
    finished: datetime.datetime | None = None
    verdict: Verdict | None = None
    """The verdict when the Run finished, without its history."""
    directory: str = ""
    """The run directory as text; logs are relative to it."""
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """CPU seconds by use: `builds`, `boots`, `cases`.  Empty: not recorded."""
    tested: float = 0.0
    """Wall time of its tests in seconds, without the builds before them; 0: not recorded."""
    accepted: str = ""
    """Why a user accepted the coverage that it lost; empty: nobody did."""
    places: Mapping[str, Mapping[str, Place]] = dataclasses.field(default_factory=dict)
    """JobRecord.kernel -> a code address in its splats -> where that is in the source."""
    dumps: Mapping[str, Dump] = dataclasses.field(default_factory=dict)
    """Result.vm_dir -> the memory of the guest that died there."""

    @property
    def cases(self) -> tuple[Result, ...]:
        """One Result per job and address: attempts settled, in plan order."""
        order = {job.name: index for index, job in enumerate(self.jobs)}
        return tuple(sorted(settle(self.results), key=lambda result: order.get(result.job, len(order))))

    @property
    def seconds(self) -> float:
        """Wall time from start to finish, 0 while it is not finished."""
        return (self.finished - self.info.started).total_seconds() if self.finished else 0.0


def settle(results: Iterable[Result]) -> tuple[Result, ...]:
    """Reduce each case's attempts, given in order of arrival, to one Result; in order of first appearance.

    Any other attempt replaces one that was not carried out (LOST, NOT_RUN); of the others the worst wins, so
    that no retry hides a failure.  Where the attempts that were to confirm a failure passed, the case keeps
    its failure and is flaky.  A result that a whole program was not carried out is replaced by any later
    result of the program; attempt numbers cannot decide that, because they restart when a Run is resumed.
    """
    attempts: dict[tuple[str, Address], list[Result]] = {}
    confirming: dict[tuple[str, str], list[Result]] = {}
    carried_out: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, Address], int] = {}
    for number, result in enumerate(results):
        program = result.job, result.address.program_path
        last[result.job, result.address] = number
        attempts.setdefault((result.job, result.address), []).append(result)
        if result.confirms:
            confirming.setdefault(program, []).append(result)
        if not result.outcome.is_infra:
            carried_out[program] = number
    settled = (
        _settled(found, confirming.get((found[0].job, found[0].address.program_path), ()))
        for found in attempts.values()
    )
    outlived = {
        (job, address)
        for (job, address), number in last.items()
        if address.case == WHOLE_PROGRAM and number < carried_out.get((job, address.program_path), -1)
    }
    return tuple(
        result
        for result in settled
        if not (result.outcome.is_infra and (result.job, result.address) in outlived)
    )


def _settled(attempts: Sequence[Result], confirming: Sequence[Result]) -> Result:
    """Settle one case; *confirming* are the confirming attempts at its program."""
    worst = functools.reduce(_worse, attempts)
    if not worst.outcome.is_failure:
        return worst
    again = [result for result in confirming if result.address == worst.address]
    if not again and worst.address.case == WHOLE_PROGRAM:
        # A program with nothing wrong as a whole has no such result.
        again = list(confirming)
    passed = any(result.outcome.is_expected for result in again)
    flaky = passed and not any(result.outcome.is_failure for result in again)
    return dataclasses.replace(worst, flaky=flaky)


def _worse(before: Result, after: Result) -> Result:
    if before.outcome.is_infra != after.outcome.is_infra:
        return after if before.outcome.is_infra else before
    return after if after.outcome.severity > before.outcome.severity else before

# SPDX-License-Identifier: GPL-2.0-only
"""Results as values: Outcome, Address, Result, JobRecord, Inputs, Run.

This module knows nothing of how results are made, kept or shown.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from harness.errors import ExitCode, UsageError

WHOLE_PROGRAM = "(program)"
"""The case name of a result that is about a program as a whole, e.g. one that died before its first case."""

FLAKY = "FLAKY"
"""How a case is labelled that failed, and did not when it was tried again in a fresh VM."""


class Outcome(enum.Enum):
    """What became of a case, in rising severity: the worst of several wins.

    SKIP is the least: a whole is skipped only when all of it is.  What says nothing about the kernel (NOT_RUN
    and LOST) is below what does, so that a failure is not hidden by a guest lost later.
    """

    SKIP = "SKIP"
    PASS = "PASS"
    XFAIL = "XFAIL"
    NOT_RUN = "NOT_RUN"
    LOST = "LOST"
    XPASS = "XPASS"
    ERROR = "ERROR"
    FAIL = "FAIL"
    TIMEOUT = "TIMEOUT"
    CRASH = "CRASH"

    @property
    def severity(self) -> int:
        """Position from harmless to worst."""
        return _SEVERITY[self]

    @property
    def is_infra(self) -> bool:
        """Says nothing about the kernel: the case did not get its chance."""
        return self in (Outcome.LOST, Outcome.NOT_RUN)

    @property
    def is_failure(self) -> bool:
        """Speaks against the kernel, or against what is expected of it."""
        return self.severity >= Outcome.XPASS.severity

    @property
    def is_bad(self) -> bool:
        """Not what a green run is made of: a failure, or a case without its chance."""
        return self.is_failure or self.is_infra

    @property
    def symbol(self) -> str:
        """One character, for progress lines."""
        return _WORDS[self][0]

    @property
    def meaning(self) -> str:
        """A few words for a legend."""
        return _WORDS[self][1]

    def with_known_defect(self) -> Outcome:
        """The outcome of a case whose failure is documented: FAIL is expected and PASS is news.

        A crash, a timeout or an error is never excused by a known defect.
        """
        return {Outcome.FAIL: Outcome.XFAIL, Outcome.PASS: Outcome.XPASS}.get(self, self)

    @staticmethod
    def worst(outcomes: Iterable[Outcome]) -> Outcome:
        """The worst of *outcomes*; NOT_RUN when there are none, because nothing is no success."""
        return max(outcomes, key=lambda outcome: outcome.severity, default=Outcome.NOT_RUN)


# A night asks for it millions of times.
_SEVERITY: Mapping[Outcome, int] = {outcome: rank for rank, outcome in enumerate(Outcome)}

_WORDS: Mapping[Outcome, tuple[str, str]] = {
    Outcome.SKIP: ("s", "not applicable here, by its own account"),
    Outcome.PASS: (".", "passed"),
    Outcome.XFAIL: ("x", "failed as documented"),
    Outcome.NOT_RUN: ("-", "never ran"),
    Outcome.LOST: ("?", "the guest was lost; nothing is said about the kernel"),
    Outcome.XPASS: ("X", "passed although documented to fail"),
    Outcome.ERROR: ("E", "could not be carried out"),
    Outcome.FAIL: ("F", "failed"),
    Outcome.TIMEOUT: ("T", "did not finish in time"),
    Outcome.CRASH: ("!", "the kernel died or splatted"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Address:
    """Where a case lives, `suite/program/case`; stable between runs."""

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

    @classmethod
    def of_program(cls, suite: str, program: str) -> Address:
        """The address of a result about a whole program."""
        return cls(suite=suite, program=program, case=WHOLE_PROGRAM)

    @property
    def program_path(self) -> str:
        """`suite/program`."""
        return f"{self.suite}/{self.program}"

    def __str__(self) -> str:
        return f"{self.suite}/{self.program}/{self.case}"


KERNEL_SUITE = "kernel"
"""Where results stand that are about a kernel as such and not about a case."""

KCONFIG_SUITE = "kconfig"
"""Where results stand that a kernel's configuration gave, without a build."""

BOOTS = Address(suite=KERNEL_SUITE, program="console", case="boots")
"""Whether the kernel comes up; told of only where it did not, or not at once."""

QUIET = Address(suite=KERNEL_SUITE, program="console", case="is_quiet_between_cases")
"""What the kernel complained of outside any case; told of only where it did."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one attempt at one case came to."""

    address: Address
    job: str
    """The Job's name."""
    outcome: Outcome
    reason: str = ""
    """One line; the skip reason, the failed check, the cause of the loss."""
    duration: float = 0.0
    """Seconds."""
    attempt: int = 1
    """Counts up when a case is tried again after infrastructure trouble, or to confirm a failure."""
    log: str = ""
    """The end of what the case printed, and the console round it."""
    splat: str = ""
    """The kernel's splat, whole."""
    vm_dir: str = ""
    """Relative to the run directory; empty when no VM was involved."""
    rerun: str = ""
    """A command line that runs just this case again."""
    confirms: bool = False
    """This attempt was made, in a VM in which nothing had run, to see whether a failure repeats."""
    flaky: bool = False
    """Of a settled case: it failed, and did not in the attempt that was to confirm it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", " ".join(self.reason.split()))

    @property
    def is_failure(self) -> bool:
        """Speaks against the kernel: a failure that repeated, or a splat, which proves itself."""
        return self.outcome.is_failure and (not self.flaky or self.outcome is Outcome.CRASH)

    @property
    def is_bad(self) -> bool:
        """Not what a green run is made of."""
        return self.is_failure or self.outcome.is_infra

    @property
    def label(self) -> str:
        """What reports count it as: FLAKY, or its Outcome."""
        return FLAKY if self.flaky and not self.is_failure else self.outcome.value


_CONTENT = re.compile(r"@[0-9a-f]{6}(?=[ +]|$)")
"""What the results append to the name of a user's own file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One Job of the plan, as far as reports need it."""

    name: str
    kernel: str = ""
    """The kernel's short identity, e.g. `7.3.4 1f0c9a2b`."""
    variant: str = ""
    topology: str = ""
    """A user's own with a digest of its content: `edu-igb@3fa1c2`."""
    addons: tuple[str, ...] = ()
    """Add-on fragments, and the user's own with a digest of their content."""
    tree: str = ""
    """Identity of the source: commit and dirtiness, or package version and digest."""
    line: str = ""
    """The line of development it belongs to, as it was asked for, e.g. `debian:7.3` or `/src/linux@topic`."""
    features: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    """What it was to run; empty where an older harness recorded only the suites of the whole Run."""
    problem: str = ""
    """Why the Job could not be carried out at all, in one sentence."""
    problem_code: ExitCode = ExitCode.GOOD
    """What its error earns."""
    applicable: bool = True
    """False when the problem is that this tree has no such variant: an answer, not a failure."""

    @property
    def cell(self) -> str:
        """Its place in the matrix: `variant+addon topology`."""
        return " ".join(part for part in ("+".join((self.variant, *self.addons)), self.topology) if part)

    @property
    def series(self) -> str:
        """What it shares with the same Job of other Runs, whatever release the line has come to."""
        return f"{self.line} {self.cell}".strip() or self.name

    @property
    def seat(self) -> str:
        """Its series whatever the content of the user's own files: who edits one has not dropped the Job."""
        return f"{self.line} {_CONTENT.sub('', self.cell)}".strip() or self.name


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The identity of everything that decided the Run."""

    tree: str = ""
    """Commit and dirtiness, or package version and digest."""
    kernels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variant -> digest of the kernel it was run with."""
    qemu: str = ""
    accel: str = ""
    """`kvm` or `tcg`."""
    timeout_factor: float = 1.0
    """By how much every timeout was multiplied."""
    topologies: tuple[str, ...] = ()
    root: str = ""
    """`virtme` or `image`; what is in the image is in `extra`, for it does not decide which cases apply."""
    machine: str = ""
    """What decides which cases apply beside the topology: processors and memory."""
    seed: int | None = None
    suites: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    """Address patterns: only matching cases were run.  Empty: all."""
    narrowed: bool = False
    """pytest chose further (-k, -x, --lf): that a case is absent says nothing."""
    compare: bool = True
    """Whether earlier Runs count in the Verdict."""
    elsewhere: tuple[str, ...] = ()
    """Seats of the Jobs that other shards of the matrix have: that they are absent here is no loss."""
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Anything more worth recording: host, compiler, the harness's commit, the image, matrix, shard."""

    def of(self, job: JobRecord) -> Inputs:
        """What decided *job* alone: other Jobs of the Run may have had other suites."""
        return dataclasses.replace(self, suites=job.suites or self.suites)

    @property
    def matrix(self) -> str:
        """The matrix, and the shard of it, that the Jobs are from: `nightly 3/8`; empty without."""
        return " ".join(self.extra[key] for key in ("matrix", "shard") if key in self.extra)


class Verdict(enum.Enum):
    """What a Run means to its caller."""

    GOOD = "good"
    BAD = "bad"
    UNTESTABLE = "untestable"
    OUR_FAULT = "our fault"

    @property
    def exit_code(self) -> ExitCode:
        return {
            Verdict.GOOD: ExitCode.GOOD,
            Verdict.BAD: ExitCode.CASE_FAILED,
            Verdict.UNTESTABLE: ExitCode.KERNEL,
            Verdict.OUR_FAULT: ExitCode.INFRA,
        }[self]


class State(enum.Enum):
    """How far a Run came."""

    # Still going, or killed without a chance to say so.
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What is known of a Run when it starts."""

    id: str
    started: datetime.datetime
    """Aware, in UTC."""
    harness_version: str
    command: tuple[str, ...] = ()
    """The command line that started it."""
    inputs: Inputs = dataclasses.field(default_factory=Inputs)

    def __post_init__(self) -> None:
        if self.started.tzinfo is None:
            raise ValueError("RunInfo.started must carry a time zone")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a plan of Jobs: the only thing reports read."""

    info: RunInfo
    jobs: tuple[JobRecord, ...] = ()
    results: tuple[Result, ...] = ()
    """Every attempt, in order of arrival."""
    state: State = State.RUNNING
    finished: datetime.datetime | None = None
    verdict: Verdict | None = None
    """As it was given when the Run finished."""
    directory: str = ""
    """The run directory as text; logs are relative to it."""
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Processor seconds by what took them: `builds`, `boots`, `cases`.  Empty: not known."""
    accepted: str = ""
    """Why what it no longer covers is meant to be so; empty: nobody said so."""

    _NO_JOB: ClassVar[int] = 1 << 30

    @property
    def cases(self) -> tuple[Result, ...]:
        """One Result per job and address: attempts settled, in plan order."""
        order = {job.name: index for index, job in enumerate(self.jobs)}
        return tuple(sorted(settle(self.results), key=lambda result: order.get(result.job, self._NO_JOB)))

    @property
    def seconds(self) -> float:
        """Wall time from start to finish, 0 while it is not finished."""
        return (self.finished - self.info.started).total_seconds() if self.finished else 0.0


def settle(results: Iterable[Result]) -> tuple[Result, ...]:
    """Reduce every case's attempts, given in order of arrival, to one Result; in order of first appearance.

    An attempt that had no chance (LOST, NOT_RUN) is superseded by one that had; among those the worst wins,
    so that no retry washes a failure clean.  Where the attempts that were to confirm a failure passed, the
    case keeps that failure and is flaky.  That a program as a whole had no chance is settled by what came of
    it later; numbers of attempts do not tell that, for they begin anew when a Run goes on.
    """
    attempts: dict[tuple[str, Address], list[Result]] = {}
    confirming: dict[tuple[str, str], list[Result]] = {}
    had_a_chance: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, Address], int] = {}
    for number, result in enumerate(results):
        program = result.job, result.address.program_path
        last[result.job, result.address] = number
        attempts.setdefault((result.job, result.address), []).append(result)
        if result.confirms:
            confirming.setdefault(program, []).append(result)
        if not result.outcome.is_infra:
            had_a_chance[program] = number
    settled = (
        _settled(found, confirming.get((found[0].job, found[0].address.program_path), ()))
        for found in attempts.values()
    )
    outlived = {
        (job, address)
        for (job, address), number in last.items()
        if address.case == WHOLE_PROGRAM and number < had_a_chance.get((job, address.program_path), -1)
    }
    return tuple(
        result
        for result in settled
        if not (result.outcome.is_infra and (result.job, result.address) in outlived)
    )


def _settled(attempts: Sequence[Result], confirming: Sequence[Result]) -> Result:
    """One case's Result; *confirming* are its program's."""
    worst = functools.reduce(_worse, attempts)
    if not worst.outcome.is_failure:
        return worst
    again = [result for result in confirming if result.address == worst.address]
    if not again and worst.address.case == WHOLE_PROGRAM:
        # What was wrong with a program as a whole leaves no trace when it is not wrong again.
        again = list(confirming)
    passed = any(result.outcome in _PASSED for result in again)
    flaky = passed and not any(result.outcome.is_failure for result in again)
    return dataclasses.replace(worst, flaky=flaky)


def _worse(before: Result, after: Result) -> Result:
    if before.outcome.is_infra != after.outcome.is_infra:
        return after if before.outcome.is_infra else before
    return after if after.outcome.severity > before.outcome.severity else before


_PASSED = (Outcome.PASS, Outcome.XFAIL)

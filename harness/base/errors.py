# SPDX-License-Identifier: GPL-2.0-only
"""Every error the harness raises on purpose, and its exit code.

HarnessError
 ├── UsageError         2  the user asked for something wrong: unknown name, bad file, bad option
 │    └── NoCase        2  no case matches what was asked for
 ├── InfraError         3  the host, QEMU or the connection to the guest failed; says nothing about the kernel
 │    ├── LostGuest     3  a guest that was reachable no longer is, or never became so
 │    ├── HostError     3  the host lacks space, memory, rights or a tool
 │    ├── DeadlinePassed 3  the run's deadline has passed: no case starts, and builds stop
 │    └── SourceError   3  a kernel source could not be fetched or verified
 └── KernelError        4  the kernel's side: nothing could be tested
      ├── BuildError    4  the compiler or the linker refused
      ├── BootCrash     4  the kernel died before a guest answered
      ├── NotRefused    4  this tree's Kconfig allows what it must refuse
      └── NotApplicable 4  this tree cannot express what the variant wants

Library code raises these; only harness.cli prints them.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from typing import ClassVar

from harness.base.cause import Cause


class Interrupted(KeyboardInterrupt):
    """An interrupt of work that can go on later."""

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


class ExitCode(enum.IntEnum):
    """What a command's exit status means; for_git_bisect() returns the exit status of `bisect-step`."""

    GOOD = 0
    CASE_FAILED = 1
    USAGE = 2
    INFRA = 3
    KERNEL = 4
    INTERRUPTED = 130


GIT_SKIP, GIT_ABORT = 125, 128
"""The exit statuses at which `git bisect run` skips the commit, and stops."""


def for_git_bisect(code: int) -> int:
    """Return *code* as `git bisect run` wants it: git takes every status from 1 to 127 except 125 as bad."""
    return (
        {ExitCode.USAGE: GIT_ABORT, ExitCode.INFRA: GIT_SKIP, ExitCode.KERNEL: GIT_SKIP}.get(
            ExitCode(code), code
        )
        if code in tuple(ExitCode)
        else code
    )


class HarnessError(Exception):
    """One clear sentence for the user, and what to do about it."""

    exit_code: ClassVar[ExitCode] = ExitCode.INFRA

    cause: Cause | None = None
    """The cause, if callers or reports depend on it; a class may set it for all of its errors."""

    def __init__(self, message: str, *, hint: str | None = None, cause: Cause | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if cause is not None:
            self.cause = cause

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(HarnessError):
    """The user's input is wrong; the message names the place, the hint the remedy."""

    exit_code = ExitCode.USAGE


class NoCase(UsageError):
    """No case matches what was asked for."""

    cause = Cause.NO_CASE


class InfraError(HarnessError):
    """The host or QEMU failed; it says nothing about the kernel under test."""

    exit_code = ExitCode.INFRA


class LostGuest(InfraError):
    """The guest cannot be reached any more, or never answered."""


class HostError(InfraError):
    """This host lacks space, memory, rights or a tool."""

    cause = Cause.HOST


class DeadlinePassed(InfraError):
    """The run's deadline has passed: no case begins, and builds stop."""

    cause = Cause.DEADLINE


class SourceError(InfraError):
    """A kernel source could not be fetched, or is not what the archive signed."""

    cause = Cause.SOURCE


class KernelError(HarnessError):
    """The tree's kernel could not be built or booted."""

    exit_code = ExitCode.KERNEL


class BuildError(KernelError):
    """The build stopped; `log` is the whole of make's output."""

    cause = Cause.COMPILER

    def __init__(
        self, message: str, *, log: str = "", hint: str | None = None, cause: Cause | None = None
    ) -> None:
        super().__init__(message, hint=hint, cause=cause)
        self.log = log


class BootCrash(KernelError):
    """The kernel died before its guest answered; `splat` is its splat on the console."""

    cause = Cause.BOOT_CRASH

    def __init__(self, message: str, *, splat: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.splat = splat


class NotRefused(KernelError):
    """The tree's Kconfig allows what it must refuse for a blocked variant: a broken promise."""

    cause = Cause.KCONFIG


class NotApplicable(KernelError):
    """The tree cannot express the variant: an answer, not a failure."""

    cause = Cause.KCONFIG


def close_match(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that *word* is probably a misspelling of; None when none is close."""
    close = difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(word: str, choices: Iterable[str], *, otherwise: str | None = None) -> str:
    """Return a hint with the choice closest to *word*; when none is close, *otherwise* or all choices."""
    known = sorted(choices)
    close = close_match(word, known)
    if close is not None:
        return f"did you mean {close!r}?"
    return f"known: {', '.join(known) or 'none'}" if otherwise is None else otherwise

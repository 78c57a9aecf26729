# SPDX-License-Identifier: GPL-2.0-only
"""Every error the harness raises on purpose, and the exit code each one earns.

HarnessError
 ├── UsageError         2  the user asked for something wrong: unknown name, bad file, bad option
 ├── InfraError         3  the host, QEMU or the way to the guest failed: nothing is said about the kernel
 │    ├── LostGuest     3  a guest that was reachable no longer is, or never became so
 │    │    ├── StoodStill 3  one of its processors fell asleep for good
 │    │    └── LostProcessor 3  QEMU has lost one of its processors
 │    ├── DeadlinePassed 3  no case may begin any more, and no build go on
 │    └── SourceError   3  a kernel source could not be fetched or verified
 └── KernelError        4  the kernel's side: nothing could be tested
      ├── BuildError    4  the compiler or the linker refused
      ├── BootCrash     4  the kernel died before a guest answered
      ├── NotRefused    4  this tree lets through what its Kconfig must refuse
      └── NotApplicable 4  this tree cannot express what the variant wants

Library code raises these; only harness.cli prints them.  This module imports nothing of the harness.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """What a command's exit status means; for_git_bisect() turns it into what `bisect-step` exits with."""

    GOOD = 0
    CASE_FAILED = 1
    USAGE = 2
    INFRA = 3
    KERNEL = 4
    INTERRUPTED = 130


GIT_SKIP, GIT_ABORT = 125, 128
"""What `git bisect run` takes for untestable, and for a reason to stop."""


def for_git_bisect(code: int) -> int:
    """An exit code in git's words: it takes every status from 1 to 127 but 125 for bad."""
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

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(HarnessError):
    """The user's input is wrong; the message names the place, the hint the remedy."""

    exit_code = ExitCode.USAGE


class InfraError(HarnessError):
    """The host or QEMU failed; never a statement about the kernel under test."""

    exit_code = ExitCode.INFRA


class LostGuest(InfraError):
    """The guest cannot be reached any more, or never answered."""


class StoodStill(LostGuest):
    """A processor of the guest is not run any more, so that what waits for it will wait for ever."""


class LostProcessor(LostGuest):
    """QEMU has lost a processor of the guest in a way that no kernel can bring about."""


class DeadlinePassed(InfraError):
    """The run's deadline is over: no case begins any more, and no build goes on."""


class SourceError(InfraError):
    """A kernel source could not be fetched, or is not what the archive signed."""


class KernelError(HarnessError):
    """No kernel came out of the tree that could be booted."""

    exit_code = ExitCode.KERNEL


class BuildError(KernelError):
    """The build stopped; `log` is the whole of make's output."""

    def __init__(self, message: str, *, log: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.log = log


class BootCrash(KernelError):
    """The kernel died, by its own account, before its guest answered; `splat` is what it said."""

    def __init__(self, message: str, *, splat: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.splat = splat


class NotRefused(KernelError):
    """The tree grants a blocked variant what its Kconfig must refuse: a promise that is broken."""


class NotApplicable(KernelError):
    """The tree cannot express the variant: an answer, not a failure."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint naming the choice nearest to *word*, or all of them when none is near."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known)

# SPDX-License-Identifier: GPL-2.0-only
"""How make is called on a kernel tree: a clean environment, fixed stamps, output elsewhere, a log, progress.

Two calls with equal arguments give equal bytes: the user's environment, clock and host name stay out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import process
from harness.deadline import Deadline
from harness.errors import BuildError, InfraError
from harness.kernel.hostneeds import BUILD_TOOLS

RECIPE = 1
"""Raise it when the same tree and configuration begin to give other bytes: part of every kernel's key."""

TARGET_ARCH = "x86_64"

_STRANGERS = (
    *(
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "MAKEFILES",
        "O",
        "OUTPUT",
        "ARCH",
        "SUBARCH",
        "SRCARCH",
        "CROSS_COMPILE",
    ),
    *(
        "LLVM",
        "LLVM_IAS",
        "KCONFIG_CONFIG",
        "KCONFIG_ALLCONFIG",
        "KBUILD_OUTPUT",
        "KBUILD_EXTRA_WARN",
        "KCFLAGS",
    ),
    *("KCPPFLAGS", "KAFLAGS", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDLIBS", "LOCALVERSION", "INSTALL_MOD_PATH"),
    *("INSTALL_HDR_PATH", "KERNELRELEASE", "srctree", "objtree", "CC", "LD", "HOSTCC"),
)
"""Variables of the caller's environment that kbuild or the selftests' makefiles would listen to."""

_STAMPS = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "vfio",
    "KBUILD_BUILD_HOST": "harness",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
}

_STEP = re.compile(r"^  [A-Z][A-Z0-9_-]* +(?:\[M\] +)?\S")
_COMPILED = re.compile(r"^  CC +(?:\[M\] +)?\S")
_ERROR = re.compile(
    r"(?:fatal )?error:|\*\*\* (?!\[.*(?:Makefile|__sub|sub-make))|undefined reference"
    r"|No such file or directory|No space left on device"
)
_KILLED = re.compile(
    r"Killed signal terminated program|terminated with signal 9|\*\*\* \[.*\] (?:Killed|Error 137)$",
    re.MULTILINE,
)
"""What gcc, its collect2 and make say of a tool that SIGKILL ended (137 is a shell's word for it)."""

_WAIT_SECONDS = 0.3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """The compiler and linker of this host, by what they say of themselves."""

    compiler: str
    linker: str

    def __str__(self) -> str:
        return f"{self.compiler}; {self.linker}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """How far a build is."""

    phase: str
    done: int  # steps that make has announced
    total: int | None  # steps that the build is expected to take, None when nothing is known
    eta: float | None  # seconds left, None when nothing is known


Progress = Callable[[BuildProgress], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MakeResult:
    """What a successful make did."""

    steps: int
    compiled: int  # C files
    seconds: float
    cpu_seconds: float  # of make and all that it started


def ignore_progress(_progress: BuildProgress) -> None:
    """The Progress for who does not care."""


def find_toolchain() -> Toolchain:
    """Ask gcc and ld who they are; InfraError naming what is missing for a kernel build."""
    missing = [need for need in BUILD_TOOLS if need.find() is None]
    if missing:
        packages = " ".join(package for need in missing for package in need.packages)
        raise InfraError(
            f"a kernel build needs {', '.join(need.wanted for need in missing)}",
            hint=f"install {packages}, or run: vfio-harness doctor --fix",
        )
    first = [process.run([tool, "--version"]).stdout.partition("\n")[0].strip() for tool in ("gcc", "ld")]
    return Toolchain(compiler=first[0], linker=first[1])


def make_argv(tree: Path, arguments: Sequence[str]) -> list[str]:
    """The command line of make on *tree*, in an environment without the caller's build variables."""
    unset = [word for name in _STRANGERS for word in ("-u", name)]
    stamps = [f"{name}={value}" for name, value in _STAMPS.items()]
    return ["env", *unset, *stamps, "make", "-C", os.fspath(tree), f"ARCH={TARGET_ARCH}", *arguments]


def run_make(
    tree: Path,
    arguments: Sequence[str],
    log: Path,
    *,
    what: str,
    progress: Progress = ignore_progress,
    expected_steps: int | None = None,
    mark: Path | None = None,
) -> MakeResult:
    """Run make to its end, its output appended to *log*.

    The file *mark* exists while make runs and outlives one that was killed outright: only then may there be
    half-written files, for make removes the target it was at when it is merely stopped.
    Raises BuildError with the first lines that say what is wrong; a full disk is an InfraError.
    """
    start = _now()
    with log.open("ab") as sink, log.open("rb") as source:
        source.seek(0, os.SEEK_END)
        begin = source.tell()
        meter = _Meter(what, progress, expected_steps, start)
        with (
            _marked(mark) as running,
            process.spawn(make_argv(tree, arguments), stdout=sink, stderr=sink, whole_group=True) as child,
        ):
            running.append(child)
            while child.wait(Deadline.after(_WAIT_SECONDS)) is None:
                meter.feed(source.read())
            meter.feed(source.read())
            status = child.status
        if status != 0:
            source.seek(begin)
            raise _explain(what, source.read().decode(errors="replace"), log, status)
    return MakeResult(
        steps=meter.steps,
        compiled=meter.compiled,
        seconds=_now() - start,
        cpu_seconds=child.all_cpu_seconds,
    )


@contextlib.contextmanager
def _marked(mark: Path | None) -> Iterator[list[process.Process]]:
    """Keep *mark* while the process put into the list runs; remove it unless that was killed."""
    running: list[process.Process] = []
    if mark is not None:
        mark.touch()
    try:
        yield running
    finally:
        if mark is not None and running and running[0].status not in (None, -signal.SIGKILL):
            mark.unlink(missing_ok=True)


class _Meter:
    """Counts the steps in make's output as it grows."""

    def __init__(self, phase: str, progress: Progress, total: int | None, start: float) -> None:
        self.phase, self.progress, self.total, self.start = phase, progress, total, start
        self.steps = 0
        self.compiled = 0
        self.rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            self.steps += bool(_STEP.match(text))
            self.compiled += bool(_COMPILED.match(text))
        total = max(self.total, self.steps) if self.total else None
        eta = (
            (_now() - self.start) / self.steps * (total - self.steps) if total and self.steps >= 20 else None
        )
        self.progress(BuildProgress(phase=self.phase, done=self.steps, total=total, eta=eta))


def first_errors(output: str, count: int = 4) -> list[str]:
    """The first lines of make's output that say what went wrong; its last line when none does."""
    lines = output.splitlines()
    found = [line.strip() for line in lines if _ERROR.search(line)]
    return list(dict.fromkeys(found))[:count] or [line.strip() for line in lines[-1:]]


def _explain(what: str, output: str, log: Path, status: int | None) -> BuildError | InfraError:
    errors = first_errors(output)
    if "No space left on device" in output:
        return InfraError(f"{what}: the disk is full", hint=f"free space where {log.parent} is")
    if status is not None and status < 0:
        return InfraError(f"{what}: make was killed by signal {-status}", hint=f"its output is in {log}")
    if _KILLED.search(output):
        return InfraError(f"{what}: a tool was killed, probably for want of memory", hint="use fewer jobs")
    return BuildError(f"{what} failed: {' | '.join(errors)}", log=output, hint=f"the whole log: {log}")


def _now() -> float:
    return os.times().elapsed

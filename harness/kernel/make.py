# SPDX-License-Identifier: GPL-2.0-only
"""How make is called on a kernel tree: fixed stamps, output elsewhere, a log, progress.

Two calls with equal arguments give equal bytes: the user's environment, clock and host name do not matter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.base import process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import BuildError, HostError
from harness.kernel.arch import Arch
from harness.kernel.hostneeds import find_header
from harness.kernel.toolchain import TOOLCHAINS, Toolchain

RECIPE = 1
"""Part of every kernel's key: raise it when the same tree and configuration give a different kernel."""

_STAMPS = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "vfio",
    "KBUILD_BUILD_HOST": "harness",
    "KBUILD_BUILD_VERSION": "1",
}

_STEP = re.compile(r"^  [A-Z][A-Z0-9_-]* +(?:\[M\] +)?\S")
_COMPILED = re.compile(r"^  CC +(?:\[M\] +)?\S")
_MAKES_OWN = re.compile(r"make(?:\[\d+\])?: (?:\*\*\* \[|\*\*\* Waiting|Entering|Leaving)|\W*$")
"""Lines of make that say where a build stopped, never why."""

_STOPPED = re.compile(r"make(?:\[\d+\])?: \*\*\* \[")
_EXCERPT = re.compile(r" *\d* +\| |  +[A-Z][A-Z0-9_-]* |\S+:\d+(?::\d+)?: (?:warning|note): ")
"""Lines that quote the source, announce a step or only warn: they say nothing about the host."""

_DIAGNOSTIC = re.compile(r"[^:|]+:\d+(?:[:.,][\d-]+)*: (?:(?:fatal )?[Ee]rror|sorry, unimplemented): ")
"""An error of the compiler or the assembler about a line of the source."""

_REFUSED = (
    _DIAGNOSTIC,
    re.compile(r"(?:\{standard input\}|[^:|]+\.[sS]): Error: "),  # the assembler about a whole file
    re.compile(r"Error: [^: ]+:\d+[.\d-]* |error(?:\[E\d+\])?: .* --> \S+:\d+:\d+$"),  # dtc, rustc
    re.compile(r"\S+: error: [^: ]+\.lds:\d+: "),  # lld about a linker script
    re.compile(r"ERROR: modpost: |.*: error: objtool: .*\+0x"),
    re.compile(  # make about a makefile
        r"[^: ]+:\d+: \*\*\* (?:missing separator|recipe commences|commands commence|missing .endif"
        r"|extraneous |unterminated |multiple target patterns|mixed implicit|Recursive variable)"
    ),
)
"""Messages of a tool about this source: only these make a failure the kernel's."""

_LINKER = re.compile(
    # A program for the host is linked with the host's libraries.
    r"(?!.*\b(?:scripts|tools(?!/testing))/).*(?:undefined reference to |multiple definition of "
    r"|undefined symbol: |duplicate symbol: |relocation truncated to fit|relocation \S+ out of range"
    r"|will not fit in region|section .* overlaps )"
)
"""A message of the linker about this source, unless it links a program for the host."""

_HOST_PROGRAM = re.compile(
    r"make(?:\[\d+\])?: \*\*\* \[(?:\S*scripts/Makefile\.host:|.*\btools(?!/testing)/\S*\] )"
)
"""make stopped at a program for the host; its linker names no path if it compiled the program, too."""

_PLACE = re.compile(
    r"^(error.*)\n\s+(--> .*)$|^(\S+: error: .*)\n>>> ((?:referenced|defined) .*)$", re.MULTILINE
)
"""An error of rustc or lld, and the place on its next line; without one rustc's is about something else."""

_MISSING = re.compile(r"make(?:\[\d+\])?: \*\*\* No rule to make target '([^']+)'")
"""A file that the tree's makefiles name: the kernel's failure if the tree does not have it."""

_KCONFIG = re.compile(r"\S*Kconfig\S*:\d+:(?! ?warning)")
"""An error of Kconfig about the tree's Kconfig files."""

_PARENT = re.compile(r"(?<![\w./-])\.\./(?!\.)")
"""How names of sources begin in messages: kernels are built in a child of the source."""

_TOO_OLD = re.compile(r"\*\*\* +(\S.* (?:is too old|version: .*?))\.?")
"""What the tree's scripts say about a compiler or linker that scripts/min-tool-version.sh does not allow."""

_HOST_HEADER = re.compile(r".*: fatal error: '?([\w./+-]+)'?(?:: No such file or directory| file not found)")
_LIBRARIES = re.compile(
    r"(?:openssl|uuid|sys|bits|gnu|elfutils|curl)/.*|(?:g?elf|libelf|dwarf|libdw|gmp|mpfr|mpc|zlib|zstd|n?curses"
    r"|std\w+|string|unistd|errno|limits|ctype|fcntl|signal|time|inttypes|getopt|pthread|numa|libintl|locale)\.h"
)
"""A header from outside the tree, which a host program or a selftest includes."""

_WAIT_SECONDS = 0.3


@dataclasses.dataclass(frozen=True, slots=True)
class _Trouble:
    """A failure of the host, recognised by a line that make or its tools print."""

    printed: re.Pattern[str]
    message: str
    hint: str = "its output is in {log}"
    probed: bool = False
    """Whether a makefile that only probes may print it too."""


def _errnos(*numbers: int) -> re.Pattern[str]:
    """Return a pattern for lines that end with the strerror(3) text of one of these errors."""
    words = "|".join(re.escape(os.strerror(number)) for number in numbers)
    return re.compile(rf"[:(\[' ](?:{words})['.)\]]*(?: \[-W.*\])?$")


_SPACE = "free space where {log} is"
_FEWER = "use fewer compilers"
_TROUBLES = (
    _Trouble(_errnos(errno.ENOSPC), "the disk is full", _SPACE),
    _Trouble(_errnos(errno.EDQUOT, errno.EFBIG), "the user's disk space is used up", _SPACE),
    _Trouble(_errnos(errno.ENOMEM), "memory ran out", _FEWER),
    _Trouble(_errnos(errno.EAGAIN, errno.EMFILE, errno.ENFILE), "out of processes or open files", _FEWER),
    _Trouble(
        _errnos(
            errno.EIO,
            errno.ESTALE,
            errno.ENXIO,
            errno.EUCLEAN,
            errno.EBADMSG,
            errno.ETIMEDOUT,
            errno.ENOTCONN,
        ),
        "a disk failed",
    ),
    _Trouble(
        _errnos(errno.EROFS, errno.EACCES, errno.EPERM, errno.ETXTBSY, errno.EBUSY, errno.ENOLCK),
        "a file could not be used",
    ),
    _Trouble(
        _errnos(errno.ENOEXEC, errno.ELIBBAD, errno.E2BIG, errno.ENOSYS), "a program could not be started"
    ),
    _Trouble(
        re.compile(r"out of memory|memory exhausted|std::bad_alloc|cannot allocate memory", re.IGNORECASE),
        "memory ran out",
        _FEWER,
    ),
    _Trouble(
        re.compile(r"[Cc]annot fork|can't fork|fork: retry|unable to fork"), "processes ran out", _FEWER
    ),
    # A shell's status for a signal is 128 and its number: SIGKILL is 9.
    _Trouble(
        re.compile(r"^make.*\*\*\* \[.*\] (?:Killed|Error 137)"),
        "a tool was killed, probably because memory ran out",
        _FEWER,
    ),
    *(
        _Trouble(toolchain.killed, "a tool was killed, probably because memory ran out", _FEWER)
        for toolchain in TOOLCHAINS.values()
    ),
    _Trouble(
        re.compile(
            r"internal compiler error|internal error|BFD .* assertion fail|error in backend"
            r"|unable to execute command|terminated (?:with|by) signal|frontend command failed"
            r"|^PLEASE submit a bug report"
            r"|(?:^|[: ])(?:Segmentation fault|Bus error|Illegal instruction|Aborted|Terminated)\b"
            r"|^make.*\*\*\* \[.*\] Error 1(?:3[0-9]|4[0-3])$"
        ),
        "a tool crashed",
    ),
    _Trouble(
        re.compile(r"^(?:ccache|sccache|distcc|icecc)\b.*(?:error|fail|cannot)", re.IGNORECASE),
        "the compiler's cache failed",
    ),
    _Trouble(
        re.compile(
            r"^(?:[^:|]+: )?(?:fatal )?error: (?:un(?:recogni[sz]ed|known|supported) "
            r".*(?:option|argument|target|emulation)|unsupported option|bad value)"
            r"|unrecognised emulation mode|invalid option -|unrecognized option"
        ),
        "the toolchain does not know an option of this architecture",
        "check that it is the one for this architecture; its output is in {log}",
        probed=True,
    ),
    _Trouble(
        re.compile(r"Kconfig\.include:\d+: (?:Sorry, this .* is not supported|.* not found)"),
        "the toolchain does not work",
    ),
    _Trouble(
        re.compile(
            r"^(?:\S*/)?(?:sh|bash|dash|env|\S+\.sh): .*not found$"
            r"|^(?:\S*/)?env: .*No such file or directory$|cannot execute|error trying to exec"
            r"|installation problem|ld: cannot find |unable to find library | is not available$"
            r"|error while loading shared libraries"
            r"|^make(?:\[\d+\])?: [^*]*: No such file or directory"
        ),
        "a tool is missing",
        "see: vfio-harness doctor",
        probed=True,
    ),
)
"""Failures of the host, even where make reports them like compiler errors."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """How far a build is."""

    phase: str
    done: int  # steps that make has announced
    total: int | None  # steps that the build is expected to take, None when unknown
    eta: float | None  # seconds left, None when unknown


Progress = Callable[[BuildProgress], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MakeResult:
    """What a successful make did."""

    steps: int
    compiled: int  # C files
    seconds: float
    cpu_seconds: float  # of make and all that it started


def ignore_progress(_progress: BuildProgress) -> None:
    """A Progress that does nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """How make is run on one tree."""

    tree: Path
    log: Path  # to which its output is appended
    arch: Arch
    toolchain: Toolchain
    compilers: int = 1
    progress: Progress = ignore_progress

    def run(
        self,
        arguments: Sequence[str],
        *,
        what: str,
        directory: str = "",
        expected_steps: int | None = None,
        mark: Path | None = None,
    ) -> MakeResult:
        """Run make in *directory* of the tree to its end.

        The file *mark* exists while make runs, and remains if SIGKILL ended make: only then may there be
        half-written files, because make removes its current target on any other signal.
        Raises BuildError with the first lines in which a tool or Kconfig refuses this source, HostError for
        every other failure.
        """
        argv = ["make", "-C", os.fspath(self.tree / directory), f"-j{self.compilers}"]
        argv += [f"ARCH={self.arch.name}", *self.toolchain.make_arguments, *arguments]
        start = time.monotonic()
        with self.log.open("ab") as sink, self.log.open("rb") as source:
            source.seek(0, os.SEEK_END)
            begin = source.tell()
            meter = _Meter(what, self.progress, expected_steps, start)
            with (
                _marked(mark) as running,
                process.spawn(argv, env=_STAMPS, stdout=sink, stderr=sink, whole_group=True) as child,
            ):
                running.append(child)
                while child.wait(Deadline.after(_WAIT_SECONDS)) is None:
                    meter.feed(source.read())
                meter.feed(source.read())
                status = child.status
            if status != 0:
                source.seek(begin)
                output = source.read().decode(errors="replace")
                if status is not None and status < 0:
                    hint = f"its output is in {self.log}"
                    raise HostError(f"{what}: make was killed by signal {-status}", hint=hint)
                outputs = [word.partition("=")[2] for word in arguments if word.startswith(("O=", "OUTPUT="))]
                raise _explain(what, output, self.log, _Sources(self.tree, directory, outputs))
        return MakeResult(
            steps=meter.steps,
            compiled=meter.compiled,
            seconds=time.monotonic() - start,
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
            (time.monotonic() - self.start) / self.steps * (total - self.steps)
            if total and self.steps >= 20
            else None
        )
        self.progress(BuildProgress(phase=self.phase, done=self.steps, total=total, eta=eta))


def _explain(what: str, output: str, log: Path, sources: _Sources) -> BuildError | HostError:
    """Return the error of a make that failed: the kernel's if a tool refused this source, else the host's."""
    every = _lines_of(output, sources)
    lines = list(dict.fromkeys(line.rstrip() for line in every if line.strip()))
    telling = [line for line in lines if not _EXCERPT.match(line)]
    if too_old := _too_old(lines):
        hint = "choose another with --toolchain"
        return BuildError(f"{what} failed: {too_old}", log=output, hint=hint, cause=Cause.KCONFIG)
    linking = any(_HOST_PROGRAM.match(line) for line in lines)
    refused = [line for line in telling if _is_about_source(line, sources, linking=linking)]
    probes = _lines_before_a_step(every) if refused else frozenset[str]()
    for trouble in _TROUBLES:
        for line in telling:
            if trouble.printed.search(line) and not _is_quotation(line):
                if trouble.probed and line in probes:
                    continue
                return HostError(
                    f"{what}: {trouble.message}: {line.strip()}", hint=trouble.hint.format(log=log)
                )
    for header in filter(None, map(_HOST_HEADER.fullmatch, telling)):
        if _LIBRARIES.fullmatch(header[1]) and find_header(header[1]) is None:
            return HostError(f"{what}: this host has no <{header[1]}>", hint="see: vfio-harness doctor")
    hint = f"the whole log: {log}"
    kconfig = [line for line in telling if _KCONFIG.match(line)]
    for cause, said in ((Cause.KCONFIG, kconfig), (Cause.COMPILER, refused)):
        if said:
            shown = " | ".join(line.strip() for line in said[:4])
            return BuildError(f"{what} failed: {shown}", log=output, hint=hint, cause=cause)
    shown = next(iter(_true_lines(telling)), "make printed nothing")
    return HostError(f"{what}: make failed, but no compiler refused the source: {shown}", hint=hint)


def _lines_of(output: str, sources: _Sources) -> list[str]:
    """Return the lines of *output*, with names from the top of the tree and places beside their errors."""
    if not sources.directory:
        output = _PARENT.sub("", output)
    return _PLACE.sub(r"\1\3 \2\4", output).splitlines()


def _too_old(lines: Sequence[str]) -> str:
    """Return which tool the tree refuses for its version, and which it wants; empty when it refuses none."""
    said = [" ".join(found[1].split()) for found in map(_TOO_OLD.fullmatch, lines) if found]
    return ", ".join(said) if any(words.endswith("too old") for words in said) else ""


def _lines_before_a_step(lines: Sequence[str]) -> frozenset[str]:
    """Return those of *lines* after which make went on: with a step, before it reported a failed one."""
    found: set[str] = set()
    goes_on = False
    for line in reversed(lines):
        goes_on = bool(_STEP.match(line)) or (goes_on and not _STOPPED.match(line))
        if goes_on:
            found.add(line.rstrip())
    return frozenset(found)


def _is_quotation(line: str) -> bool:
    """Whether a compiler diagnostic only quotes text that looks like host trouble, as #error may."""
    return bool(_DIAGNOSTIC.match(line)) and ": fatal error: " not in line.lower()


def _is_about_source(line: str, sources: _Sources, *, linking: bool) -> bool:
    """Whether a tool refuses the source in this line, or the tree lacks a file that its makefiles name.

    *linking* says that a program for the host could not be made: its linker does not refuse the kernel.
    """
    told = line.replace(f"{sources.tree}/", "")
    if any(pattern.match(told) for pattern in _REFUSED) or (not linking and _LINKER.match(told)):
        return True
    missing = _MISSING.match(line)
    return missing is not None and sources.lack(missing[1])


@dataclasses.dataclass(frozen=True, slots=True)
class _Sources:
    """The directories of the files that make names in its messages."""

    tree: Path
    directory: str  # of the tree, in which it runs
    outputs: Sequence[str]

    def lack(self, target: str) -> bool:
        """Whether *target* belongs to the tree, and nothing in the tree can make it."""
        output = next((place for place in self.outputs if target.startswith(f"{place}/")), None)
        name = target.removeprefix(f"{output}/")
        made = output is not None or name.endswith(".o")
        suffixes = ("", ".c", ".S", ".rs") if made else ("",)
        stem = name.removesuffix(".o") if made else name
        places = [self.tree / place / name for place in ("", self.directory)]
        found = [
            self.tree / place / f"{stem}{suffix}" for place in ("", self.directory) for suffix in suffixes
        ]
        return all(path.is_relative_to(self.tree) for path in places) and all(map(_is_absent, found))


def _is_absent(path: Path) -> bool:
    """Whether the file certainly does not exist; other I/O errors do not prove that."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _true_lines(lines: Sequence[str]) -> list[str]:
    """Return the most telling lines: error messages other than make's own; at least the last line."""
    spoken = [line.strip() for line in lines if not _MAKES_OWN.match(line)]
    errors = [
        line
        for line in spoken
        if re.search(r"[Ee]rror\b|\*\*\*|fatal|[Cc]annot|[Cc]an't|No such|(?i:failed)", line)
    ]
    return errors or spoken[-1:] or [line.strip() for line in lines[-1:]]

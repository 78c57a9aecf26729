# SPDX-License-Identifier: GPL-2.0-only
"""Test commits on the workers of a fleet: each builds with its own store and boots its own VMs."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shlex
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import InfraError, UsageError
from harness.base.host import default_compilers
from harness.base.output import tell
from harness.base.words import count_of
from harness.bisect.state import CommitRun, Status, StepOptions
from harness.bisect.step import ONE_VM, BuiltCommit, VMTester, make_runs
from harness.session.pool import FleetLost, Pool, take_in
from harness.session.wishes import OwnWish, split_program

Check = Callable[[], object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How commits are tested, on any host."""

    options: StepOptions
    files: bytes
    """An archive of the user's files that the options name, by their absolute paths; see unpacked()."""
    boot: bool
    conduct: tuple[str, ...]

    @classmethod
    def of(cls, options: StepOptions, *, boot: bool, conduct: Sequence[str]) -> Method:
        """Raises UsageError for files that cannot be read."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", dereference=True) as tar:
            for path in dict.fromkeys(map(os.path.normpath, _files(options))):
                try:
                    tar.add(path, path.lstrip("/"))
                except OSError as error:
                    raise UsageError(f"cannot read {error.filename or path}: {error.strerror}") from error
        return cls(options=options, files=buffer.getvalue(), boot=boot, conduct=tuple(conduct))

    def tester(self, check: Check, directory: Path, repository: Path) -> VMTester:
        """Return what tests commits of *repository* on this host, below *directory*."""
        files = directory / "files"
        files.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(fileobj=io.BytesIO(self.files), mode="r:gz") as tar:
                tar.extractall(files, filter="data")
        except tarfile.TarError as error:
            raise InfraError(f"the files for this test cannot be unpacked: {error}") from error
        return VMTester(
            os.fspath(repository),
            _moved(self.options, files),
            directory / "runs",
            boot=self.boot,
            conduct=self.conduct,
            check=check,
        )


def refuse_unportable(options: StepOptions) -> None:
    """Raise UsageError for *options* that mean this host alone."""
    for option, is_given in (
        ("--selftests", options.kernel.selftests is not None),
        ("--qemu", "--qemu" in options.machine),
    ):
        if is_given:
            raise UsageError(
                f"{option} names what is on this host: the workers of a fleet do not have it",
                hint=f"leave {option} out, or --fleet",
            )


def _files(options: StepOptions) -> Iterator[Path]:
    """The user's files: fragments, topologies, programs and probes."""
    yield from options.kernel.configs
    yield from (Path(word) for word in options.machine if word.startswith("/"))
    yield from (Path(split_program(program)[0]) for program in options.own.programs)
    if options.own.probes is not None:
        yield options.own.probes


def _moved(options: StepOptions, top: Path) -> StepOptions:
    """Return *options* for this host, with each of _files() below *top*."""

    def moved(path: str | os.PathLike[str]) -> Path:
        return top / os.path.normpath(path).lstrip("/")

    programs = map(split_program, options.own.programs)
    own = OwnWish(
        programs=tuple(shlex.join([os.fspath(moved(path)), *arguments]) for path, arguments in programs),
        needs=options.own.needs,
        probes=moved(options.own.probes) if options.own.probes is not None else None,
    )
    return dataclasses.replace(
        options,
        kernel=dataclasses.replace(
            options.kernel,
            configs=tuple(map(moved, options.kernel.configs)),
            compilers=default_compilers(),
        ),
        machine=tuple(str(moved(word)) if word.startswith("/") else word for word in options.machine),
        own=own,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Planted:
    """What differs from a commit."""

    commit: str
    file: str = ""
    text: str = ""

    def on(self, tester: VMTester) -> str:
        """Return the commit in the repository of *tester*."""
        return tester.plant(self.commit, self.file, self.text) if self.file else self.commit


def _build(
    check: Check, directory: Path, repository: Path, method: Method, planted: _Planted
) -> tuple[BuiltCommit | CommitRun, None, str]:
    tester = method.tester(check, directory, repository)
    built = tester.build(planted.on(tester))
    return built, None, _trouble(built)


def _run(
    check: Check,
    directory: Path,
    repository: Path,
    method: Method,
    planted: _Planted,
    cases: tuple[str, ...],
) -> tuple[CommitRun, Path | None, str]:
    tester = method.tester(check, directory, repository)
    run = tester.run(planted.on(tester), cases)
    return run, Path(run.run_dir) if run.run_dir else None, _trouble(run)


def _trouble(result: BuiltCommit | CommitRun) -> str:
    """Return why this host could not test it; a guest that is silent may also be the kernel's fault."""
    untested = isinstance(result, CommitRun) and result.status is Status.UNTESTED and not result.silent
    return result.why if untested and isinstance(result, CommitRun) else ""


class FleetTester:
    """The Tester that uses the workers of a pool."""

    is_elsewhere = True

    def __init__(
        self,
        pool: Pool,
        options: StepOptions,
        runs: Path,
        *,
        boot: bool = False,
        conduct: Sequence[str] = ONE_VM,
    ) -> None:
        """Runs come into the directory *runs*; *conduct* are options of `run`."""
        self._pool, self._runs = pool, runs
        self._method = Method.of(options, boot=boot, conduct=conduct)
        self._planted: dict[str, _Planted] = {}
        self._built: dict[str, Any] = {}
        """Commit -> the Future of its build, which is where its kernel is."""
        self._suspect: dict[str, str] = {}
        """Commit -> the address of a worker on which no guest came up."""

    @property
    def width(self) -> int:
        """How many commits are tested at once: as many as there are workers now."""
        return max(1, self._pool.width)

    def plant(self, commit: str, file: str, text: str) -> str:
        name = hashlib.sha256(f"{commit}\n{file}\n{text}".encode()).hexdigest()[:40]
        self._planted[name] = _Planted(commit=commit, file=file, text=text)
        return name

    def build(self, commit: str) -> BuiltCommit | CommitRun:
        try:
            answer, self._built[commit] = self._pool.call(
                _build, self._method, self._what(commit), name=commit
            )
        except FleetLost:
            raise
        except InfraError as error:
            return _failed(error)
        built: BuiltCommit | CommitRun = answer.value or _failed(InfraError(answer.trouble))
        return built

    def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
        try:
            answer, _ = self._pool.call(
                *(_run, self._method, self._what(commit), cases),
                name=commit,
                after=self._built.get(commit),
                # Whether host or kernel is to blame, another host can tell.
                avoid=self._suspect.get(commit, ""),
            )
        except FleetLost:
            raise
        except InfraError as error:
            return _failed(error)
        run: CommitRun = answer.value or _failed(InfraError(answer.trouble))
        if run.status not in (Status.PASSES, Status.FAILS):
            self._suspect[commit] = answer.address
        if answer.dropped:
            files = count_of(answer.dropped, "file")
            tell(
                f"fleet: {files} of {answer.name} stayed on {answer.worker}, which keeps them for three days"
            )
        if not answer.name:
            return run
        make_runs(self._runs)
        take_in(answer.packed, self._runs / answer.name)
        return dataclasses.replace(run, run_dir=os.fspath(self._runs / answer.name))

    def release(self, commit: str) -> None:
        for known in (self._built, self._suspect, self._planted):
            known.pop(commit, None)

    def drop(self, commit: str) -> None:
        self._pool.drop(commit)

    def _what(self, commit: str) -> _Planted:
        return self._planted.get(commit, _Planted(commit=commit))


def _failed(error: InfraError) -> CommitRun:
    return CommitRun(status=Status.UNTESTED, why=error.message, hint=error.hint or "")

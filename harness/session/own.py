# SPDX-License-Identifier: GPL-2.0-only
"""Read the user's own programs and probes, check them for the guest, and compile them."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import HostError, InfraError, KernelError, NoCase, UsageError
from harness.kernel import elf
from harness.kernel.arch import Arch, host_arch
from harness.kernel.make import Progress, ignore_progress
from harness.kernel.programs import Taken, provide_program, take_probes, take_program
from harness.kernel.provide import SelftestPlan, plan_selftests
from harness.kernel.store import digest_of
from harness.kernel.toolchain import find_toolchain
from harness.kernel.trees import KernelTree
from harness.machine.hostfiles import GUEST_PATH
from harness.machine.rootparts import Root
from harness.machine.roots import find_root
from harness.plan import Job, Own, OwnProgram
from harness.session.planning import PlannedKernel, build_progress
from harness.session.wishes import OwnWish, split_program
from harness.suites.own import SUITE, check_needs
from harness.suites.probes import import_own
from harness.suites.programs import DEFAULT_SECONDS
from harness.suites.registry import suite_named

NO_PROGRAM = f"the suite {SUITE} has no program"

OWN_DIRECTORY = "own"
"""The directory of a run with copies of the user's programs and probes."""

_PROBES = "probes"
"""The directory in there with the copies of probes."""

_COMPILES = "import sys; compile(open(sys.argv[1], 'rb').read(), sys.argv[1], 'exec')"
_ASK_SECONDS = 60.0

_TIMEOUT = re.compile(r"^timeout=(\d{1,18})$", re.MULTILINE)
"""The limit in a directory's file `settings` (tools/testing/selftests/kselftest/runner.sh)."""

_WITHOUT_LIMIT = 24 * 3600
"""What `timeout=0` means here."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TakenOwn:
    """An OwnWish whose files are in the store, as they were when they were read."""

    wish: OwnWish
    programs: tuple[tuple[Taken, tuple[str, ...]], ...]
    """Each with its arguments."""
    probes: Taken | None

    @property
    def has_source(self) -> bool:
        """Whether a program has to be compiled."""
        return any(taken.is_source for taken, _ in self.programs)

    def recorded(self, suites: Sequence[str]) -> tuple[str, ...]:
        """Return *suites* as the results have them: `own/mytest@3fa1c2` for each program in place of `own`.

        The digest changes with files and arguments: what another program printed is not missing.
        """
        programs = tuple(
            f"{SUITE}/{taken.name}@{digest_of(taken.digest, *arguments)[:6]}"
            for taken, arguments in self.programs
        )
        return tuple(word for suite in suites for word in (programs if suite == SUITE else (suite,)))

    def kept_in(self, directory: Path) -> OwnWish:
        """Return the wish for the copies that keep() makes in *directory*."""
        programs = tuple(
            shlex.join([os.fspath(taken.place_in(directory)), *arguments])
            for taken, arguments in self.programs
        )
        probes = self.probes.place_in(directory / _PROBES) if self.probes else None
        return dataclasses.replace(self.wish, programs=programs, probes=probes)

    def keep(self, directory: Path) -> None:
        """Copy everything into *directory*, where it may be already.  Raises OSError."""
        for taken, _ in self.programs:
            taken.copy_to(directory)
        if self.probes:
            self.probes.copy_to(directory / _PROBES)

    def compiled(
        self,
        plan: SelftestPlan | None,
        *,
        compilers: int,
        progress: Progress = ignore_progress,
        build: bool = True,
    ) -> Own:
        """Compile the programs as *plan* says, and return all as a Job has it.

        A program that does not compile has a `problem`.  Without *build* nothing is compiled.
        Raises BuildError and InfraError.
        """
        found = []
        for taken, arguments in self.programs:
            digest = problem = ""
            try:
                if build:
                    digest = provide_program(plan, taken, compilers=compilers, progress=progress)
            except UsageError as error:
                problem = str(error)
            found.append(
                OwnProgram(
                    name=taken.name,
                    digest=digest,
                    main=taken.executable,
                    arguments=arguments,
                    needs=self.wish.needs,
                    seconds=_seconds(taken),
                    problem=problem,
                )
            )
        return Own(programs=tuple(found), probes=self.probes.digest if self.probes else "")


NOTHING = TakenOwn(wish=OwnWish(), programs=(), probes=None)


def take(wish: OwnWish, root: str | None, arch: Arch | None = None) -> TakenOwn:
    """Read what *wish* names into the store, for guests of this host or *arch* with *root*.

    Without a *root* that was checked before.

    Raises UsageError for what cannot run there, InfraError for host trouble.
    """
    check_needs(wish.needs)
    if wish.needs and not wish.programs:
        raise UsageError("--needs is about your own program", hint="add --program PATH")
    programs: dict[str, tuple[Taken, tuple[str, ...]]] = {}
    for text in wish.programs:
        path, arguments = split_program(text)
        taken = take_program(path)
        if taken.name in programs:
            raise UsageError(f"--program: two are called {taken.name!r}", hint="rename one of them")
        if root is not None:
            main = path / taken.main if taken.is_directory else path
            _check_for_guest(taken, main, root, arch or host_arch())
        programs[taken.name] = taken, tuple(arguments)
    probes = _take_probes(wish.probes) if wish.probes is not None else None
    return TakenOwn(wish=wish, programs=tuple(programs.values()), probes=probes)


def _take_probes(path: Path) -> Taken:
    """Read the probes in the directory *path*, and import them, which checks their declarations."""
    taken = take_probes(path)
    for file in sorted(taken.entry.glob("*.py")):
        _check_module(file, path / file.name)
    import_own(taken.digest, path)
    return taken


def _check_module(file: Path, name: Path) -> None:
    """Refuse a module of probes, which the user calls *name*, that the guest's Python cannot import."""
    try:
        tree = ast.parse(file.read_bytes(), os.fspath(name))
    except SyntaxError as error:
        raise UsageError(f"--probes: {name}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except ValueError as error:
        raise UsageError(f"--probes: {name}: {error}") from error
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)) or getattr(node, "level", False):
            continue
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for module in (full.partition(".")[0] for full in named):
            if module not in sys.stdlib_module_names and module != "guest":
                raise UsageError(
                    f"--probes: {name}:{node.lineno}: guests have no module {module!r}",
                    hint="probes use Python's standard library and the package guest",
                )


def _check_for_guest(taken: Taken, path: Path, root: str, arch: Arch) -> None:
    """Refuse a program, which the user calls *path*, that guests of *arch* with *root* cannot run."""
    file = taken.entry / taken.main
    if taken.is_source:
        return
    if taken.main.endswith(".py"):
        _check_python(file, path)
    elif elf.is_elf(file):
        _check_elf(file, path, find_root(root, arch), taken, arch)
    else:
        words = file.read_bytes().split(b"\n", 1)[0][2:].decode(errors="replace").split()
        if words[1:] and words[0].endswith("/env") and not words[1].startswith("-"):
            words = [f"/usr/bin/{words[1]}"]
        if not words or not find_root(root, arch).has(words[0]):
            missing = words[0] if words else "a program after #!"
            raise UsageError(
                f"--program: {path} needs {missing}, which guests of --root {root} do not have",
                hint="--root virtme has it"
                if words and arch.is_host and find_root("virtme", arch).has(words[0])
                else None,
            )


def _guest_python() -> str:
    python = process.find_tool("python3", path=GUEST_PATH)
    if python is None:
        raise HostError("python3 is missing", hint="run `vfio-harness doctor --fix`")
    return python


def _check_python(file: Path, path: Path) -> None:
    argv = [_guest_python(), "-I", "-S", "-c", _COMPILES, os.fspath(file)]
    done = process.run(argv, deadline=Deadline.after(_ASK_SECONDS))
    if not done.ok:
        said = done.stderr.strip().splitlines()
        lines = [match[1] for text in said if (match := re.search(r'File ".*", line (\d+)$', text))]
        place = f"{path}:{lines[-1]}" if lines else f"{path}"
        raise UsageError(f"--program: {place}: {said[-1] if said else 'it cannot be compiled'}")


def _check_elf(file: Path, path: Path, root: Root, taken: Taken, arch: Arch) -> None:
    try:
        found, loader = elf.read_elf(file).machine, elf.read_elf(file).loader
    except HostError as error:
        told = str(error).replace(os.fspath(file), os.fspath(path))
        raise UsageError(f"--program: {told}") from error
    if found != arch.elf_machine:
        raise UsageError(f"--program: {path} is built for another architecture than {arch.name}, the guest's")
    if lacks := _lacks(file, loader, taken, root):
        here = arch.is_host and not _lacks(file, loader, taken, find_root("virtme", arch))
        elsewhere = ", or use --root virtme" if here else ""
        raise UsageError(
            f"--program: {path} needs {lacks[0]}, which guests of --root {root.name} do not have",
            hint=f"link it statically{elsewhere}",
        )


def _lacks(file: Path, loader: str, taken: Taken, root: Root) -> list[str]:
    """Return what *file* with the *loader* needs and guests of *root* lack."""
    if loader and not root.has(loader):
        return [loader]
    return list(_missing_libraries(file, taken, root.has)) if loader else []


def _missing_libraries(file: Path, taken: Taken, has: Callable[[str], bool]) -> Iterator[str]:
    """Yield the libraries of *file*, and their versions, that guests lack; ldd(1) runs the loader only."""
    done = process.run(["ldd", file], deadline=Deadline.after(_ASK_SECONDS))
    for line in f"{done.stderr}\n{done.stdout}".splitlines():
        if (version := re.search(r"version `(.+)' not found", line)) is not None:
            yield version[1]
        elif (found := re.match(r"\s*(\S+) => (?:(/\S+) \(0x|not found)", line)) is not None:
            ours = found[2] is not None and Path(found[2]).is_relative_to(taken.entry)
            if not ours and (found[2] is None or not has(found[2])):
                yield found[1]


def with_own(planned: PlannedKernel, own: Iterable[TakenOwn], *, build: bool = True) -> PlannedKernel:
    """Return *planned* with *own* as TakenOwn.compiled() returns it, or with the problem that there is."""
    if planned.plan is None:
        return planned
    found: dict[OwnWish, Own] = {}
    try:
        with build_progress(planned.wish.variant, sys.stderr) as progress:
            for one in own:
                plan = _plan_build(planned) if one.has_source else None
                compilers = planned.wish.compilers
                found[one.wish] = one.compiled(plan, compilers=compilers, progress=progress, build=build)
    except (KernelError, InfraError) as error:
        return dataclasses.replace(planned, plan=None, problem=error)
    return dataclasses.replace(planned, own=found)


def _plan_build(planned: PlannedKernel) -> SelftestPlan | None:
    """Return how sources are compiled for *planned*; None for a finished kernel without a tree."""
    assert planned.plan is not None
    tree = planned.tree if isinstance(planned.tree, KernelTree) else planned.tests
    toolchain = find_toolchain(planned.wish.toolchain)
    return plan_selftests(planned.plan, tree, toolchain=toolchain) if tree is not None else None


def refuse_useless(jobs: Collection[Job]) -> None:
    """Refuse programs that can run in none of *jobs*.

    Raises UsageError for one that does not compile, NoCase for one whose needs are not met.
    """
    suite = suite_named(SUITE)
    works = [work for job in jobs if SUITE in job.suites for work in suite.work(job)]
    for name in dict.fromkeys(work.program for work in works):
        mine = [work for work in works if work.program == name]
        if any(work.refusal is None for work in mine):
            continue
        problems = [work.payload[0].problem for work in mine]
        if all(problems):
            raise UsageError(problems[0])
        where = "this job" if len(mine) == 1 else f"any of these {len(mine)} jobs"
        reason = next(work.refusal for work in mine if not work.payload[0].problem)
        hint = "see --needs, --variant and --topology"
        raise NoCase(f"{name} does not run in {where}: {reason}", hint=hint)


def _seconds(taken: Taken) -> float:
    settings = taken.entry / "settings"
    text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    found = _TIMEOUT.search(text)
    return float(int(found[1]) or _WITHOUT_LIMIT) if found is not None else float(DEFAULT_SECONDS)

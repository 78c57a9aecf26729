# SPDX-License-Identifier: GPL-2.0-only
"""The real Judge: builds a commit into the store, and runs the cases in a fresh VM.

The build happens in this process, where its errors are values.  The test is a `vfio-harness run` of its own:
pytest keeps state between two calls in one process, a harness that dies takes only one VM's word with it, and
the run directory that is left is the one that people know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import itself, process
from harness.bisect.hunt import Prepared
from harness.bisect.looking import observe
from harness.bisect.model import Aim, Observation, Sight
from harness.bisect.state import Quarry
from harness.deadline import Deadline
from harness.errors import ExitCode, HarnessError, InfraError, KernelError, NotApplicable, UsageError
from harness.host import default_compilers
from harness.kernel.kconfig import read_fragment
from harness.kernel.make import Progress
from harness.kernel.store import Kernel, provide_kernel
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
from harness.results import load

BOOT_CASE = "probes/nodes/iommufd_node_is_for_its_group"
"""What is run when the boot alone counts: it applies to every variant."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a commit is tested."""

    variant: str
    addons: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    jobs: int
    machine: tuple[str, ...] = ()
    """Options of `run`."""
    suites: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    """What was asked for, until the hunt knows better."""
    keyword: str = ""
    boot: bool = False
    selftests: bool = False
    """Whether the suites need the tree's own selftests."""

    @classmethod
    def of(cls, quarry: Quarry, aim: Aim, *, selftests: bool) -> Trial:
        """How the commits of *quarry* are tested."""
        nothing_else = aim.boot and not quarry.keyword
        return cls(
            variant=quarry.variant,
            addons=quarry.addons,
            configs=quarry.configs,
            jobs=quarry.jobs or default_compilers(),
            machine=quarry.machine,
            suites=quarry.suites,
            cases=quarry.cases or ((BOOT_CASE,) if nothing_else else ()),
            keyword=quarry.keyword,
            boot=aim.boot,
            selftests=selftests,
        )

    def options(self, hunted: Sequence[str] = ()) -> list[str]:
        """The options of `run`, but for the tree."""
        words = ["--variant", self.variant]
        words += [word for addon in self.addons for word in ("--with", addon)]
        words += [word for config in self.configs for word in ("--config", config)]
        words += self.machine
        words += [word for suite in self.suites for word in ("--suite", suite)]
        words += [word for case in hunted or self.cases for word in ("--case", case)]
        words += ["-k", self.keyword] if self.keyword and not hunted else []
        return words


BuildShown = Callable[[str], contextlib.AbstractContextManager[Progress]]


class RealJudge:
    """Builds kernels and boots VMs."""

    def __init__(self, spec_of: Callable[[str], str], trial: Trial, runs: Path, shown: BuildShown) -> None:
        self._spec_of = spec_of
        self._trial = trial
        self._runs = runs
        self._shown = shown

    def prepare(self, commit: str) -> Prepared | Observation:
        """Build *commit*, or say why that cannot be."""
        began = time.monotonic()
        trial = self._trial
        try:
            with self._shown(commit[:12]) as progress:
                kernel = provide_kernel(
                    open_tree(self._spec_of(commit)),
                    load_catalogue().variant(trial.variant),
                    trial.addons,
                    [read_fragment(Path(config)) for config in trial.configs],
                    jobs=trial.jobs,
                    progress=progress,
                    with_selftests=trial.selftests,
                )
        except (KernelError, InfraError, UsageError) as error:
            seconds = time.monotonic() - began
            return Observation(
                sight=_sight_of(error), why=error.message, hint=error.hint or "", seconds=seconds
            )
        return Prepared(content=content_of(kernel), seconds=time.monotonic() - began)

    def look(self, commit: str, hunted: Sequence[str]) -> Observation:
        """Boot it in a fresh VM and run *hunted*, or what was asked for."""
        make_runs(self._runs)
        words = [
            "run",
            "--json",
            "--no-compare",
            "-n",
            "0",
            "--no-snapshots",
            "--tree",
            self._spec_of(commit),
        ]
        began = time.monotonic()
        done = self._run(
            [*words, *self._trial.options(hunted)], f"{len(list(self._runs.iterdir()))}-{commit[:12]}"
        )
        seconds = time.monotonic() - began
        directory = _directory_in(done.stdout)
        if directory:
            return observe(load(Path(directory)), hunted=hunted, boot=self._trial.boot, seconds=seconds)
        return _without_run(done, seconds)

    def _run(self, words: Sequence[str], name: str) -> process.Completed:
        """`vfio-harness WORDS`, with what it says kept beside its runs."""
        env = {**itself.env(), "VFIO_HARNESS_RUNS": os.fspath(self._runs)}
        argv = itself.argv(words)
        out, err = (self._runs / f"{name}.{stream}" for stream in ("json", "log"))
        with (
            out.open("wb") as stdout,
            err.open("wb") as stderr,
            process.spawn(argv, env=env, stdout=stdout, stderr=stderr, whole_group=True) as child,
        ):
            child.wait(Deadline.after(itself.LONGEST_RUN_SECONDS))
            status = child.status
        text, log = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
        out.unlink()
        return process.Completed(tuple(argv), status if status is not None else -9, text, log)


def make_runs(directory: Path) -> None:
    """Make the *directory* of the runs, of which git must know nothing.

    By default it is in the current directory, which may be the very tree that is judged: a file that git
    sees there is a change of the tree, and what was just built is not what would be run.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".gitignore").write_text("*\n", encoding="ascii")
    except OSError as error:
        raise InfraError(f"cannot write {error.filename}: {error.strerror}") from error


def _sight_of(error: HarnessError) -> Sight:
    match error:
        case InfraError():
            return Sight.NO_CHANCE
        case NotApplicable():
            return Sight.MISSING
        case UsageError():
            return Sight.REFUSED
        case _:
            return Sight.UNBUILDABLE


def _directory_in(text: str) -> str:
    """The run directory that a JSON report names; empty when it is none."""
    with contextlib.suppress(ValueError):
        plain = json.loads(text)
        if isinstance(plain, dict):
            return str(plain.get("directory", ""))
    return ""


def _without_run(done: process.Completed, seconds: float) -> Observation:
    """What a run came to that left no report."""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    error = next((line for line in said if line.startswith("error: ")), said[-1] if said else done.ending)
    why = error.removeprefix("error: ")
    if done.status == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    sight = Sight.NO_CHANCE
    if done.status == ExitCode.USAGE:
        sight = Sight.MISSING if why.startswith("no case matches") else Sight.REFUSED
    return Observation(sight=sight, why=why, seconds=seconds)


def content_of(kernel: Kernel) -> str:
    """A digest of all of *kernel* that a guest can see.

    The linker's build-id is a digest of vmlinux.  Builds carry fixed stamps and no commit, so equal code is
    an equal image.
    """
    parts = [kernel.build_id, os.fspath(kernel.selftests.name) if kernel.selftests else ""]
    if kernel.modules_dir is not None:
        parts += list(_file_digests(kernel.modules_dir))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _file_digests(directory: Path) -> Iterator[str]:
    for path in sorted(directory.rglob("*.ko*")):
        with path.open("rb") as file:
            yield f"{path.relative_to(directory)} {hashlib.file_digest(file, 'sha256').hexdigest()}"

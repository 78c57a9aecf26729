# SPDX-License-Identifier: GPL-2.0-only
"""Test one commit: build it, then run it in as many fresh VMs as a verdict needs.

The build happens in this process, where its errors are values.  Each test is a `vfio-harness run` of its own:
pytest keeps state between two calls in one process, a harness that dies takes only one run with it, and the
run directory that is left is an ordinary one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.base import itself, process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode, HarnessError, InfraError, KernelError, NotApplicable, UsageError
from harness.base.words import count_of
from harness.bisect.state import CommitRun, GitVerdict, Rules, Status, Step, StepOptions
from harness.bisect.verdict import decide, read_run
from harness.kernel import gittree
from harness.kernel.arch import find_arch
from harness.kernel.kconfig import read_fragment
from harness.kernel.make import BuildProgress
from harness.kernel.plan import plan_kernel
from harness.kernel.provide import Kernel, plan_selftests, provide_kernel
from harness.kernel.toolchain import find_toolchain
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
from harness.results.store import load
from harness.session import planning
from harness.session.own import take
from harness.session.planning import build_progress

BOOT_CASE = "probes/nodes/iommufd_node_is_for_its_group"
"""The case that is run when only the boot counts: it applies to every variant."""


ONE_VM = ("-n", "0", "--no-snapshots")
"""Options of `run` for one verdict in one fresh VM."""


RUNS_NAME = "runs"
"""The directory of the runs of a bisect or a mutation, in its own directory."""

_CHECK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltCommit:
    """A kernel that can be booted."""

    image: str
    """Digest of everything that will be booted."""
    seconds: float


class Tester(Protocol):
    """Builds commits and tests them."""

    is_elsewhere: bool
    """Whether that is done on other hosts, several commits at once."""

    @property
    def width(self) -> int:
        """How many commits are tested at once."""
        ...

    def plant(self, commit: str, file: str, text: str) -> str:
        """Return the name of what differs from *commit* in *file*, for build() and run()."""
        ...

    def build(self, commit: str) -> BuiltCommit | CommitRun:
        """Build *commit*, or return why that is not possible."""
        ...

    def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
        """Run *cases* in a fresh VM; the cases that were asked for when there are none."""
        ...

    def drop(self, commit: str) -> None:
        """End the test of *commit*, which another thread waits for."""
        ...

    def release(self, commit: str) -> None:
        """Forget *commit*, which is tested for now."""
        ...


class VMTester:
    """The Tester of this host."""

    is_elsewhere = False
    width = 1

    def __init__(
        self,
        tree: str,
        options: StepOptions,
        runs: Path,
        *,
        boot: bool = False,
        as_is: bool = False,
        conduct: Sequence[str] = ONE_VM,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """Test commits of the repository *tree*; with *as_is*, the tree as it is for every commit.

        *conduct* are options of `run`; *check*, called again and again, may raise to end a build or a run.
        """
        self._tree = tree
        self._options = options
        self._runs = runs
        self._boot = boot
        self._as_is = as_is
        self._conduct = conduct
        self._check = check

    def plant(self, commit: str, file: str, text: str) -> str:
        return gittree.commit_with(Path(self._tree), commit, file, text)

    def drop(self, commit: str) -> None:
        """Nothing to do: one commit is tested at a time."""

    def release(self, commit: str) -> None:
        """Nothing to do: nothing is kept."""

    def _tree_of(self, commit: str) -> str:
        return self._tree if self._as_is else f"{self._tree}@{commit}"

    def build(self, commit: str) -> BuiltCommit | CommitRun:
        began = time.monotonic()
        options, wish = self._options, self._options.kernel
        try:
            tree, variant = open_tree(self._tree_of(commit)), load_catalogue().variant(wish.variant)
            fragments = [read_fragment(config) for config in wish.configs]
            toolchain, arch = find_toolchain(wish.toolchain), find_arch(wish.arch)
            with build_progress(commit[:12], sys.stderr) as shown:

                def progress(state: BuildProgress) -> None:
                    self._check()
                    shown(state)

                # Before the kernel: a program that does not compile cannot test it.
                own: tuple[str, ...] = ()
                if options.own.programs:
                    plan = plan_kernel(tree, variant, wish.addons, fragments, toolchain=toolchain, arch=arch)
                    headers = plan_selftests(plan, tree)
                    taken = take(options.own, None)
                    compiled = taken.compiled(headers, compilers=wish.compilers, progress=progress)
                    for program in compiled.programs:
                        if program.problem:
                            raise UsageError(program.problem)
                    own = compiled.digests
                kernel = provide_kernel(
                    tree,
                    variant,
                    wish.addons,
                    fragments,
                    toolchain=toolchain,
                    arch=arch,
                    compilers=wish.compilers,
                    progress=progress,
                    with_selftests=planning.needs_selftests(options.suites),
                    selftests_of=open_tree(wish.selftests) if wish.selftests is not None else None,
                )
        except (KernelError, InfraError, UsageError) as error:
            seconds = time.monotonic() - began
            return CommitRun(
                status=_error_status(error), why=error.message, hint=error.hint or "", seconds=seconds
            )
        image = image_digest(kernel, own)
        return BuiltCommit(image=image, seconds=time.monotonic() - began)

    def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
        make_runs(self._runs)
        words = ["run", "--json", "--no-compare", *self._conduct, "--tree", self._tree_of(commit)]
        began = time.monotonic()
        name = f"{len(list(self._runs.iterdir()))}-{commit[:12]}"
        done = self._call([*words, *self._options.words(cases)], name)
        seconds = time.monotonic() - began
        report = _parse(done.stdout)
        if "directory" in report:
            run = load(Path(str(report["directory"])))
            return read_run(run, cases=cases, boot=self._boot, seconds=seconds)
        return _without_report(done, report.get("error"), seconds)

    def _call(self, words: list[str], name: str) -> process.Completed:
        """Call `vfio-harness WORDS`; its stderr stays beside its runs."""
        env = {**itself.env(), "VFIO_HARNESS_RUNS": os.fspath(self._runs)}
        argv = itself.argv(words)
        out, err = (self._runs / f"{name}.{stream}" for stream in ("json", "log"))
        with (
            out.open("wb") as stdout,
            err.open("wb") as stderr,
            process.spawn(argv, env=env, stdout=stdout, stderr=stderr, whole_group=True) as child,
        ):
            deadline = Deadline.after(itself.LONGEST_RUN_SECONDS)
            while child.wait(deadline.within(_CHECK_SECONDS)) is None and not deadline.expired:
                self._check()
            status = child.status
        text, log = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
        out.unlink()
        return process.Completed(tuple(argv), status if status is not None else -9, text, log)


def run_step(
    tester: Tester,
    step: Step,
    rules: Rules,
    cases: tuple[str, ...] = (),
    *,
    wary: bool = False,
    usual: Collection[str] = (),
    tested_image: Callable[[str], Step | None] = lambda image: None,
    on_run: Callable[[Step], None] = lambda step: None,
) -> Step:
    """Test the commit of *step*, which may have some runs already; *on_run* is called after each run.

    *wary* and *usual* are those of decide(); *tested_image* returns an earlier step with the same image.
    """
    try:
        return _tested(tester, step, rules, cases, wary, usual, tested_image, on_run)
    finally:
        tester.release(step.commit)


def _tested(
    tester: Tester,
    step: Step,
    rules: Rules,
    cases: tuple[str, ...],
    wary: bool,
    usual: Collection[str],
    tested_image: Callable[[str], Step | None],
    on_run: Callable[[Step], None],
) -> Step:
    built = tester.build(step.commit)
    if isinstance(built, CommitRun):
        return dataclasses.replace(step, status=built.status, why=built.why, runs=(built,))
    step = dataclasses.replace(step, image=built.image, build_seconds=step.build_seconds + built.seconds)
    twin = tested_image(built.image)
    if twin is not None:
        return dataclasses.replace(step, status=twin.status, why=twin.why, same_as=twin.commit)
    while (decided := decide(step, rules, wary=wary, usual=usual)) is None:
        step = dataclasses.replace(step, runs=(*step.runs, tester.run(step.commit, cases)))
        on_run(step)
    return decided


def describe(step: Step, rules: Rules) -> str:
    """Return the verdict of *step* in one line."""
    verdict = rules.verdict(step.status)
    word = rules.word(verdict).upper()
    word += f", {step.status.value}" if verdict is GitVerdict.SKIP else ""
    if step.same_as:
        return f"{word}: same image as {step.same_as[:12]}, built in {step.build_seconds:.0f} s"
    return f"{word}: {step.why}{cost(step)}"


def cost(step: Step) -> str:
    """Return the build time, the number of VMs and their time, in parentheses."""
    words = [f"build {step.build_seconds:.0f} s"] if step.build_seconds else []
    if step.vms:
        words.append(f"{count_of(step.vms, 'VM')} {step.seconds - step.build_seconds:.0f} s")
    return f" ({', '.join(words)})" if words else ""


def make_runs(directory: Path) -> None:
    """Make the *directory* of the runs, ignored by git.

    By default it is in the current directory, which may be the tree that is tested: a file that git sees
    there changes the tree, and what was just built would not be what is run.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".gitignore").write_text("*\n", encoding="ascii")
    except OSError as error:
        raise InfraError(f"cannot write {error.filename or directory}: {error.strerror}") from error


def _error_status(error: HarnessError) -> Status:
    match error:
        case InfraError():
            return Status.UNTESTED
        case NotApplicable():
            return Status.MISSING
        case UsageError():
            return Status.INVALID
        case _:
            return Status.NO_BUILD


def _parse(text: str) -> dict[str, Any]:
    """The JSON document that `run --json` printed; empty when it is none."""
    with contextlib.suppress(ValueError):
        plain = json.loads(text)
        if isinstance(plain, dict):
            return plain
    return {}


def _without_report(done: process.Completed, error: Any, seconds: float) -> CommitRun:
    """Return the result of a run that ended without a report, with *error* if the run printed one."""
    if done.status == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    told = error if isinstance(error, dict) else {}
    said = [line for line in done.stderr.splitlines() if line.strip()]
    status = Status.UNTESTED
    if done.status == ExitCode.USAGE:
        status = Status.MISSING if told.get("cause") == Cause.NO_CASE else Status.INVALID
    return CommitRun(
        status=status,
        why=told.get("message") or (said[-1] if said else f"vfio-harness run {done.ending}"),
        hint=told.get("hint") or "",
        seconds=seconds,
    )


def image_digest(kernel: Kernel, programs: Iterable[str] = ()) -> str:
    """Return a digest of everything of *kernel* that a guest can see, and of own *programs*.

    The linker's build-id is a digest of vmlinux.  Builds have fixed time stamps and do not contain their
    commit, so equal code gives an equal image.
    """
    parts = [kernel.build_id, os.fspath(kernel.selftests.name) if kernel.selftests else "", *programs]
    if kernel.modules_dir is not None:
        parts += list(_file_digests(kernel.modules_dir))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _file_digests(directory: Path) -> Iterator[str]:
    for path in sorted(directory.rglob("*.ko*")):
        with path.open("rb") as file:
            yield f"{path.relative_to(directory)} {hashlib.file_digest(file, 'sha256').hexdigest()}"

# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness bisect-step`: test the tree as it is, for `git bisect run`.

bisect keeps its own steps (harness.bisect.state); a bisect-step that git starts knows nothing of the one
before it, so the steps are kept in the cache, and an image that was tested before keeps its verdict.  A step
is found again only when everything that decides it is the same: the image, the cases, the machine, how
failures are confirmed, and the harness's own files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from harness.base import paths, values
from harness.base.errors import GIT_SKIP, ExitCode, InfraError, UsageError
from harness.base.locks import locked
from harness.base.output import emit, tell
from harness.bisect.state import End, GitVerdict, Rules, Status, Step, StepOptions
from harness.bisect.step import VMTester, describe, run_step
from harness.cli import options
from harness.cli.bisect_options import Asked, shared_options
from harness.kernel.trees import open_tree
from harness.session import planning
from harness.suites.own import SUITE as OWN_SUITE

FORMAT = 2
"""Format of the file with the steps: raise it when a field changes meaning; older steps are then ignored."""

KEPT = 500
"""How many steps are kept, the latest ones: some hundred bytes each."""

_SOURCES = frozenset({".py", ".c", ".sh", ".yaml", ".config"})


@click.command("bisect-step")
@options.tree_option_without("the current directory")
@shared_options
@click.option("--find-fix", is_flag=True, help="Exit with 1 if the tree passes and with 0 if it fails.")
@click.option(
    "--missing-fails",
    is_flag=True,
    help="A tree without the variant, or to which the case does not apply, counts as failing.",
)
def command(tree: str | None, asked: Asked, find_fix: bool, missing_fails: bool) -> int:
    """Test the tree as it is, for `git bisect run`.

    Exit codes: 0 good, 1 bad, 125 cannot be tested, 128 wrong use, which stops git bisect.

    It decides like bisect: a failure counts when a second VM shows it too, failures of the host never count,
    and an image that was tested before keeps its verdict.  With --boot, a kernel that hangs silently is
    skipped: only bisect can compare it with an end that boots.

    \b
    Example:
      git bisect run vfio-harness bisect-step --case probes/get_pa/gap_ends_the_length
    """
    rules = Rules(find_fix=find_fix, boot=asked.boot, missing_fails=missing_fails, repeat=asked.repeat)
    spec = tree or os.fspath(Path.cwd())
    tell(f"accelerator: {asked.check()}")
    found = open_tree(spec)
    here = End(name=found.label, commit=found.commit or found.identity)
    step_options = asked.step_options()
    runs = paths.runs_dir() / "bisect-step"
    tester = VMTester(spec, step_options, runs, boot=rules.boot, as_is=True)
    # The same name may be another program by now.
    own = asked.taken.recorded((OWN_SUITE,)), asked.taken.probes
    decided_by = deciding(step_options, rules, (*_machine_of(asked), str(own)))
    step = run_step(
        tester,
        Step(commit=here.commit, subject=here.name),
        rules,
        tested_image=lambda image: recall(image, decided_by),
    )
    remember(step, decided_by)
    if step.status is Status.INVALID:
        # It is unknown here whether only this commit is broken, so the user of git decides.
        raise UsageError(step.why, hint=step.hint)
    emit(f"{here.name}: {describe(step, rules)}")
    if step.same_as:
        tell(f"it was tested then: {step.why}\nto test it again: rm {memory_path()}")
    for run in step.runs:
        if run.run_dir:
            tell(f"everything is in {run.run_dir}")
    codes = {GitVerdict.OLD: ExitCode.GOOD, GitVerdict.NEW: ExitCode.CASE_FAILED, GitVerdict.SKIP: GIT_SKIP}
    return codes[rules.verdict(step.status)]


def _machine_of(asked: Asked) -> tuple[str, ...]:
    """What decides about the machine and is not in its options."""
    qemu, choice = planning.choose(asked.machine, asked.kernel.arch)
    own = Path(asked.machine.topology)
    return (qemu.identity, choice.accel.value, own.read_text(encoding="utf-8") if own.is_file() else "")


def deciding(step_options: StepOptions, rules: Rules, machine: Iterable[str]) -> str:
    """Return a digest of everything but the image that decides the verdict of a step.

    *machine* is not in the options: the build of QEMU, the accelerator, the text of the user's own topology.
    """
    counted = f"{rules.boot} {rules.missing_fails} {rules.repeat}"
    words = [*step_options.words(), counted, *machine, *_own_files()]
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:32]


def _own_files() -> Iterator[str]:
    """The harness's own files: a case that was edited is run again."""
    package = Path(__file__).resolve().parent.parent
    for top in (package, paths.guest_dir()):
        for path in sorted(path for path in top.rglob("*") if path.suffix in _SOURCES):
            yield f"{path.relative_to(top)} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def memory_path() -> Path:
    """Return the file with the steps; remove it to test everything again."""
    return paths.cache_dir() / "verdicts.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    steps: dict[str, Step] = dataclasses.field(default_factory=dict)
    """The steps by image and digest of deciding(), the latest last."""


def recall(image: str, decided_by: str) -> Step | None:
    """Return the step that tested *image* with the same *decided_by* (see deciding()), if any."""
    return _read().steps.get(f"{image} {decided_by}")


def remember(step: Step, decided_by: str) -> None:
    """Keep *step* unless it was untested, flaky or found by its image.

    When the cache cannot be written, the next step is tested again.
    """
    if not step.image or step.same_as or step.flaky or step.status is Status.UNTESTED:
        return
    key = f"{step.image} {decided_by}"
    with (
        contextlib.suppress(InfraError, OSError),
        locked("verdicts", "another bisect-step writes its verdict"),
    ):
        others = [(name, kept) for name, kept in _read().steps.items() if name != key]
        latest = [*others, (key, dataclasses.replace(step, runs=()))][-KEPT:]
        values.save(memory_path(), _Memory(steps=dict(latest)), version=FORMAT)


def _read() -> _Memory:
    """The kept steps; none when the file is not there or cannot be read."""
    try:
        return values.load(memory_path(), _Memory, version=FORMAT)
    except UsageError:
        return _Memory()

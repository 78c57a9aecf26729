# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness bisect-step`: judge the tree as it is, for people who drive `git bisect run` themselves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from harness import paths
from harness.bisect.hunt import describe, fresh_step, settle
from harness.bisect.judge import RealJudge, Trial
from harness.bisect.model import Aim, Mark, Sight, Step
from harness.bisect.state import End
from harness.bisect.verdicts import Verdicts, deciding, verdicts_path
from harness.cli import asking, options
from harness.cli.asking import Asked
from harness.errors import GIT_SKIP, ExitCode, UsageError
from harness.output import emit, tell
from harness.session import planning
from harness.session.progress import build_progress
from harness.session.wishes import MachineWish


@click.command("bisect-step")
@options.tree_option_without("the current directory")
@asking.case_options
@click.option("--find-fix", is_flag=True, help="Exit with 1 where it passes and with 0 where it fails.")
@click.option(
    "--missing-fails",
    is_flag=True,
    help="Take a tree that has no such variant, or to which the case does not apply, for one where it fails.",
)
@options.kernel_options
@options.vm_options
def command(
    tree: str | None,
    variant: str,
    topology: str,
    suites: tuple[str, ...],
    cases: tuple[str, ...],
    keyword: str | None,
    boot: bool,
    repeat: int,
    find_fix: bool,
    missing_fails: bool,
    addons: tuple[str, ...],
    configs: tuple[Path, ...],
    jobs: int | None,
    machine: MachineWish,
) -> int:
    """Judge the tree as it is: 0 good, 1 bad, 125 untestable, 128 wrong use, which stops a bisect.

    The judgement is that of the verb bisect: a failure counts when a second VM shows it too, nothing that
    the host did counts at all, and an image that was judged before keeps its verdict.  With --boot a kernel
    that hangs without a word is skipped: bisect alone has an end that boots to compare it with.

    \b
    Example:
      git bisect run vfio-harness bisect-step --case probes/get_pa/gap_ends_the_length
    """
    asked = Asked(
        variant=variant,
        suites=suites,
        cases=cases,
        keyword=keyword or "",
        boot=boot,
        addons=addons,
        configs=configs,
        machine=machine.on(topology),
        jobs=jobs,
    )
    aim = Aim(find_fix=find_fix, boot=boot, missing_fails=missing_fails, repeat=repeat)
    return _judge(tree or os.fspath(Path.cwd()), asked, aim)


def _judge(spec: str, asked: Asked, aim: Aim) -> int:
    """Judge the tree that *spec* names, and tell; the exit code for git."""
    tell(f"accelerator: {asked.check()}")
    found = planning.open_wished_tree(spec)
    here = End(name=found.label, commit=found.commit or found.identity)
    quarry = asked.quarry(Path(spec), Path(), here, here)
    trial = Trial.of(quarry, aim, selftests=planning.needs_selftests(quarry.suites))
    judge = RealJudge(
        lambda _commit: spec,
        trial,
        paths.runs_dir() / "bisect-step",
        lambda name: build_progress(name, sys.stderr),
    )
    verdicts = Verdicts(deciding(trial, aim, _machine_of(asked)))
    step = settle(judge, fresh_step(here.commit, here.name), aim, known=verdicts.known)
    verdicts.remember(step)
    if step.sight is Sight.REFUSED:
        # Whether it is this commit alone cannot be told from here: who drives git decides.
        raise UsageError(step.why, hint=next((seen.hint for seen in step.observations if seen.hint), None))
    emit(f"{here.name}: {describe(step, aim)}")
    _tell_grounds(step)
    return _status(aim.mark(step.sight))


def _machine_of(asked: Asked) -> tuple[str, ...]:
    """What decides what the machine is and is in none of its options."""
    qemu, choice = planning.choose(asked.machine)
    own = Path(asked.machine.topology)
    return (qemu.identity, choice.accel.value, own.read_text(encoding="utf-8") if own.is_file() else "")


def _tell_grounds(step: Step) -> None:
    """Where the verdict comes from."""
    if step.same_as:
        tell(f"it was judged then: {step.why}\nto have it judged again: rm {verdicts_path()}")
    for seen in step.observations:
        if seen.run_dir:
            tell(f"everything is in {seen.run_dir}")


def _status(mark: Mark) -> int:
    """What `git bisect run` is told with *mark*."""
    return {Mark.OLD: ExitCode.GOOD, Mark.NEW: ExitCode.CASE_FAILED, Mark.SKIP: GIT_SKIP}[mark]

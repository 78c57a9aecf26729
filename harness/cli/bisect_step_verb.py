# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness bisect-step`: judge the tree as it is, for people who drive `git bisect run` themselves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from harness import paths
from harness.bisect.hunt import describe, fresh_step, settle
from harness.bisect.judge import BOOT_CASE, RealJudge, Trial
from harness.bisect.model import Aim, Mark
from harness.cli import asking, options, planning
from harness.cli.asking import Asked
from harness.cli.output import emit, tell
from harness.cli.progress import build_progress
from harness.cli.wishes import MachineWish
from harness.errors import GIT_SKIP, ExitCode
from harness.host import default_compilers


@click.command("bisect-step")
@options.tree_option
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
    accel: str,
    root: str,
    cpus: int,
    memory: int | None,
    qemu: str | None,
) -> int:
    """Judge the tree as it is: 0 good, 1 bad, 125 untestable, 128 wrong use, which stops a bisect.

    The judgement is that of the verb bisect: a failure counts when a second VM shows it too,
    and nothing that the host did counts at all.  Without --tree it is the current directory.

    \b
    Example:
      git bisect run vfio-harness bisect-step --case probes/get_pa/gap_ends_the_length
    """
    machine = MachineWish(topology=topology, accel=accel, root=root, cpus=cpus, memory=memory, qemu=qemu)
    asked = Asked(
        variant=variant,
        suites=suites,
        cases=cases,
        keyword=keyword or "",
        boot=boot,
        addons=addons,
        configs=configs,
        machine=machine,
        jobs=jobs,
    )
    tell(f"accelerator: {asked.check()}")
    spec = tree or os.fspath(Path.cwd())
    found = planning.open_wished_tree(spec)
    trial = Trial(
        variant=variant,
        addons=addons,
        configs=tuple(os.fspath(config.absolute()) for config in configs),
        jobs=jobs or default_compilers(),
        machine=tuple(machine.options()),
        suites=asked.chosen_suites(),
        cases=cases or (() if keyword or not boot else (BOOT_CASE,)),
        keyword=keyword or "",
        boot=boot,
        selftests=planning.needs_selftests(asked.chosen_suites()),
    )
    aim = Aim(find_fix=find_fix, boot=boot, missing_fails=missing_fails, repeat=repeat)
    judge = RealJudge(
        lambda _commit: spec,
        trial,
        paths.runs_dir() / "bisect-step",
        lambda name: build_progress(name, sys.stderr),
    )
    step = settle(judge, fresh_step(found.commit or found.identity, found.label), aim)
    emit(f"{found.label}: {describe(step, aim)}")
    for seen in step.observations:
        if seen.run_dir:
            tell(f"everything is in {seen.run_dir}")
    return {Mark.OLD: ExitCode.GOOD, Mark.NEW: ExitCode.CASE_FAILED, Mark.SKIP: GIT_SKIP}[
        aim.mark(step.sight)
    ]

# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness bisect`: find the commit that broke, or fixed, a case."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from harness.bisect import campaign, gitbisect
from harness.bisect.judge import Trial
from harness.bisect.model import Aim
from harness.bisect.plain import render
from harness.bisect.report import Finding, summary
from harness.bisect.state import HuntState, Quarry
from harness.cli import asking, options
from harness.cli.asking import Asked
from harness.errors import UsageError
from harness.kernel import gittree
from harness.output import emit, tell
from harness.session import planning
from harness.session.progress import build_progress
from harness.session.wishes import MachineWish
from harness.words import count_of


@click.command("bisect")
@click.option(
    "--tree",
    metavar="DIR",
    help="A git repository of Linux, with its history  [default: the current directory]",
)
@click.option("--good", "goods", multiple=True, metavar="REV", help="A commit where it passes.")
@click.option("--bad", "bads", multiple=True, metavar="REV", help="A commit where it fails.")
@asking.case_options
@click.option("--find-fix", is_flag=True, help="The bad end is the older one: find what made it pass.")
@click.option(
    "--term-old",
    metavar="TERM",
    help="What git is to call the older commits.  [default: good; with --find-fix broken]",
)
@click.option(
    "--term-new",
    metavar="TERM",
    help="What it is to call the newer ones.  [default: bad; with --find-fix fixed]",
)
@click.option("--first-parent", is_flag=True, help="Follow only the first parent of merges.")
@click.option(
    "--skip", "skips", multiple=True, metavar="REV", help="Do not test this one, or range. Repeatable."
)
@click.option(
    "--continue", "go_on", is_flag=True, help="Go on with what was interrupted, as it was asked for."
)
@click.option("--reset", is_flag=True, help="Drop what was interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON on stdout.")
@options.kernel_options
@options.vm_options
@click.argument("limits", nargs=-1, metavar="[-- PATH...]", type=click.UNPROCESSED)
def command(
    tree: str | None,
    goods: tuple[str, ...],
    bads: tuple[str, ...],
    variant: str,
    topology: str,
    suites: tuple[str, ...],
    cases: tuple[str, ...],
    keyword: str | None,
    boot: bool,
    repeat: int,
    find_fix: bool,
    term_old: str | None,
    term_new: str | None,
    first_parent: bool,
    skips: tuple[str, ...],
    go_on: bool,
    reset: bool,
    as_json: bool,
    addons: tuple[str, ...],
    configs: tuple[Path, ...],
    jobs: int | None,
    machine: MachineWish,
    limits: tuple[str, ...],
) -> int:
    """Find the commit that broke a case, or with --find-fix the one that made it pass.

    git bisect chooses the commits, in a worktree of its own: checkout, index and a bisect of your own stay as
    they are.  Both ends are tested first.  A failure is believed when a second VM shows it too; what does not
    build or boot, and what the host spoilt, is skipped.  Where one end has no such variant, or the case does
    not apply there, that counts as not passing.

    It exits with 0 when the commit is found, with 2 when an end is not what it was said to be, and with 4
    (3: by the host's doing) when what is left cannot be tested.

    \b
    Examples:
      vfio-harness bisect --tree ~/linux --good v7.3 --bad HEAD --case probes/get_pa/gap_ends_the_length
      vfio-harness bisect --good v7.2 --bad v7.3 --find-fix -k cdev_is_named -- drivers/vfio drivers/iommu
      vfio-harness bisect --good v7.3 --bad master --boot
      vfio-harness bisect --continue
    """
    repository = asking.repository_of(tree)
    common = gitbisect.find_root(repository)
    if reset:
        return _reset(common, repository)
    if go_on:
        return _continue(common, repository, as_json)
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
    aim = Aim(find_fix=find_fix, boot=boot, repeat=repeat, term_old=term_old or "", term_new=term_new or "")
    good, bad = _ends(goods, bads)
    old, new = (gitbisect.find_end(repository, name) for name in ((bad, good) if find_fix else (good, bad)))
    quarry = asked.quarry(repository, common, old, new)
    quarry = dataclasses.replace(quarry, paths=_paths(limits), first_parent=first_parent, skips=skips)
    return _begin(asked, quarry, aim, as_json)


def _ends(goods: Sequence[str], bads: Sequence[str]) -> tuple[str, str]:
    """The names of the good end and the bad end."""
    if not goods or not bads:
        raise click.UsageError("say where it passes and where it fails: --good REV --bad REV")
    for option, names in (("--good", goods), ("--bad", bads)):
        if len(names) > 1:
            raise UsageError(
                f"a hunt has one good end and one bad end, both of which are tested: {option} is given "
                f"{len(names)} times",
                hint="give the good end that is nearest to the bad one, as an ancestor of it",
            )
    return goods[0], bads[0]


def _reset(common: Path, repository: Path) -> int:
    """Drop what is under way in *repository*."""
    options.refuse_beside("--reset drops what was asked for then", {"tree", "reset"})
    dropped = campaign.reset(common)
    tell(f"dropped; its verdicts stay in {dropped}" if dropped else f"no bisect of {repository} is under way")
    return 0


def _continue(common: Path, repository: Path, as_json: bool) -> int:
    """Go on with what is under way in *repository*."""
    options.refuse_beside("--continue goes on with what was asked for then", {"tree", "go_on", "as_json"})
    state, directory = campaign.resume(common, os.fspath(repository))
    tell(f"going on with {directory}: {len(state.tested)} verdicts so far")
    return _conduct(state, directory, as_json)


def _begin(asked: Asked, quarry: Quarry, aim: Aim, as_json: bool) -> int:
    """Check all that can be checked before something is built, and hunt."""
    count = campaign.check_quarry(quarry, aim)
    accelerator = asked.check()
    state, directory = campaign.begin(quarry, aim)
    tell(f"accelerator: {accelerator}")
    _announce(quarry, aim, count)
    return _conduct(state, directory, as_json)


def _paths(limits: Sequence[str]) -> tuple[str, ...]:
    options_among = [word for word in limits if word.startswith("--")]
    if options_among:
        raise UsageError(f"{options_among[0]!r} is no path", hint="options come before the --")
    return tuple(limits)


def _announce(quarry: Quarry, aim: Aim, count: int) -> None:
    repository = Path(quarry.repository)
    if gittree.has_changes(repository):
        tell(f"{repository} has local changes, which are in no commit: they are left alone, and not tested")
    where = f" in {' '.join(quarry.paths)}" if quarry.paths else ""
    what = "the boot" if aim.boot else quarry.asked
    tell(f"bisecting {count_of(count, 'commit')}{where}, {quarry.old.label} to {quarry.new.label}: {what}")


def _conduct(state: HuntState, directory: Path, as_json: bool) -> int:
    selftests = planning.needs_selftests(state.quarry.suites)
    trial = Trial.of(state.quarry, state.aim, selftests=selftests)
    finding, code = campaign.Campaign(
        state=state,
        directory=directory,
        trial=trial,
        say=tell,
        shown=lambda name: build_progress(name, sys.stderr),
    ).conduct()
    emit(render(finding, code).rstrip("\n") if as_json else summary(finding))
    _tell_where(finding, directory)
    return code


def _tell_where(finding: Finding, directory: Path) -> None:
    mail = directory / campaign.MAIL_NAME
    if mail.is_file():
        tell(f"for the mailing list: {mail}")
    took = sum(step.seconds for step in finding.state.tested)
    steps = f"{len(finding.state.steps)} steps and 2 ends"
    tell(f"{steps} in {took / 60:.0f} min; everything is in {directory}")

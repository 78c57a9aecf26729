# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness bisect`: find the commit that broke, or fixed, a case."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from harness.base.errors import Interrupted, UsageError
from harness.base.output import emit, tell
from harness.base.words import count_of
from harness.bisect import bisect, git, start
from harness.bisect.report import render_json, summary
from harness.bisect.state import BisectRequest, BisectState, Rules
from harness.cli.bisect_options import SAY_WHAT, Asked, repository_of, shared_options
from harness.cli.fleet_options import FLEET, commit_fleet_options
from harness.cli.given import refuse_beside
from harness.cli.testers import commit_testers, one_tester, refuse
from harness.fleet.cluster import FleetWish
from harness.kernel import gittree
from harness.session.affected import affected_between


@click.command("bisect")
@click.option(
    "--tree",
    metavar="DIR",
    help="A git repository of Linux, with its history  [default: the current directory]",
)
@click.option("--good", "goods", multiple=True, metavar="REV", help="A commit that passes.")
@click.option("--bad", "bads", multiple=True, metavar="REV", help="A commit that fails.")
@click.option("--find-fix", is_flag=True, help="Find the commit that fixed it: the bad end is the older one.")
@click.option(
    "--term-old",
    metavar="TERM",
    default="",
    show_default=False,
    help="git's term for older commits.  [default: good; with --find-fix broken]",
)
@click.option(
    "--term-new",
    metavar="TERM",
    default="",
    show_default=False,
    help="git's term for newer commits.  [default: bad; with --find-fix fixed]",
)
@click.option("--first-parent", is_flag=True, help="Follow only the first parent of merges.")
@click.option(
    "--skip", "skips", multiple=True, metavar="REV", help="Do not test this commit, or range. Repeatable."
)
@click.option("--continue", "go_on", is_flag=True, help="Continue an interrupted bisect, with its options.")
@click.option("--reset", is_flag=True, help="Drop an interrupted bisect.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@commit_fleet_options
@shared_options
@click.argument("limits", nargs=-1, metavar="[-- PATH...]", type=click.UNPROCESSED)
def command(
    tree: str | None,
    goods: tuple[str, ...],
    bads: tuple[str, ...],
    asked: Asked,
    find_fix: bool,
    term_old: str,
    term_new: str,
    first_parent: bool,
    skips: tuple[str, ...],
    go_on: bool,
    reset: bool,
    as_json: bool,
    fleet: FleetWish | None,
    limits: tuple[str, ...],
) -> int:
    """Find the commit that broke a case, or with --find-fix the one that fixed it.

    git bisect chooses the commits, in a worktree of its own: your checkout, index and own bisect are not
    touched.  Both ends are tested first.  A failure counts when a second VM shows it too; commits that do not
    build or boot, or that the host could not test, are skipped.  If the variant or the case does not apply at
    one end, commits to which it does not apply count like that end.

    Exit codes: 0 the commit is found; 2 an end is not good or bad as given, or the paths exclude the commit;
    3 the host could not test it; 4 the remaining candidates do not build or boot.

    \b
    Examples:
      vfio-harness bisect --tree ~/linux --good v7.3 --bad HEAD --case probes/get_pa/gap_ends_the_length
      vfio-harness bisect --good v7.2 --bad v7.3 --find-fix -k cdev_is_named -- drivers/vfio drivers/iommu
      vfio-harness bisect --good v7.3 --bad master --boot
      vfio-harness bisect --good v7.3 --bad HEAD --case 'probes/get_pa/*' --fleet tls://build1:8786
      vfio-harness bisect --continue
    """
    repository = repository_of(tree)
    root = git.find_root(repository)
    if reset:
        return _reset(root, repository)
    if go_on:
        refuse_beside("--continue uses the options that the bisect was started with", _WITH_CONTINUE)
        state, directory = start.resume(root, os.fspath(repository))
        tell(f"continuing {directory}: {len(state.tested)} verdicts so far")
        return _bisect(state, directory, fleet, as_json)
    rules = Rules(
        find_fix=find_fix, boot=asked.boot, repeat=asked.repeat, term_old=term_old, term_new=term_new
    )
    good, bad = _ends(goods, bads)
    old, new = (git.find_end(repository, name) for name in ((bad, good) if find_fix else (good, bad)))
    asked = _with_affected(asked, repository, old.commit, new.commit)
    request = BisectRequest(
        repository=os.fspath(repository),
        root=os.fspath(root),
        old=old,
        new=new,
        paths=_paths(limits),
        first_parent=first_parent,
        skips=skips,
        options=asked.step_options(),
    )
    return _start(asked, request, rules, fleet, as_json)


_WITH_CONTINUE = {"tree", "go_on", "as_json", *FLEET}


def _with_affected(asked: Asked, repository: Path, old: str, new: str) -> Asked:
    """Return *asked* with the cases that reach what changed from *old* to *new*, if it names nothing."""
    if asked.names_something:
        return asked
    try:
        return dataclasses.replace(asked, cases=affected_between(repository, old, new))
    except UsageError as error:
        raise UsageError(f"{SAY_WHAT} ({error.message})", hint=error.hint) from error


def _ends(goods: Sequence[str], bads: Sequence[str]) -> tuple[str, str]:
    """The names of the good end and the bad end."""
    if not goods or not bads:
        raise click.UsageError("give a commit that passes and one that fails: --good REV --bad REV")
    for option, names in (("--good", goods), ("--bad", bads)):
        if len(names) > 1:
            raise UsageError(
                f"a bisect has one good end and one bad end: {option} is given {len(names)} times",
                hint="give only the good end that is the nearest ancestor of the bad one",
            )
    return goods[0], bads[0]


def _paths(limits: Sequence[str]) -> tuple[str, ...]:
    option = next((word for word in limits if word.startswith("--")), None)
    if option is not None:
        raise UsageError(f"{option!r} is not a path", hint="options come before the --")
    return tuple(limits)


def _reset(root: Path, repository: Path) -> int:
    """Drop the bisect of *repository*."""
    refuse_beside("--reset takes no other options", {"tree", "reset"})
    dropped = start.reset(root)
    tell(f"dropped; its verdicts stay in {dropped}" if dropped else f"{repository} has no unfinished bisect")
    return 0


def _start(asked: Asked, request: BisectRequest, rules: Rules, fleet: FleetWish | None, as_json: bool) -> int:
    """Check everything that can be checked before a build, and bisect."""
    refuse(fleet, request.options)
    count = git.check(request, rules)
    accelerator = asked.check()
    state, directory = start.start(request, rules, asked.taken)
    tell(f"accelerator: {accelerator}")
    if gittree.has_changes(Path(request.repository)):
        tell(f"the local changes of {request.repository} are not tested: they are in no commit")
    where = f" in {' '.join(request.paths)}" if request.paths else ""
    ends = f"{request.old.label} to {request.new.label}"
    tell(f"bisecting {count_of(count, 'commit')}{where}, {ends}: {asked.what}")
    return _bisect(state, directory, fleet, as_json)


def _bisect(state: BisectState, directory: Path, fleet: FleetWish | None, as_json: bool) -> int:
    request = state.request
    resume = f"vfio-harness bisect --continue --tree {shlex.quote(request.repository)}"
    made = commit_testers(
        fleet,
        directory,
        Path(request.repository),
        request.options,
        mirror=lambda: gittree.provide_mirror(Path(request.root)),
        commits=lambda: git.commits_of(request),
        resume=resume,
        boot=state.rules.boot,
    )
    try:
        report = bisect.bisect(state, directory, one_tester(made))
    except KeyboardInterrupt as error:
        raise Interrupted(f"to continue: {resume}") from error
    emit(render_json(report).rstrip("\n") if as_json else summary(report))
    mail = directory / bisect.MAIL_NAME
    if mail.is_file():
        tell(f"mail for the mailing list: {mail}")
    state = report.state
    minutes = sum(step.seconds for step in (*state.tested, *state.spare)) / 60
    steps = f"{count_of(len(state.steps), 'step')} and 2 ends"
    if fleet is not None:
        spare = f" ({len(state.spare)} more than needed)" if state.spare else ""
        tested, rounds = len(state.steps) + len(state.spare), count_of(state.rounds, "round")
        steps = f"{count_of(tested, 'step')}{spare} in {rounds}, and 2 ends"
    tell(f"{steps} in {minutes:.0f} min of work; everything is in {directory}")
    return report.exit_code

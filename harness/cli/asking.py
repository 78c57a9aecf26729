# SPDX-License-Identifier: GPL-2.0-only
"""What `bisect` and `bisect-step` ask for alike: which cases, of which kernel, on which machine."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.bisect.state import End, Quarry
from harness.cli import options
from harness.errors import UsageError
from harness.session import planning
from harness.session.wishes import MachineWish
from harness.suites.catalogue import check_patterns, check_suites, suite_names
from harness.suites.keyword import check_keyword
from harness.suites.probes import SUITE as PROBES

F = TypeVar("F", bound=Callable[..., Any])


def case_options(function: F) -> F:
    """What is judged, and how carefully."""
    suite = click.option(
        "--suite",
        "suites",
        multiple=True,
        metavar="NAME",
        help="A suite to run; see: list suites. Repeatable.  [default: what the cases name, else probes]",
    )
    boot = click.option(
        "--boot",
        is_flag=True,
        help="The boot itself: a kernel that dies or complains before its guest answers is bad.",
    )
    repeat = click.option(
        "--repeat",
        type=click.IntRange(min=2),
        default=3,
        show_default=True,
        metavar="N",
        help="How many VMs judge a commit about which two disagree.",
    )
    function = options.case_option(options.keyword_option(boot(repeat(function))))
    function = options.topology_option(multiple=False)(suite(function))
    return options.variant_option(multiple=False)(function)


def repository_of(tree: str | None) -> Path:
    """The directory that --tree names; UsageError when it can have no history."""
    if tree is None:
        return Path.cwd()
    if tree.startswith("debian:"):
        raise UsageError(
            f"{tree} is a package without a history", hint="give --tree a git repository of Linux"
        )
    path = Path(tree).expanduser().absolute()
    if path.is_file():
        raise UsageError(f"{path} is a file without a history", hint="give --tree a git repository of Linux")
    directory, at, ref = tree.rpartition("@")
    if at and not path.is_dir() and Path(directory).expanduser().is_dir():
        raise UsageError(
            f"--tree takes the repository {directory} alone", hint=f"name {ref} with --good or --bad"
        )
    return path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for, to be checked before anything slow begins."""

    variant: str
    suites: tuple[str, ...]
    cases: tuple[str, ...]
    keyword: str
    boot: bool
    addons: tuple[str, ...]
    configs: tuple[Path, ...]
    machine: MachineWish
    jobs: int | None
    """Parallel compilers; None for as many as usual."""

    def quarry(self, repository: Path, common: Path, old: End, new: End) -> Quarry:
        """What is to be judged between *old* and *new* of *repository*, whose worktrees share *common*."""
        return Quarry(
            repository=os.fspath(repository),
            root=os.fspath(common),
            old=old,
            new=new,
            variant=self.variant,
            addons=self.addons,
            configs=tuple(os.fspath(config.absolute()) for config in self.configs),
            jobs=self.jobs,
            machine=tuple(self.machine.options()),
            suites=self.chosen_suites(),
            cases=self.cases,
            keyword=self.keyword,
        )

    def chosen_suites(self) -> tuple[str, ...]:
        """Those given, else those that the cases name, else the probes."""
        heads = [case.partition("/")[0] for case in self.cases]
        named = [name for name in suite_names() if any(fnmatch.fnmatchcase(name, head) for head in heads)]
        return tuple(dict.fromkeys(self.suites)) or tuple(named) or (PROBES,)

    def check(self) -> str:
        """Refuse what cannot be; return why which accelerator is used."""
        if not (self.cases or self.keyword or self.boot):
            raise click.UsageError("say what to look at: --case ADDRESS, -k EXPR or --boot")
        check_suites(self.suites)
        check_patterns(self.cases, self.chosen_suites() if self.suites else suite_names())
        job = (self.machine.topology, self.variant, *self.addons)
        check_keyword(self.keyword, self.chosen_suites(), job)
        if planning.wished_variant(self.variant).blocked:
            raise UsageError(f"variant {self.variant!r} is never built, so there is nothing to bisect")
        planning.check_addons(self.addons)
        planning.read_configs(self.configs)
        qemu, choice = planning.choose(self.machine)
        planning.check_machine(self.machine, qemu)
        return choice.reason

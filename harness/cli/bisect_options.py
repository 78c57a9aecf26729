# SPDX-License-Identifier: GPL-2.0-only
"""The options that `bisect` and `bisect-step` share: which cases, of which kernel, on which machine."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from harness.base import paths
from harness.base.errors import UsageError
from harness.bisect.state import StepOptions
from harness.bisect.step import BOOT_CASE
from harness.cli import options
from harness.kernel.arch import find_arch
from harness.kernel.hostneeds import require_build_tools
from harness.kernel.toolchain import find_toolchain
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
from harness.session import planning
from harness.session.own import NO_PROGRAM, TakenOwn, take
from harness.session.wishes import KernelWish, MachineWish, OwnWish
from harness.suites.catalogue import check_patterns
from harness.suites.own import SUITE as OWN
from harness.suites.probes import SUITE as PROBES
from harness.suites.registry import suite_named, suite_names

SAY_WHAT = "say what to bisect: --case ADDRESS, -k EXPR or --boot, or your own --program PATH"

F = TypeVar("F", bound=Callable[..., Any])


_take = functools.cache(take)


def repository_of(tree: str | None) -> Path:
    """Return the directory that --tree names; UsageError when it cannot be a git repository."""
    if tree is None:
        return Path.cwd()
    hint = "give --tree a git repository of Linux"
    if tree.startswith("debian:"):
        raise UsageError(f"{tree} is a package without a history", hint=hint)
    path = paths.expanded(tree).absolute()
    if path.is_file():
        raise UsageError(f"{path} is a file without a history", hint=hint)
    directory, at, ref = tree.rpartition("@")
    if at and not path.is_dir() and paths.expanded(directory).is_dir():
        raise UsageError(
            f"--tree takes the repository {directory} alone", hint=f"name {ref} with --good or --bad"
        )
    return path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The values of the shared options."""

    kernel: KernelWish
    """Without a tree."""
    suites: tuple[str, ...]
    cases: tuple[str, ...]
    keyword: str | None
    boot: bool
    repeat: int
    own: OwnWish = dataclasses.field(default_factory=OwnWish)
    machine: MachineWish

    @property
    def names_something(self) -> bool:
        """Whether it says what to bisect."""
        return bool(self.cases or self.keyword or self.boot or self.own.programs)

    @property
    def taken(self) -> TakenOwn:
        """The user's own programs and probes, read once.  Raises as take()."""
        return _take(self.own, self.machine.root, find_arch(self.kernel.arch))

    @property
    def what(self) -> str:
        """What is bisected, for messages."""
        words = list(self.cases) + ([f"-k {self.keyword}"] if self.keyword else [])
        words = words or [f"{OWN}/{program.name}" for program, _ in self.taken.programs]
        return "the boot" if self.boot else ", ".join(words)

    def step_options(self) -> StepOptions:
        """Return how every step tests its commit."""
        only_boot = self.boot and not self.keyword and not self.cases
        kernel = dataclasses.replace(self.kernel.absolute(), tree=None)
        if kernel.selftests is not None:
            # Its ref may move during a bisect.
            pinned = planning.pinned_spec(open_tree(kernel.selftests), kernel.selftests)
            kernel = dataclasses.replace(kernel, selftests=pinned)
        return StepOptions(
            kernel=kernel,
            machine=tuple(self.machine.options()),
            suites=(PROBES,) if only_boot else self._suites(),
            own=self.own.absolute(),
            cases=(BOOT_CASE,) if only_boot else self.cases,
            keyword=self.keyword or "",
        )

    def _suites(self) -> tuple[str, ...]:
        """The suites that were given, else those that the cases name, else the probes."""
        heads = [case.partition("/")[0] for case in self.cases]
        named = [name for name in suite_names() if any(fnmatch.fnmatchcase(name, head) for head in heads)]
        if self.own.programs and not self.cases:
            named = [OWN]
        return tuple(dict.fromkeys(self.suites)) or tuple(named) or (PROBES,)

    def check(self) -> str:
        """Refuse impossible values; return which accelerator is used, and why."""
        if not self.names_something:
            raise click.UsageError(SAY_WHAT)
        for name in self.suites:
            suite_named(name)
        # The probes that it brings are cases, too.
        programs = self.taken.programs
        if OWN in self._suites() and not programs:
            raise UsageError(NO_PROGRAM, hint="add --program PATH")
        check_patterns(self.cases, self._suites() if self.suites else suite_names())
        variant = self.kernel.variant
        if load_catalogue().variant(variant).blocked:
            raise UsageError(f"variant {variant!r} is never built, so there is nothing to bisect")
        planning.check_kernel(self.kernel)
        # Without a compiler every commit would be skipped.
        arch = find_arch(self.kernel.arch)
        require_build_tools(find_toolchain(self.kernel.toolchain).resolve(arch), arch.label)
        qemu, choice = planning.choose(self.machine, self.kernel.arch)
        planning.check_machine(self.machine, qemu)
        return choice.reason


_OPTIONS = ("suites", "cases", "keyword", "boot", "repeat")
"""Fields of Asked that are options."""


def _refuse_kernel(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise UsageError(
            f"--kernel {value}: a bisect builds each commit that it tests, and a finished kernel has none",
            hint="give the source with --tree, and test the kernel with: vfio-harness run --kernel",
        )


_no_kernel_option = click.option("--kernel", hidden=True, expose_value=False, callback=_refuse_kernel)


_kernel_wish = options.fold(
    "kernel",
    lambda **fields: KernelWish(variant="", **fields),
    *("addons", "configs", "toolchain", "arch", "compilers", "selftests"),
    options=(options.selftests_option, options.kernel_options),
)


def shared_options(function: F) -> F:
    """The options of both verbs: one argument *asked*."""

    @functools.wraps(function)
    def with_asked(
        *, variant: str, topology: str, kernel: KernelWish, machine: MachineWish, own: OwnWish, **given: Any
    ) -> Any:
        found = {field: given.pop(field) for field in _OPTIONS}
        kernel, machine = kernel.of(variant), machine.on(topology)
        return function(asked=Asked(kernel=kernel, machine=machine, own=own, **found), **given)

    suite = click.option(
        "--suite",
        "suites",
        multiple=True,
        metavar="NAME",
        help="A suite to run; see: list suites. Repeatable.  [default: the suites of the cases, else probes]",
    )
    boot = click.option(
        "--boot",
        is_flag=True,
        help="Bisect the boot itself: a kernel that crashes or warns before its guest is up is bad.",
    )
    repeat = click.option(
        "--repeat",
        type=click.IntRange(min=2),
        default=3,
        show_default=True,
        metavar="N",
        help="How many VMs test a commit when two disagree.",
    )
    wrapped = _kernel_wish(options.vm_options(options.own_options(cast("F", with_asked))))
    wrapped = _no_kernel_option(wrapped)
    wrapped = options.case_option(options.keyword_option(boot(repeat(wrapped))))
    wrapped = options.topology_option(multiple=False)(suite(wrapped))
    return options.variant_option(multiple=False)(wrapped)

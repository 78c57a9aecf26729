# SPDX-License-Identifier: GPL-2.0-only
"""The options that several verbs share, so that each is spelled the same everywhere."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from harness.base import paths
from harness.base.errors import UsageError
from harness.base.host import default_compilers
from harness.cli.given import given, refuse_beside
from harness.kernel.arch import ARCHES, find_arch, host_arch
from harness.kernel.toolchain import DEFAULT as DEFAULT_TOOLCHAIN
from harness.kernel.toolchain import EXAMPLE_PREFIX, TOOLCHAINS, find_toolchain
from harness.kernel.variants import load_catalogue
from harness.machine.roots import DEFAULT_ROOT, ROOT_NAMES
from harness.machine.topology import shipped_topologies
from harness.results.store import list_runs
from harness.session.wishes import (
    DEFAULT_CPUS,
    DEFAULT_SEED,
    DEFAULT_SUITES,
    Conduct,
    Isolation,
    KernelWish,
    MachineWish,
    OwnWish,
    ReadyWish,
    default_suites,
)
from harness.suites.registry import declared_cases, suite_names

F = TypeVar("F", bound=Callable[..., Any])


def fold(
    name: str, make: Callable[..., object], *parameters: str, options: Iterable[Callable[[Any], Any]] = ()
) -> Callable[[F], F]:
    """Return a decorator that adds *options*, whose *parameters* make() turns into one argument *name*."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def with_value(**given: Any) -> Any:
            fields = {parameter: given.pop(parameter) for parameter in parameters if parameter in given}
            return function(**{name: make(**fields)}, **given)

        wrapped = cast("F", with_value)
        for option in reversed(tuple(options)):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def completing(
    choices: Callable[[], Iterable[tuple[str, str | None]]],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return a shell_complete for *choices*, names with their help, which are read only when completing."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name, help=text) for name, text in choices() if name.startswith(incomplete)]

    return complete


def _plain(names: Callable[[], Iterable[str]]) -> Callable[[], Iterable[tuple[str, None]]]:
    return lambda: ((name, None) for name in names())


complete_run = completing(_plain(lambda: (summary.directory.name for summary in list_runs(paths.runs_dir()))))
_complete_case = completing(_plain(lambda: (case.address for case in declared_cases())))


suite_option = click.option(
    "--suite",
    "suites",
    multiple=True,
    default=DEFAULT_SUITES,
    metavar="NAME",
    shell_complete=completing(_plain(suite_names)),
    help="Suite to run; see: list suites. Repeatable.",
)
case_option = click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="ADDRESS",
    shell_complete=_complete_case,
    help="Only this case, e.g. probes/get_pa/gap_ends_the_length; shell patterns allowed. Repeatable.",
)
keyword_option = click.option(
    "-k", "keyword", metavar="EXPR", help="pytest's -k: only cases whose names match."
)
run_argument = click.argument("run", required=False, metavar="[RUN]", shell_complete=complete_run)
past_case_argument = click.argument("case", metavar="CASE", shell_complete=_complete_case)


def runs_argument(name: str) -> Callable[[F], F]:
    """Return a required argument *name*: a run, by id or directory."""
    return click.argument(name, metavar=name.upper(), shell_complete=complete_run)


def tree_option_without(default: str) -> Callable[[F], F]:
    """Return --tree, whose help says *default*."""
    return click.option(
        "--tree",
        metavar="TREE",
        help="Kernel source: directory, GITDIR@REF, tarball, or debian:latest | debian:7.3 | "
        f"debian:7.3=7.3.4-1 [default: {default}]",
    )


def tree_option(function: F) -> F:
    """Add --tree with the same default as planning."""
    default = "the current directory if it is a kernel tree, else debian:latest"
    return tree_option_without(default)(function)


compilers_option = click.option(
    "-j",
    "--jobs",
    "compilers",
    type=click.IntRange(min=1),
    default=default_compilers(),
    metavar="N",
    help="Parallel compilers.",
)


def _toolchain(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Return the toolchain, or toolchains, *value*, with absolute paths, after looking them up."""
    if isinstance(value, tuple):
        return tuple(_toolchain(ctx, param, one) for one in value)
    path = paths.expanded(value)
    # Not resolved: the last character tells a directory from a prefix.
    name = os.fspath(path.absolute()) + "/" * value.endswith("/") if "/" in value else value
    return find_toolchain(name).name


def toolchain_option(multiple: bool, words: str = "") -> Callable[[F], F]:
    """Return --toolchain, for one or for several; *words* end its help."""
    return click.option(
        "--toolchain",
        "toolchains" if multiple else "toolchain",
        multiple=multiple,
        default=() if multiple else DEFAULT_TOOLCHAIN,
        metavar="NAME|PREFIX",
        callback=_toolchain,
        shell_complete=completing(_plain(lambda: TOOLCHAINS)),
        help="Compiler and linker: gcc or llvm, with a version if wanted (gcc-13, llvm-19), the prefix of a "
        f"cross compiler ({EXAMPLE_PREFIX}), or a directory of programs (/opt/llvm/bin/).{words}",
    )


def _arch(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Return the names of the rows that *value* means, one or several; None means this host's."""
    if isinstance(value, tuple):
        return tuple(find_arch(one).name for one in value)
    return find_arch(value).name if value is not None else host_arch().name


def arch_option(multiple: bool, words: str = "") -> Callable[[F], F]:
    """Return --arch, for one or for several; *words* end its help."""
    return click.option(
        "--arch",
        "arches" if multiple else "arch",
        multiple=multiple,
        metavar="ARCH",
        callback=_arch,
        shell_complete=completing(_plain(lambda: ARCHES)),
        help=f"Architecture of kernel and guest: {', '.join(ARCHES)}; by default this host's.{words}",
    )


def kernel_options(function: F) -> F:
    """Add --with, --config, --toolchain, --arch and -j."""
    for option in (
        compilers_option,
        arch_option(multiple=False, words=" Others are built by a cross compiler and emulated."),
        toolchain_option(multiple=False),
        click.option(
            "--config",
            "configs",
            multiple=True,
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Your own kconfig fragment, applied last. Repeatable.",
        ),
        click.option(
            "--with",
            "addons",
            multiple=True,
            metavar="ADDON",
            shell_complete=completing(
                lambda: ((addon.name, addon.summary) for addon in load_catalogue().addons.values())
            ),
            help="Add-on fragment; see: list variants. Repeatable.",
        ),
    ):
        function = option(function)
    return function


selftests_option = click.option(
    "--selftests",
    metavar="TREE",
    help="Take the vfio and iommu selftests from this source, named as for --tree.  They are compiled "
    "against the headers of the kernel under test, with --kernel against those of TREE.",
)


def ready_options(function: F) -> F:
    """Add --kernel, --modules and --kernel-config."""
    for option in (
        click.option(
            "--kernel-config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The .config of --kernel, if vmlinux does not contain it and none is beside it.",
        ),
        click.option(
            "--modules",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="The modules of --kernel: its lib/modules/RELEASE, or a directory that contains that.",
        ),
        click.option(
            "--kernel",
            "ready",
            metavar="DIR|FILE|DIGEST",
            help="Test a finished kernel instead of building one: a build directory (O=), a vmlinux, or the "
            "digest of a kernel in the store; see: list kernels.",
        ),
    ):
        function = option(function)
    return function


_BUILT = (
    *("tree", "trees", "variant", "variants", "addons", "configs", "toolchains", "arches", "series", "watch"),
)
"""Parameters that say which kernel is built."""


def make_kernel_wish(
    *,
    ready: str | None = None,
    modules: Path | None = None,
    kernel_config: Path | None = None,
    **fields: Any,
) -> KernelWish:
    """Return a KernelWish without a variant; refuse what does not go with --kernel, and without it."""
    if ready is None:
        refuse_beside("there is no --kernel to go with", only=("modules", "kernel_config"))
        return KernelWish(variant="", **fields)
    # Selftests and own programs are compiled when there is a source of headers for them.
    compiles = fields.get("selftests") is not None
    refused = _BUILT if compiles else (*_BUILT, "toolchain")
    refuse_beside("--kernel names a finished kernel, which nothing is built for", only=refused)
    arch = fields.get("arch", "") if "arch" in given() else ""
    wish = ReadyWish(kernel=ready, modules=modules, config=kernel_config, arch=arch)
    return KernelWish(**{**fields, "tree": None}, variant="", ready=wish)


_KERNEL = ("tree", "addons", "configs", "toolchain", "arch", "compilers")

built_kernel_wish = fold("kernel", make_kernel_wish, *_KERNEL, options=(tree_option, kernel_options))
"""--tree and the options of kernel_options(): one argument *kernel*, a KernelWish without a variant."""

kernel_wish = fold(
    "kernel",
    make_kernel_wish,
    *(*_KERNEL, "ready", "modules", "kernel_config", "selftests"),
    options=(tree_option, kernel_options, ready_options, selftests_option),
)
"""The same with --kernel, --modules, --kernel-config and --selftests."""


def _own(programs: tuple[str, ...], needs: str, probes: Path | None) -> OwnWish:
    words = tuple(word.strip() for word in needs.split(",") if word.strip())
    return OwnWish(programs=programs, needs=words, probes=probes)


own_options = fold(
    "own",
    _own,
    *("programs", "needs", "probes"),
    options=(
        click.option(
            "--program",
            "programs",
            multiple=True,
            metavar="PATH",
            help="Your own test: a C or Python file, a program, or a directory with a program of its name; "
            "arguments follow in the same quotes. See docs/own-tests.md. Repeatable.",
        ),
        click.option(
            "--needs",
            default="",
            show_default=False,
            metavar="FEATURES",
            help="Features that --program needs, such as noiommu-cdev,edu; without them it is skipped.",
        ),
        click.option(
            "--probes",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Add your own probe modules, *.py in DIR, to the suite probes.",
        ),
    ),
)
"""--program, --needs and --probes: one argument *own*, an OwnWish."""


def suites_with(own: OwnWish, suites: Sequence[str]) -> tuple[str, ...]:
    """Return *suites* of --suite, or the default ones, with the suite of *own* programs if there are any."""
    return own.added_to(suites if "suites" in given() else default_suites(own))


def variant_option(multiple: bool) -> Callable[[F], F]:
    """Return --variant, for one or for several."""
    return click.option(
        "--variant",
        "variants" if multiple else "variant",
        multiple=multiple,
        default=["group-cdev"] if multiple else "group-cdev",
        metavar="NAME",
        shell_complete=completing(
            lambda: ((variant.name, variant.summary) for variant in load_catalogue().variants.values())
        ),
        help="No-IOMMU configuration to build; see: list variants." + (" Repeatable." if multiple else ""),
    )


def topology_option(multiple: bool) -> Callable[[F], F]:
    """Return --topology, for one or for several."""
    return click.option(
        "--topology",
        "topologies" if multiple else "topology",
        multiple=multiple,
        default=["edu-igb"] if multiple else "edu-igb",
        metavar="NAME|FILE",
        shell_complete=completing(_plain(shipped_topologies)),
        help="Emulated devices; see: list topologies." + (" Repeatable." if multiple else ""),
    )


def machine_options(function: F) -> F:
    """Add the options of the VM and --snapshots: one argument *machine*, a MachineWish without a topology."""
    return vm_options(
        click.option(
            "--snapshots/--no-snapshots",
            default=True,
            help="Save a VM that is ready for its first case, and restore it instead of booting.",
        )(function)
    )


vm_options = fold(
    "machine",
    lambda **fields: MachineWish(topology="", **fields),
    *("accel", "root", "cpus", "memory", "qemu", "snapshots"),
    options=(
        click.option(
            "--accel",
            type=click.Choice(["auto", "kvm", "tcg"]),
            default="auto",
            help="auto uses KVM if it can run a guest here, else TCG.",
        ),
        click.option(
            "--root",
            type=click.Choice(ROOT_NAMES),
            default=DEFAULT_ROOT,
            help="User space of the guest: image is small and boots fast; virtme is this host's own root, "
            "read-only, with all its tools, but without its /tmp and /run.",
        ),
        click.option(
            "--cpus",
            type=click.IntRange(1, 64),
            default=DEFAULT_CPUS,
            metavar="N",
            help="vCPUs of the guest.",
        ),
        click.option(
            "--memory",
            type=click.IntRange(min=256),
            default=None,
            metavar="MIB",
            help="Guest memory [default: what topology and suites need, at least 1024]",
        ),
        click.option("--qemu", metavar="PATH", help="The QEMU binary to use."),
    ),
)


def _conduct(isolation: str, **fields: Any) -> Conduct:
    return Conduct(isolation=Isolation(isolation), **fields)


def conduct_options(*, confirm: bool) -> Callable[[F], F]:
    """Return the options of how a run is carried out, *confirm* by default: one argument *conduct*."""
    return fold(
        "conduct",
        _conduct,
        *("cases", "isolation", "confirm", "seed", "compare", "known_issues"),
        options=(
            case_option,
            click.option(
                "--isolation",
                type=click.Choice([i.value for i in Isolation]),
                default=Isolation.VM.value,
                help="Give every case, or every program, its own VM; vm: one VM until something goes wrong.",
            ),
            click.option(
                "--confirm/--no-confirm",
                default=confirm,
                help="Repeat failed cases once in a fresh VM, 25 of a job and worker; FLAKY: then it passed.",
            ),
            click.option(
                "--seed",
                type=int,
                default=DEFAULT_SEED,
                help="Seed of the random choices in cases.",
            ),
            click.option(
                "--compare/--no-compare",
                default=True,
                help="Compare with earlier runs of the same --tree, variant, add-ons, toolchain, "
                "architecture and topology; fail if tests that passed there are missing.",
            ),
            click.option(
                "--known-issues",
                multiple=True,
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="More known issues, in the format of the shipped list; matching failures become XFAIL. "
                "Repeatable.",
            ),
        ),
    )


def _reason(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise UsageError("--accept needs a reason", hint="say why the cases are gone or skipped")
    return " ".join(value.split()) if value is not None else None


def accept_option(run: str) -> Callable[[F], F]:
    """Return --accept, whose help speaks of *run*."""
    return click.option(
        "--accept",
        metavar="REASON",
        callback=_reason,
        help=f"Accept the tests missing from {run}; {run} becomes the new baseline.",
    )


workers_option = click.option(
    "-n",
    "workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Parallel workers (pytest-xdist), each with its own VM; 0: run in this process.  "
    "[default: as many as fit on this host; with run 0 for -k, -x and --lf]",
)
verbose_option = click.option("-v", "verbose", is_flag=True, help="Print one line per case.")
junit_option = click.option(
    "--junit-xml",
    "junit",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write JUnit to this file; the run directory always has junit.xml.",
)

# SPDX-License-Identifier: GPL-2.0-only
"""The option groups that several verbs share, so that one thing has one spelling everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from harness import paths
from harness.errors import UsageError
from harness.host import default_compilers
from harness.machine.roots import DEFAULT_ROOT, ROOT_NAMES
from harness.plan import Isolation
from harness.session.wishes import DEFAULT_CPUS, DEFAULT_SEED, DEFAULT_SUITES, MachineWish

F = TypeVar("F", bound=Callable[..., Any])


def _apply(options: tuple[Callable[[F], F], ...], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def refuse_beside(sentence: str, kept: Collection[str]) -> None:
    """Refuse every parameter on the command line that is not one of *kept*, which go with what was asked for.

    *sentence* says why the others do not.  Parameters are called as in the function of the verb.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        # An argument that may repeat is always "given", with nothing in it.
        if given and name not in kept and context.params.get(name) != ():
            is_option = isinstance(parameter, click.Option)
            word = parameter.opts[0] if is_option else parameter.human_readable_name.strip("[]")
            raise UsageError(f"{sentence}: leave {word} out")


def _complete_variant(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from harness.kernel.variants import load_catalogue

    return [
        CompletionItem(v.name, help=v.summary)
        for v in load_catalogue().variants.values()
        if v.name.startswith(incomplete)
    ]


def _complete_topology(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from harness.machine.topology import shipped_topologies

    return [CompletionItem(name) for name in shipped_topologies() if name.startswith(incomplete)]


def _complete_addon(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from harness.kernel.variants import load_catalogue

    addons = load_catalogue().addons.values()
    return [CompletionItem(a.name, help=a.summary) for a in addons if a.name.startswith(incomplete)]


def _complete_suite(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from harness.suites.catalogue import suite_names

    return [CompletionItem(name) for name in suite_names() if name.startswith(incomplete)]


def _complete_case(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from harness.suites.probes import SUITE, probe_cases

    addresses = (f"{SUITE}/{case.address}" for case in probe_cases())
    return [CompletionItem(address) for address in addresses if address.startswith(incomplete)]


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The ids of earlier runs."""
    from harness.results import list_runs

    names = (summary.directory.name for summary in list_runs(paths.runs_dir()))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def suite_option(function: F) -> F:
    """Which suites to run."""
    return click.option(
        "--suite",
        "suites",
        multiple=True,
        default=DEFAULT_SUITES,
        show_default=True,
        metavar="NAME",
        shell_complete=_complete_suite,
        help="A suite to run; see: list suites. Repeatable.",
    )(function)


def case_option(function: F) -> F:
    """Which cases of them."""
    return click.option(
        "--case",
        "cases",
        multiple=True,
        metavar="ADDRESS",
        shell_complete=_complete_case,
        help="Only this case, e.g. probes/get_pa/gap_ends_the_length; shell patterns allowed. Repeatable.",
    )(function)


def keyword_option(function: F) -> F:
    """Which of them, in pytest's words."""
    return click.option("-k", "keyword", metavar="EXPR", help="pytest's -k: only items whose names match.")(
        function
    )


def run_argument(function: F) -> F:
    """An earlier run, by id or directory."""
    return click.argument("run", required=False, metavar="[RUN]", shell_complete=complete_run)(function)


def runs_argument(name: str) -> Callable[[F], F]:
    """One of several earlier runs, by id or directory."""
    return click.argument(name, metavar=name.upper(), shell_complete=complete_run)


def past_case_argument(function: F) -> F:
    """A case of earlier runs, or a pattern."""
    return click.argument("case", metavar="CASE", shell_complete=_complete_case)(function)


def tree_option_without(default: str) -> Callable[[F], F]:
    """Where the kernel source comes from; *default* is what the verb takes when nothing is said."""
    return click.option(
        "--tree",
        metavar="TREE",
        help="Directory, GITDIR@REF, tarball, or debian:latest | debian:7.3 | debian:7.3=7.3.4-1 "
        f"[default: {default}]",
    )


def tree_option(function: F) -> F:
    """Where the kernel source comes from, with what planning takes by default."""
    default = "the current directory if it is a kernel tree, else debian:latest"
    return tree_option_without(default)(function)


def kernel_options(function: F) -> F:
    """What to build of it, and how."""
    return _apply(
        (
            click.option(
                "--with",
                "addons",
                multiple=True,
                metavar="ADDON",
                shell_complete=_complete_addon,
                help="Add-on fragment; see: list variants. Repeatable.",
            ),
            click.option(
                "--config",
                "configs",
                multiple=True,
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Your own kconfig fragment on top. Repeatable.",
            ),
            click.option(
                "-j",
                "--jobs",
                type=click.IntRange(min=1),
                default=None,
                metavar="N",
                help=f"Parallel compilers [default: {default_compilers()}]",
            ),
        ),
        function,
    )


def variant_option(multiple: bool) -> Callable[[F], F]:
    """The no-IOMMU configuration to build."""
    return click.option(
        "--variant",
        "variants" if multiple else "variant",
        multiple=multiple,
        default=["group-cdev"] if multiple else "group-cdev",
        show_default=True,
        metavar="NAME",
        shell_complete=_complete_variant,
        help="No-IOMMU configuration to build; see: list variants." + (" Repeatable." if multiple else ""),
    )


def topology_option(multiple: bool) -> Callable[[F], F]:
    """The emulated devices to boot with."""
    return click.option(
        "--topology",
        "topologies" if multiple else "topology",
        multiple=multiple,
        default=["edu-igb"] if multiple else "edu-igb",
        show_default=True,
        metavar="NAME|FILE",
        shell_complete=_complete_topology,
        help="Emulated devices; see: list topologies." + (" Repeatable." if multiple else ""),
    )


def machine_options(function: F) -> F:
    """How the VM is run, and whether one may be restored: one argument *machine*, without a topology."""
    return vm_options(
        click.option(
            "--snapshots/--no-snapshots",
            default=True,
            show_default=True,
            help="Save a machine when it is ready for its first case, and restore it instead of booting.",
        )(function)
    )


def vm_options(function: F) -> F:
    """How the VM is run: one argument *machine*, a MachineWish without a topology."""

    @functools.wraps(function)
    def with_machine(
        *,
        accel: str,
        root: str,
        cpus: int,
        memory: int | None,
        qemu: str | None,
        snapshots: bool = True,
        **others: Any,
    ) -> Any:
        machine = MachineWish(
            topology="", accel=accel, root=root, cpus=cpus, memory=memory, qemu=qemu, snapshots=snapshots
        )
        return function(machine=machine, **others)

    return _apply(
        (
            click.option(
                "--accel",
                type=click.Choice(["auto", "kvm", "tcg"]),
                default="auto",
                show_default=True,
                help="auto proves KVM by really running a guest.",
            ),
            click.option(
                "--root",
                type=click.Choice(ROOT_NAMES),
                default=DEFAULT_ROOT,
                show_default=True,
                help="Where the guest's user space comes from: image is small and boots fast, virtme is this "
                "host's own root, read-only, with all your tools.",
            ),
            click.option(
                "--cpus", type=click.IntRange(1, 64), default=DEFAULT_CPUS, show_default=True, metavar="N"
            ),
            click.option(
                "--memory",
                type=click.IntRange(min=256),
                default=None,
                metavar="MIB",
                help="Guest memory [default: what topology and suites need, at least 1024]",
            ),
            click.option("--qemu", metavar="PATH", help="The qemu-system-x86_64 to use."),
        ),
        cast("F", with_machine),
    )


def _reason(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise UsageError("--accept wants a reason", hint="say why the cases are gone or skipped")
    return " ".join(value.split()) if value is not None else None


def accept_option(whose: str) -> Callable[[F], F]:
    """Why coverage is gone; *whose*, in the words of the verb."""
    return click.option(
        "--accept",
        metavar="REASON",
        callback=_reason,
        help=f"Take the coverage that {whose} lost for meant: later runs are held against it.",
    )


def workers_option(function: F) -> F:
    """How many VMs at once."""
    return click.option(
        "-n",
        "workers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Parallel workers (pytest-xdist), each with its own VM; 0: none.  "
        "[default: what the host has room for, none with -k, -x and --lf]",
    )(function)


def isolation_option(function: F) -> F:
    """How often a VM is taken that nothing has run in."""
    return click.option(
        "--isolation",
        type=click.Choice([i.value for i in Isolation]),
        default=Isolation.VM.value,
        show_default=True,
        help="Give every case, or every program, a VM of its own; vm: one VM for as long as it stays sound.",
    )(function)


def confirm_option(default: bool) -> Callable[[F], F]:
    """Whether a failure is tried again."""
    return click.option(
        "--confirm/--no-confirm",
        default=default,
        show_default=True,
        help="Try what fails once more, in a VM that nothing has run in; what then passes is FLAKY.",
    )


def junit_option(function: F) -> F:
    """Where JUnit goes beside the run's directory."""
    return click.option(
        "--junit-xml",
        "junit",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write JUnit here; the run directory always has junit.xml.",
    )(function)


def known_issues_option(function: F) -> F:
    """What the user knows of, beside what the harness does."""
    return click.option(
        "--known-issues",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="What you know of beside `list known-issues`, in a file of that form: XFAIL in place of FAIL.",
    )(function)


def seed_option(function: F) -> F:
    """Where random choices start."""
    return click.option(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        show_default=True,
        help="What random choices in cases start from.",
    )(function)


def compare_option(function: F) -> F:
    """Whether the verdict is about earlier runs as well."""
    return click.option(
        "--compare/--no-compare",
        default=True,
        show_default=True,
        help="Judge the run by earlier ones of the same line as well: what passed there must not be gone.",
    )(function)

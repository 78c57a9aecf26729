# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness doctor`: what this host lacks, what that costs, and `--fix`."""

from __future__ import annotations

import functools
import json

import click

from harness.base.errors import ExitCode, UsageError
from harness.base.output import emit, tell
from harness.cli import options
from harness.cli.doctor import (
    Check,
    CheckState,
    examine,
    examine_worker,
    fetch_userspaces,
    fix,
    packages_for,
)

_COLOURS = {CheckState.OK: "green", CheckState.WARNING: "yellow", CheckState.MISSING: "red"}


def _show(checks: tuple[Check, ...]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        state = click.style(f"{check.state.value:7}", fg=_COLOURS[check.state])
        emit(f"{state} {check.name:{width}}  {check.detail}")
        if check.cost and check.state is not CheckState.OK:
            emit(f"{'':7} {'':{width}}  {check.cost}")


@click.command("doctor")
@click.option("--fix", "install", is_flag=True, help="Install what is missing with apt (needs root or sudo).")
@options.toolchain_option(multiple=True, words=" Repeatable; gcc is always checked.")
@options.arch_option(multiple=True, words=" Repeatable; this host's is always checked.")
@click.option("--worker", "as_worker", is_flag=True, help="Check what a worker of a fleet needs instead.")
@click.option("--quiet", is_flag=True, help="Print only what is missing or limited.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def command(
    install: bool,
    toolchains: tuple[str, ...],
    arches: tuple[str, ...],
    as_worker: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Check what this host lacks and what does not work without it.

    Exits with 3 when something is missing that every run needs.
    """
    if as_worker and (toolchains or arches):
        hint = "check them without --worker"
        raise UsageError("--worker checks what a host needs to boot VMs: no --toolchain or --arch", hint=hint)
    look = examine_worker if as_worker else functools.partial(examine, toolchains, arches)
    checks = look()
    packages = packages_for(checks)
    if install and packages:
        tell(f"installing: {' '.join(packages)}")
        fix(packages)
    if install:
        fetch_userspaces(arches)
        checks = look()
    if as_json:
        emit(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        shown = tuple(c for c in checks if c.state is not CheckState.OK) if quiet else checks
        if shown:
            _show(shown)
    missing = [check for check in checks if check.state is CheckState.MISSING]
    if missing and not install and packages_for(missing):
        words = " --worker" if as_worker else "".join(f" --toolchain {name}" for name in toolchains)
        words += "".join(f" --arch {name}" for name in arches)
        tell(f"install what is missing with: vfio-harness doctor{words} --fix")
    return ExitCode.INFRA if missing else ExitCode.GOOD

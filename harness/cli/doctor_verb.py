# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness doctor`: what this host lacks, what that costs, and `--fix`."""

from __future__ import annotations

import json

import click

from harness.doctor import Finding, State, examine, fix, packages_for
from harness.errors import ExitCode
from harness.output import emit, tell

_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.MISSING: "red"}


def _show(findings: tuple[Finding, ...]) -> None:
    width = max(len(f.name) for f in findings)
    for finding in findings:
        state = click.style(f"{finding.state.value:7}", fg=_COLOURS[finding.state])
        emit(f"{state} {finding.name:{width}}  {finding.detail}")
        if finding.cost and finding.state is not State.OK:
            emit(f"{'':7} {'':{width}}  {finding.cost}")


@click.command("doctor")
@click.option("--fix", "mend", is_flag=True, help="Install what is missing with apt (needs root or sudo).")
@click.option("--quiet", is_flag=True, help="Print only what is not in order.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(mend: bool, quiet: bool, as_json: bool) -> int:
    """Say what this host lacks and what that costs.

    Exits with 3 when something is missing that a run cannot do without.
    """
    findings = examine()
    packages = packages_for(findings)
    if mend and packages:
        tell(f"installing: {' '.join(packages)}")
        fix(packages)
        findings = examine()
    if as_json:
        emit(json.dumps([f.to_json() for f in findings], indent=2))
    else:
        shown = tuple(f for f in findings if f.state is not State.OK) if quiet else findings
        if shown:
            _show(shown)
    missing = [f for f in findings if f.state is State.MISSING]
    if missing and not mend and packages_for(missing):
        tell("mend it with: vfio-harness doctor --fix")
    return ExitCode.INFRA if missing else ExitCode.GOOD

# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness history`: show the outcomes of a case in all runs."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import click

from harness.base import paths
from harness.base.errors import UsageError, nearest
from harness.base.output import emit
from harness.base.values import dumps
from harness.cli import options
from harness.report import compared
from harness.results import Past
from harness.results.history import History
from harness.session.reporting import ask


def _matching(case: str, known: Sequence[str]) -> list[str]:
    if not known:
        raise UsageError(f"there are no runs in {paths.runs_dir()}", hint="vfio-harness run makes one")
    found = [address for address in known if fnmatch.fnmatchcase(address, case)]
    if not found:
        hint = nearest(case, known, otherwise="see: vfio-harness list cases")
        raise UsageError(f"no run has a case {case!r}", hint=hint)
    return found


@click.command("history")
@options.past_case_argument
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N runs of each job.")
@click.option("--json", "as_json", is_flag=True, help="Print all fields as JSON.")
def command(case: str, last: int | None, as_json: bool) -> None:
    """Show outcomes, durations with their spread, and splats of CASE in every run.

    CASE is an address or a shell pattern.  Each job has a line of symbols, the oldest run first; durations
    are shown per accelerator.

    \b
    Examples:
      vfio-harness history probes/get_pa/gap_ends_the_length
      vfio-harness history 'probes/hotplug/*' --last 10
    """

    def question(history: History) -> dict[str, tuple[Past, ...]]:
        found = _matching(case, history.addresses())
        return {address: _newest(history.of_case(address), last) for address in found}

    past = ask(question)
    if as_json:
        plain = [compared.history_to_plain(address, found) for address, found in past.items()]
        emit(dumps(plain).rstrip("\n"))
        return
    emit(
        "\n".join(
            compared.render_history(address, found, detailed=len(past) == 1)
            for address, found in past.items()
        )
    )
    emit(compared.legend())


def _newest(past: Sequence[Past], last: int | None) -> tuple[Past, ...]:
    if last is None:
        return tuple(past)
    return tuple(one for found in compared.by_series(past).values() for one in found[-last:])

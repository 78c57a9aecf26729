# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness list`: what there is to choose from, and what is there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from harness import paths
from harness.errors import UsageError
from harness.output import emit
from harness.words import count_of

if TYPE_CHECKING:
    from harness.suites.upstream import UpstreamSuite

Row = dict[str, str]


def _variants() -> list[Row]:
    from harness.kernel.variants import load_catalogue

    catalogue = load_catalogue()
    rows = [{"name": v.name, "what": v.summary} for v in catalogue.variants.values()]
    return rows + [{"name": f"--with {a.name}", "what": a.summary} for a in catalogue.addons.values()]


def _topologies() -> list[Row]:
    from harness.machine.topology import load_topology, shipped_topologies

    loaded = [load_topology(name) for name in shipped_topologies()]
    return [{"name": t.name, "what": t.summary, "features": " ".join(sorted(t.features))} for t in loaded]


def _matrices() -> list[Row]:
    from harness.matrix import load_matrix, matrix_names

    return [
        {"name": name, "what": summary, "jobs": str(len(load_matrix(name).entries))}
        for name, summary in matrix_names().items()
    ]


def _suites() -> list[Row]:
    from harness.suites.probes import SUITE, probe_cases
    from harness.suites.upstream import shipped_suites

    ours = {"name": SUITE, "what": f"{len(probe_cases())} cases of our own"}
    return [
        ours,
        *({"name": suite.name, "what": _upstreams(suite)} for suite in shipped_suites().values()),
    ]


def _upstreams(suite: UpstreamSuite) -> str:
    if suite.is_compiled:
        return f"upstream's tools/testing/selftests/{suite.directory}"
    return f"{len(suite.entries)} of the kernel's own KUnit suites; they need --with {suite.directory}"


def _cases() -> list[Row]:
    from harness.suites.probes import SUITE, probe_cases

    return [
        {
            "name": f"{SUITE}/{case.address}",
            "what": case.promise,
            "suite": SUITE,
            "needs": " ".join(case.needs),
            "cites": case.cites,
        }
        for case in probe_cases()
    ]


def _known_issues() -> list[Row]:
    from harness.suites.known import shipped_issues

    return [
        {
            "name": issue.case,
            "what": f"{issue.kernels}: {issue.reason}",
            "kernels": str(issue.kernels),
            "evidence": issue.evidence,
            "expires": str(issue.expires or ""),
            "link": issue.link,
        }
        for issue in shipped_issues()
    ]


def _kernels() -> list[Row]:
    from harness.kernel.store import list_kernels

    return [
        {
            "name": str(facts["digest"]),
            "what": f"{facts['release']} {facts['variant']}",
            "tree": str(facts["tree_label"]),
        }
        for facts in list_kernels()
    ]


def _runs() -> list[Row]:
    from harness.report.view import told
    from harness.results import list_runs
    from harness.session.background import ask

    past = {run.directory.name: run for run in ask(lambda history: history.runs())}
    rows = []
    for name, run in past.items():
        amount = f"{count_of(sum(run.counts.values()), 'case')} in {count_of(run.jobs, 'job')}"
        rows.append(
            {
                "name": name,
                "what": f"{run.verdict.value:10} {amount}: {told(run.counts) or 'none'}",
                "started": f"{run.started:%Y-%m-%d %H:%M}",
                "verdict": run.verdict.value,
                "exit_code": str(int(run.exit_code)),
                "state": run.state.value,
                "why": run.why,
                "accepted": run.accepted,
                "accelerator": run.accel,
                "problem": "",
            }
        )
    # What the history does not have is going on, or cannot be read.
    others = [run for run in list_runs(paths.runs_dir()) if run.directory.name not in past]
    going = [
        {
            "name": run.directory.name,
            "what": run.problem.removeprefix(f"{run.directory}/") or run.state.value,
            "started": f"{run.info.started:%Y-%m-%d %H:%M}" if run.info else "",
            "state": run.state.value,
            "problem": run.problem,
        }
        for run in others
    ]
    return [*(row for row in going if not row["problem"]), *rows, *(row for row in going if row["problem"])]


_KINDS: Mapping[str, Callable[[], list[Row]]] = {
    "variants": _variants,
    "topologies": _topologies,
    "matrices": _matrices,
    "suites": _suites,
    "cases": _cases,
    "known-issues": _known_issues,
    "kernels": _kernels,
    "runs": _runs,
}


def _print(rows: Sequence[Row]) -> None:
    """Name and what in two columns, cut to the terminal; everything else is for --json."""
    width = max((len(row["name"]) for row in rows), default=0)
    room = shutil.get_terminal_size((110, 40)).columns - width - 2
    for row in rows:
        text = " ".join(row["what"].split())
        shown = text if len(text) <= room else f"{text[: max(0, room - 3)]}..."
        emit(f"{row['name']:{width}}  {shown}")


@click.command("list")
@click.argument("kind", type=click.Choice(list(_KINDS)))
@click.option("--json", "as_json", is_flag=True, help="Everything that is known of each, as JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="The catalogue of cases as a document.")
def command(kind: str, as_json: bool, as_markdown: bool) -> None:
    """List variants, topologies, matrices, suites, cases, known issues, kernels in the store, or runs.

    \b
    Examples:
      vfio-harness list cases --json | jq -r '.[] | select(.needs | contains("igb")).name'
      vfio-harness list runs
    """
    if as_markdown:
        if kind != "cases" or as_json:
            raise UsageError("--markdown is for cases alone, and is not JSON")
        from harness.suites.listing import markdown

        emit(markdown().rstrip("\n"))
        return
    rows = _KINDS[kind]()
    if as_json:
        emit(json.dumps(rows, indent=2))
    else:
        _print(rows)

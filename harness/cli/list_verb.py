# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness list`: show what can be chosen, the kernels in the store, and the runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence

import click

from harness.base import paths
from harness.base.errors import UsageError
from harness.base.output import emit
from harness.base.words import count_of

Row = dict[str, str]


def _variants() -> list[Row]:
    from harness.kernel.variants import load_catalogue

    catalogue = load_catalogue()
    rows = [{"name": v.name, "what": v.summary} for v in catalogue.variants.values()]
    return rows + [{"name": f"--with {a.name}", "what": a.summary} for a in catalogue.addons.values()]


def _topologies() -> list[Row]:
    from harness.kernel.arch import ARCHES
    from harness.machine.topology import arches_of, read_topology, shipped_topologies

    loaded = [(topology, arches_of(topology)) for topology in map(read_topology, shipped_topologies())]
    return [
        {
            "name": topology.name,
            "what": topology.summary + ("" if len(on) == len(ARCHES) else f" ({', '.join(on)} only)"),
            "features": " ".join(sorted(topology.features)),
            "arches": " ".join(on),
        }
        for topology, on in loaded
    ]


def _matrices() -> list[Row]:
    from harness.matrix import load_matrix, matrix_names

    return [
        {"name": name, "what": summary, "jobs": str(len(load_matrix(name).entries))}
        for name, summary in matrix_names().items()
    ]


def _suites() -> list[Row]:
    from harness.suites.registry import all_suites

    return [{"name": suite.name, "what": suite.summary} for suite in all_suites()]


def _cases() -> list[Row]:
    from harness.suites.registry import declared_cases

    return [
        {
            "name": case.address,
            "what": case.promise,
            "suite": case.address.partition("/")[0],
            "needs": " ".join(case.needs),
            "cites": case.cites,
        }
        for case in declared_cases()
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
    from harness.kernel.arch import find_arch
    from harness.kernel.store import list_kernels

    return [
        {
            "name": str(facts["digest"]),
            "what": f"{facts['release']} {facts['variant']}"
            + (f" for {facts['arch']}" if "arch" in facts and find_arch(facts["arch"]).label else "")
            + (f" from {facts['tree_label']}" if facts.get("handed_in") else ""),
            "tree": str(facts["tree_label"]),
        }
        for facts in list_kernels()
    ]


def _runs() -> list[Row]:
    from harness.report.view import told, tree_name
    from harness.results.store import list_runs
    from harness.session.reporting import ask

    past = {run.directory.name: run for run in ask(lambda history: history.runs())}
    finished = [
        {
            "name": name,
            "what": f"{run.verdict.value:14} {count_of(sum(run.counts.values()), 'case')} in "
            f"{count_of(run.jobs, 'job')}: {told(run.counts) or 'none'}; {tree_name(run.tree)}",
            "started": f"{run.started:%Y-%m-%d %H:%M}",
            "tree": run.tree,
            "verdict": run.verdict.value,
            "exit_code": str(int(run.exit_code)),
            "state": run.state.value,
            "why": run.why,
            "accepted": run.accepted,
            "accelerator": run.accel,
            "problem": "",
        }
        for name, run in past.items()
    ]
    # A run that the history does not have is going on, or cannot be read.
    others = [
        {
            "name": run.directory.name,
            "what": run.problem.removeprefix(f"{run.directory}/") or run.state.value,
            "started": f"{run.info.started:%Y-%m-%d %H:%M}" if run.info else "",
            "tree": run.info.inputs.tree if run.info else "",
            "state": run.state.value,
            "problem": run.problem,
        }
        for run in list_runs(paths.runs_dir())
        if run.directory.name not in past
    ]
    damaged = [row for row in others if row["problem"]]
    return [*(row for row in others if not row["problem"]), *finished, *damaged]


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
    """Print name and summary in two columns, cut to the width of the terminal."""
    width = max((len(row["name"]) for row in rows), default=0)
    room = shutil.get_terminal_size((110, 40)).columns - width - 2
    for row in rows:
        text = " ".join(row["what"].split())
        shown = text if len(text) <= room else f"{text[: max(0, room - 3)]}..."
        emit(f"{row['name']:{width}}  {shown}")


@click.command("list")
@click.argument("kind", type=click.Choice(list(_KINDS)))
@click.option("--json", "as_json", is_flag=True, help="Print all fields as JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the catalogue of cases as a document.")
def command(kind: str, as_json: bool, as_markdown: bool) -> None:
    """List variants, topologies, matrices, suites, cases, known issues, kernels in the store, or runs.

    \b
    Examples:
      vfio-harness list cases --json | jq -r '.[] | select(.needs | contains("igb")).name'
      vfio-harness list runs
    """
    if as_markdown:
        if kind != "cases" or as_json:
            raise UsageError("--markdown is only for list cases, and not with --json")
        from harness.suites.listing import markdown

        emit(markdown().rstrip("\n"))
    elif as_json:
        emit(json.dumps(_KINDS[kind](), indent=2))
    else:
        _print(_KINDS[kind]())

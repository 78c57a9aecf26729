# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue of probe cases as a document, `guest/CATALOGUE.md`: promises, needs and sources."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence

from guest.case import PROBES, Case
from harness.suites.known import KnownIssue, shipped_issues
from harness.suites.probes import SUITE, probe_cases

_HEAD = """\
<!-- Generated: vfio-harness list cases --markdown > guest/CATALOGUE.md -->
# Catalogue of probe cases

{cases} cases in {modules} modules. A case tests one promise of the kernel. Run cases by their addresses:
`vfio-harness run --case '{suite}/get_pa/*'`. The words under *needs* are explained in `guest/needs.py`; a
case whose needs are not met is skipped, with that reason. A known issue (`harness/suites/known-issues.yaml`)
is a promise that released kernels break: the case is XFAIL on them, and XPASS on a kernel that keeps it.
"""


def markdown() -> str:
    """Return the whole document, with a newline at its end."""
    groups = [(name, list(cases)) for name, cases in itertools.groupby(probe_cases(), lambda c: c.module)]
    head = _HEAD.format(cases=len(probe_cases()), modules=len(groups), suite=SUITE)
    return "\n".join([head, *(_module(name, cases) for name, cases in groups)])


def _module(name: str, cases: Sequence[Case]) -> str:
    about = " ".join((importlib.import_module(f"{PROBES}.{name}").__doc__ or "").split("\n\n")[0].split())
    lines = [f"## {name}", "", about, "", "| case | promise | needs | source |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(_row, cases), ""])


def _row(case: Case) -> str:
    known = "".join(
        f" **Known issue on {issue.kernels}**: {issue.reason} ({_evidence(issue)})."
        for issue in shipped_issues()
        if issue.case == f"{SUITE}/{case.address}"
    )
    needs = ", ".join(f"`{need}`" for need in case.needs) or "nothing"
    cells = (f"`{case.name}`", case.promise + known, needs, case.cites)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _evidence(issue: KnownIssue) -> str:
    """Links to a file of this project and to the report; a place in a kernel's source as it is."""
    ours = f"[evidence](../{issue.evidence})" if issue.evidence.startswith("docs/") else issue.evidence
    return f"{ours}; [report]({issue.link})" if issue.link else ours

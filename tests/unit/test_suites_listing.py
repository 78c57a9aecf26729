# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue of cases in the tree is the one that the cases make."""

from __future__ import annotations

import re
from pathlib import Path

from harness.suites.listing import markdown
from harness.suites.probes import probe_cases

CATALOGUE = Path(__file__).parents[2] / "guest" / "CATALOGUE.md"


def test_catalogue_in_the_tree_is_up_to_date() -> None:
    """After a change of a case: vfio-harness list cases --markdown > guest/CATALOGUE.md"""
    assert CATALOGUE.read_text(encoding="utf-8") == markdown()


def test_every_case_is_in_it_once() -> None:
    text = markdown()
    for case in probe_cases():
        assert text.count(f"| `{case.name}` | {case.promise}") == 1, case.address


def test_every_link_leads_somewhere() -> None:
    """Evidence is a file of this project or a place in a kernel's source; only the former can be followed."""
    links = re.findall(r"\]\((?!https://)([^)]*)\)", markdown())
    assert links
    assert [link for link in links if not (CATALOGUE.parent / link).is_file()] == []

# SPDX-License-Identifier: GPL-2.0-only
"""Commands shown in the documents and in --help parse; links resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from harness.cli.main import VERBS, app
from harness.kernel.variants import load_catalogue
from harness.machine.topology import shipped_topologies
from harness.suites.catalogue import check_patterns
from harness.suites.probes import probe_cases
from harness.suites.registry import suite_names

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_COMMAND = re.compile(r"vfio-harness [a-z-]+.*")
_FENCED = re.compile(r"```(?:sh|console)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`([^`\n]*vfio-harness [a-z][^`\n]*)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def commands() -> Iterator[str]:
    """Every `vfio-harness VERB ...` in the documents and in the help texts."""
    texts = [app.epilog or ""]
    for verb in VERBS:
        command = app.get_command(click.Context(app), verb)
        assert command is not None
        texts.append(command.help or "")
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        texts += [block.replace("\\\n", " ") for block in _FENCED.findall(text)]
        texts += _INLINE.findall(text)
    for line in _COMMAND.findall("\n".join(texts)):
        words = re.split(r"\s{2,}#?|\||;|&&| > ", line)[0].strip()
        yield words.rstrip("'") if words.count("'") % 2 else words


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_command_parses(line: str) -> None:
    """The verb exists and takes the options; names of variants, topologies and cases are real."""
    words = shlex.split(line)[1:]
    command = app.get_command(click.Context(app), words[0])
    assert command is not None, f"there is no verb {words[0]!r}"
    given = command.make_context(words[0], words[1:], resilient_parsing="NAME" in words).params
    for name in (*given.get("variants", ()), given.get("variant")):
        assert name in (None, "NAME") or name in load_catalogue().variants
    for name in given.get("topologies", ()):
        assert name.startswith("./") or name in shipped_topologies()
    check_patterns([case for case in given.get("cases", ()) if "/" in case], suite_names())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    """A relative link names a file of this project."""
    for target in _LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_cases_of_findings_exist() -> None:
    """Each finding in the table has a directory and names cases that there are."""
    findings = ROOT / "docs/findings"
    text = (findings / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\S+)\].*\|(.*)\|$", text, re.MULTILINE)
    assert {name for name, _cases in rows} == {path.name for path in findings.iterdir() if path.is_dir()}
    known = {case.address for case in probe_cases()}
    for name, cases in rows:
        named = re.findall(r"`([^`]+)`", cases)
        assert named, name
        assert set(named) <= known, name


def test_readme_is_short() -> None:
    """The README is an entrance, not the manual."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120

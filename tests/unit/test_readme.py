# SPDX-License-Identifier: GPL-2.0-only
"""What README and --help tell people to type can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from harness.cli.main import VERBS, app
from harness.kernel.variants import load_catalogue
from harness.machine.topology import shipped_topologies
from harness.suites.catalogue import check_patterns, suite_names

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    """Every `vfio-harness ...` line in the README's shell blocks and in the help texts."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)).replace("\\\n", " ")
    helps = [app.epilog or ""]
    for verb in VERBS:
        command = app.get_command(click.Context(app), verb)
        assert command is not None
        helps.append(command.help or "")
    found = re.findall(r"vfio-harness (?:[a-z].*)", "\n".join([blocks, *helps]))
    lines = [re.split(r"\s{2,}#?|\||;| > ", line)[0].strip() for line in found]
    return [line.rstrip("'") if line.count("'") % 2 else line for line in lines]


@pytest.mark.parametrize("line", commands())
def test_command_is_understood(line: str) -> None:
    """The verb exists, it takes the options, and names of variants, topologies and cases are real."""
    words = shlex.split(line)[1:]
    command = app.get_command(click.Context(app), words[0])
    assert command is not None
    given = command.make_context(words[0], words[1:], resilient_parsing=False).params
    for name in (*given.get("variants", ()), given.get("variant")):
        assert name is None or name in load_catalogue().variants
    for name in given.get("topologies", ()):
        assert name in shipped_topologies()
    check_patterns(given.get("cases", ()), suite_names())


def test_no_placeholders_are_left() -> None:
    """The README shows real output."""
    assert "@OUTPUT@" not in (ROOT / "README.md").read_text(encoding="utf-8")

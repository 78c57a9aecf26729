# SPDX-License-Identifier: GPL-2.0-only
"""The nightly box of docs/nightly: what its unit starts can be started, and by whom."""

from __future__ import annotations

import configparser
import datetime
import shlex
from pathlib import Path

import click
import pytest

from harness.cli.main import app
from harness.cli.moment import parse_moment

NIGHTLY = Path(__file__).resolve().parents[2] / "docs" / "nightly"


def section(name: str) -> configparser.SectionProxy:
    """The section of the service that is called *name*."""
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(NIGHTLY / "vfio-harness-nightly.service", encoding="utf-8")
    return unit[name]


def given(line: str) -> dict[str, object]:
    """What the parameters of the command *line* of the unit come to."""
    _, verb, *words = shlex.split(section("Service")[line])
    command = app.get_command(click.Context(app), verb)
    assert command is not None
    return dict(command.make_context(verb, words).params)


@pytest.mark.parametrize("hour", [9, 22])
def test_a_night_made_up_for_is_no_longer_than_another(hour: int) -> None:
    """The timer is persistent, so that the run may begin at any time of day."""
    now = datetime.datetime(2030, 1, 1, hour, 30, tzinfo=datetime.UTC)
    deadline = str(given("ExecStart")["deadline"])
    assert parse_moment(deadline, now) - now == datetime.timedelta(hours=8)


def test_what_ends_the_night_is_understood() -> None:
    assert given("ExecStopPost")["runs_older_than"] == 90


def test_the_units_user_may_use_kvm_and_needs_no_root() -> None:
    """What needs root is said to be root's."""
    assert section("Service")["SupplementaryGroups"] == "kvm"
    readme = (NIGHTLY / "README.md").read_text(encoding="utf-8")
    assert "vfio-harness doctor --fix" in readme
    assert "make setup" not in readme

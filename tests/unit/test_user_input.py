# SPDX-License-Identifier: GPL-2.0-only
"""Input that Python's own conversions refuse: homes of nobody, and numbers of thousands of digits."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click import BadParameter
from test_coverage_model import COVERAGE

from harness.base import paths
from harness.base.errors import UsageError
from harness.cli import gc_verb
from harness.fleet.address import FleetAddress
from harness.kernel import series
from harness.kernel.ready import hand_in
from harness.kernel.trees import open_tree
from harness.lab.admission import most_vms
from harness.matrix.shards import parse_shard
from harness.report.console import write
from harness.session import own
from harness.session.wishes import line_of, split_program

LONG = "9" * 5000
NOBODY = "~nosuchuser/x"


@pytest.mark.parametrize(
    "take",
    [
        lambda: FleetAddress.parse(f"{NOBODY}.yaml"),
        lambda: hand_in(NOBODY, None, None),
        lambda: line_of(f"{NOBODY}@v7.3"),
        lambda: open_tree(NOBODY),
        lambda: split_program(f"{NOBODY} -v"),
    ],
)
def test_a_home_of_nobody_is_named(take: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=f"{NOBODY}.*: there is no such home directory"):
        take()


def test_one_function_expands_homes() -> None:
    """Path.expanduser() raises a RuntimeError."""
    package = paths.package_dir()
    found = [path for path in package.rglob("*.py") if ".expanduser(" in path.read_text(encoding="utf-8")]
    assert {str(path.relative_to(package)) for path in found} == {"base/paths.py"}


@pytest.mark.parametrize(
    "take",
    [
        lambda: FleetAddress.parse(f"local:{LONG}"),
        lambda: FleetAddress.parse(f"tls://build1:{LONG}"),
        lambda: parse_shard(f"1/{LONG}"),
        lambda: COVERAGE.find(f"vfio_main.c:{LONG}"),
        lambda: COVERAGE.find("vfio_main.c:\u00b2"),
        lambda: gc_verb._size(None, None, f"{LONG}G"),  # type: ignore[arg-type]
        most_vms,
    ],
)
def test_long_numbers_are_wrong_use(take: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_HARNESS_VMS", LONG)
    with pytest.raises((UsageError, BadParameter)):
        take()


def test_long_numbers_in_files_are_text(tmp_path: Path) -> None:
    """Of a mail's subject and of the settings beside a test."""
    mail = tmp_path / "1.patch"
    mail.write_text(f"Subject: [PATCH v{LONG} {LONG}/2] vfio: x\n\n", encoding="utf-8")
    assert (series._read(mail).version, series._read(mail).number) == (1, 1)
    assert re.search(own._TIMEOUT, f"timeout={LONG}") is None


def test_a_long_width_is_none() -> None:
    shown = io.StringIO()
    write(lambda width, _: str(width), shown, environ={"COLUMNS": LONG})
    assert shown.getvalue().strip() == "100"

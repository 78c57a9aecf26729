# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with coverage counters: which line which case reaches, and which cases an edit affects."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode

NOIOMMU, OTHER = "probes/nodes/cdev_is_named_noiommu", "probes/ioas/*"
NAMED = "vfio_main.c:vfio_device_set_noiommu_and_name"


def harness(*words: str) -> process.Completed:
    return process.run([sys.executable, "-m", "harness", *words], deadline=Deadline.after(3600))


@pytest.fixture(scope="module")
def run(runs_elsewhere: Path) -> str:
    """The id of a run with counters of a few cases."""
    words = ("--tree", "debian:7.3", "--topology", "edu", "--with", "gcov")
    done = harness("run", *words, "--case", NOIOMMU, "--case", OTHER)
    assert done.status == ExitCode.GOOD, done.stderr
    assert re.search(r"coverage: \d+ of \d+ lines .* of the no-IOMMU code ran", done.stderr), done.stderr
    where = re.search(r"^everything is in (.*)$", done.stderr, re.MULTILINE)
    assert where is not None
    return Path(where[1]).name


def test_the_case_that_reaches_a_function(run: str) -> None:
    """The case of the name runs the function that gives it, and makes no IOAS, as others do."""
    done = harness("coverage", run, "--line", NAMED)
    assert NOIOMMU in done.stdout, done.stderr
    done = harness("coverage", run, "--line", "ioas.c:iommufd_ioas_alloc_ioctl")
    assert "probes/ioas/" in done.stdout, done.stderr
    assert NOIOMMU not in done.stdout


def test_the_table_has_the_files_that_ran(run: str) -> None:
    (tree,) = json.loads(harness("coverage", run, "--json").stdout)["trees"]
    rows = {row["name"]: row for row in tree["rows"]}
    assert 0 < rows["no-IOMMU code"]["lines_run"] < rows["no-IOMMU code"]["lines"]
    assert rows["drivers/iommu/iommufd/ioas.c"]["branches_taken"] > 0


def test_a_function_that_does_not_exist_names_the_nearest(run: str) -> None:
    done = harness("coverage", run, "--line", "vfio_main.c:vfio_device_set_noiommu")
    assert done.status == ExitCode.USAGE
    assert "did you mean 'vfio_device_set_noiommu_and_name'?" in done.stderr

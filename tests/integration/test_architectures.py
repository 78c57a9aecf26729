# SPDX-License-Identifier: GPL-2.0-only
"""A kernel of another architecture than this host's: cross-built, booted by emulation, tested."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import TREE

from harness.base import process
from harness.base.deadline import Deadline
from harness.cli import doctor
from harness.cli.doctor import CheckState
from harness.kernel.arch import ARCHES

FOREIGN = next(arch for arch in ARCHES.values() if arch.label)


def test_a_guest_of_another_architecture_is_tested() -> None:
    """Nonce, build-id and devices are proved, the agent answers, and MSI arrive."""
    lacking = [check.detail for check in doctor.examine_foreign(FOREIGN) if check.state is CheckState.MISSING]
    if lacking:
        pytest.skip(f"no {FOREIGN.name} guest can be made here: {lacking[0]}")
    words = ["run", "--tree", TREE, "--arch", FOREIGN.name, "--topology", "edu", "--suite", "probes"]
    words += ["--case", "probes/nodes/*", "--case", "probes/get_pa/*", "--case", "probes/msi/*", "-n", "0"]
    argv = [sys.executable, "-m", "harness", *words, "--json"]
    done = process.run(argv, deadline=Deadline.after(5400))
    assert done.status == 0, done.stderr
    run = json.loads(done.stdout)
    (job,) = run["jobs"]
    assert job["arch"] == FOREIGN.name
    outcomes = {case["address"]: case["outcome"] for case in run["cases"]}
    assert outcomes["probes/msi/each_msi_is_an_event"] == "PASS"
    assert "FAIL" not in outcomes.values()

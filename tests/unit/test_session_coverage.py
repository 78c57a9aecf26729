# SPDX-License-Identifier: GPL-2.0-only
"""What a run does with the counters that its guests sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from history_runs import made_run
from plan_jobs import job
from test_coverage_model import COVERAGE

from harness.base.errors import InfraError
from harness.plan import Job
from harness.results import Run
from harness.results.coverage.model import Coverage
from harness.session import coverage


def job_of(digest: str) -> Job:
    made = job(features=("gcov",))
    return dataclasses.replace(made, name=digest, kernel=dataclasses.replace(made.kernel, digest=digest))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, SimpleNamespace]:
    """The kernels of the store; each has a tree of its own, whose coverage is named like it."""
    kernels = {
        digest: SimpleNamespace(digest=digest, gcov=gcov, notes=tmp_path / digest)
        for digest, gcov in {"one": "gcov", "two": "gcov", "damaged": "gcov", "handed-in": ""}.items()
    }

    def facts(entry: Path) -> Mapping[str, str]:
        if entry.name == "damaged":
            raise InfraError("the store entry is damaged")
        return {"tree_identity": entry.name}

    def decode_tree(run: Run, jobs: Sequence[tuple[Job, SimpleNamespace]]) -> Coverage:
        return dataclasses.replace(COVERAGE, tree="+".join(job.name for job, _ in jobs))

    monkeypatch.setattr(coverage, "find_built", kernels.get)
    monkeypatch.setattr(coverage, "read_facts", facts)
    monkeypatch.setattr(coverage, "_decode_tree", decode_tree)
    return kernels


def test_a_kernel_without_counters_costs_only_its_own_jobs(
    store: dict[str, SimpleNamespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path, 1)
    jobs = [job_of(digest) for digest in ("never-built", "one", "handed-in", "damaged", "two")]
    assert [found.tree for found in coverage.decode(run, jobs)] == ["one", "two"]
    said = capsys.readouterr().err
    assert "job never-built is left out: its kernel never-built is not in the store" in said
    assert "job handed-in is left out: its kernel handed-in was built elsewhere" in said
    assert "job damaged is left out: the store entry is damaged" in said
    with pytest.raises(InfraError, match="no kernel of the run has counters"):
        coverage.decode(run, [job_of("never-built")])

# SPDX-License-Identifier: GPL-2.0-only
"""What a run does with the counters that its guests sent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from history_runs import JOB, made_run, make_run
from plan_jobs import job
from test_coverage_model import COVERAGE, NAME

from harness.base.errors import HostError, InfraError, UsageError
from harness.cli.coverage_verb import command
from harness.kernel import gittree
from harness.plan import PLAN_FILE, Job, Plan
from harness.results import Run
from harness.results.coverage import model
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

    for digest in kernels:
        (tmp_path / digest).mkdir()

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
    store["fleet"] = SimpleNamespace(digest="fleet", gcov="gcov", notes=tmp_path / "none")
    run = made_run(tmp_path, 1)
    jobs = [job_of(digest) for digest in ("never-built", "one", "handed-in", "fleet", "damaged", "two")]
    assert [found.tree for found in coverage.decode(run, jobs)] == ["one", "two"]
    said = capsys.readouterr().err
    assert "job never-built is left out: its kernel never-built is not in the store" in said
    assert "job handed-in is left out: its kernel handed-in was built elsewhere" in said
    assert "job fleet is left out: its kernel fleet was built elsewhere" in said
    assert "job damaged is left out: the store entry is damaged" in said
    with pytest.raises(InfraError, match="no counters of the run can be read"):
        coverage.decode(run, [job_of("never-built")])


def test_trees_with_one_label_have_files_of_their_own(
    store: dict[str, SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As worktrees of one commit have, both with local changes."""
    monkeypatch.setattr(coverage, "_decode_tree", lambda run, jobs: COVERAGE)
    run = made_run(tmp_path, 1)
    found = coverage.decode(run, [job_of("one"), job_of("two")])
    for one in found:
        one.save(Path(run.directory))
    assert [one.tree for one in model.load(Path(run.directory))] == [
        f"{COVERAGE.tree} {d}" for d in ("one", "two")
    ]

    def resolve(directory: Path, revision: str) -> None:
        raise UsageError(f"asked in {directory}")

    monkeypatch.setattr(gittree, "resolve", resolve)
    jobs = [
        dataclasses.replace(
            JOB, name=name, tree=f"{COVERAGE.tree} {name}", line=str(tmp_path / name), commit="c"
        )
        for name in ("one", "two")
    ]
    with pytest.raises(UsageError, match=f"asked in {tmp_path / 'two'}"):
        coverage.show_diff(dataclasses.replace(run, jobs=tuple(jobs)), found[1], "HEAD")


def test_a_diff_is_not_asked_of_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the current one, if the worktree was removed, nor of that of the selftests."""

    def resolve(directory: Path, revision: str) -> None:
        raise UsageError(f"asked in {directory}")

    monkeypatch.setattr(gittree, "resolve", resolve)
    run, own = made_run(tmp_path, 1), tmp_path / "my@linux"
    own.mkdir()

    def diff(line: str) -> None:
        job = dataclasses.replace(JOB, tree=f"{COVERAGE.tree} d1", line=line, commit="c")
        coverage.show_diff(dataclasses.replace(run, jobs=(job,)), COVERAGE, "HEAD")

    for line in (f"{own}", f"{own}@topic", f"{own} with selftests of /src@x"):
        with pytest.raises(UsageError, match=f"asked in {own}$"):
            diff(line)
    with pytest.raises(UsageError, match=f"asked in {tmp_path / 'gone'}$"):
        diff(f"{tmp_path / 'gone'}")


def test_a_tree_that_cannot_be_decoded_costs_no_other_tree(
    store: dict[str, SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def decode_tree(run: Run, jobs: Sequence[tuple[Job, SimpleNamespace]]) -> Coverage:
        if jobs[0][0].name == "one":
            raise HostError("gcov-15 is missing")
        return COVERAGE

    monkeypatch.setattr(coverage, "_decode_tree", decode_tree)
    assert coverage.decode(made_run(tmp_path, 1), [job_of("one"), job_of("two")]) == [COVERAGE]
    assert "coverage of a tree: gcov-15 is missing" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_costs_neither_map_nor_other_reports(
    store: dict[str, SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    learnt: list[object] = []

    def write_reports(found: Coverage, *, html: Path, lcov: Path) -> None:
        assert learnt
        if found.tree == "one":
            raise HostError("gcovr failed")
        html.mkdir()

    monkeypatch.setattr(coverage, "ask", learnt.append)
    monkeypatch.setattr(coverage, "write_reports", write_reports)
    directory = make_run(tmp_path, 1)
    plan = Plan(run_id="r", seed=1, cases=(), jobs=(job_of("one"), job_of("two")))
    plan.save(directory / PLAN_FILE)
    coverage.keep_coverage(directory)
    assert [found.tree for found in model.load(directory)] == ["one", "two"]
    assert (directory / model.DIRECTORY / "two").is_dir()
    said = capsys.readouterr().err
    assert "coverage of one: gcovr failed" in said
    assert "coverage: 2 of 3 lines" in said


def test_a_tree_without_an_answer_does_not_hide_that_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    directory = make_run(tmp_path, 1)
    dataclasses.replace(COVERAGE, tree="Linux 7.2", sources={}, files={}).save(directory)
    COVERAGE.save(directory)
    words = [directory.name, "--line"]
    assert command.main([*words, "vfio_main.c:3"], standalone_mode=False) == 0
    out, err = capsys.readouterr()
    assert f"{NAME}:3: 1 of 1 lines ran; 2 cases" in out
    assert "coverage of Linux 7.2: --line vfio_main.c:3: no profiled file ends with" in err
    with pytest.raises(UsageError, match=r"no profiled file ends with 'x\.c'"):
        command.main([*words, "x.c:3"], standalone_mode=False)


def test_answers_for_several_trees_can_be_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And their tables are one JSON document."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    directory = make_run(tmp_path, 1)

    def shown(*words: str) -> str:
        command.main([directory.name, *words], standalone_mode=False)
        return capsys.readouterr().out

    COVERAGE.save(directory)
    assert shown("--missing").startswith(f"{NAME}:9")
    assert [one["tree"] for one in json.loads(shown("--json"))["trees"]] == ["Linux 7.3.4"]
    dataclasses.replace(COVERAGE, tree="Linux 7.2").save(directory)
    for words in (("--missing",), ("--line", "vfio_main.c:3")):
        heads = [line for line in shown(*words).splitlines() if line.startswith("Linux")]
        assert heads == ["Linux 7.2:", "Linux 7.3.4:"]
    monkeypatch.setattr(coverage, "show_diff", lambda run, one, revision: "0 of 0")
    assert shown("--diff") == "Linux 7.2:\n0 of 0\nLinux 7.3.4:\n0 of 0\n"
    assert shown().count("Linux 7.2") == 1
    assert [one["tree"] for one in json.loads(shown("--json"))["trees"]] == ["Linux 7.2", "Linux 7.3.4"]


def test_changed_lines_are_those_of_the_tree_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another tree's name may begin with its name."""

    def resolve(directory: Path, revision: str) -> None:
        raise UsageError(f"asked in {directory}")

    monkeypatch.setattr(gittree, "resolve", resolve)
    other, own = (
        dataclasses.replace(JOB, name=tree, tree=f"{tree} d1", line=f"/src/{line}@x", commit="c")
        for tree, line in (("v7.3 with local changes", "other"), ("v7.3", "own"))
    )
    run = dataclasses.replace(made_run(tmp_path, 1), jobs=(other, own))
    with pytest.raises(UsageError, match="asked in /src/own"):
        coverage.show_diff(run, dataclasses.replace(COVERAGE, tree="v7.3"), "HEAD")

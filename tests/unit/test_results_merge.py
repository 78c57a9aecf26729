# SPDX-License-Identifier: GPL-2.0-only
"""Several runs become one: one page, one verdict, one entry of the history."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from history_runs import GOOD, INPUTS, JOB, case, make_run

from harness.base.errors import UsageError
from harness.results import Dump, Outcome, Run, RunState, Verdict, reach_verdict
from harness.results.historyfile import consult
from harness.results.merge import MERGED, merge
from harness.results.store import load, record_dumps

OTHER = dataclasses.replace(JOB, name="7.3.4-cdev-igb", topology="igb")
THIRD = dataclasses.replace(JOB, name="7.3.4-cdev-edu", topology="edu")


def _shard(root: Path, day: int, part: int, count: int = 2, **fields: object) -> Run:
    extra = {"matrix": "nightly", "shard": f"{part}/{count}", "host": f"host{part}"}
    jobs = (JOB, OTHER, THIRD)[:count]
    job = jobs[part - 1]
    elsewhere = tuple(other.cell for other in jobs if other is not job)
    inputs = dataclasses.replace(INPUTS, extra=extra, elsewhere=elsewhere)
    results = tuple(dataclasses.replace(case(n, o), job=job.name) for n, o in GOOD.items())
    made = {"results": results, **fields}
    directory = make_run(root, day, {}, job=job, inputs=inputs, **made)  # type: ignore[arg-type]
    return load(directory)


def test_two_shards_are_one_run(tmp_path: Path) -> None:
    shards = [_shard(tmp_path, 1, 1), _shard(tmp_path, 2, 2)]
    run = merge(shards, tmp_path, ("report", "--merge"))
    assert [job.name for job in run.jobs] == [JOB.name, OTHER.name]
    assert len(run.cases) == 2 * len(GOOD)
    assert (run.state, run.verdict) == (RunState.FINISHED, Verdict.GOOD)
    inputs = run.info.inputs
    assert inputs.elsewhere == ()
    assert inputs.matrix == "nightly"
    assert inputs.extra["host"] == "host1; host2"
    assert inputs.extra[MERGED] == "run01 run02"
    assert run.finished == max(shard.finished for shard in shards if shard.finished)


def test_history_has_it_once(tmp_path: Path) -> None:
    """Whether its parts were in the history before or not."""
    first = [_shard(tmp_path, 1, 1), _shard(tmp_path, 2, 2)]
    assert len(consult(tmp_path, lambda history: history.runs())) == 2
    run = merge(first, tmp_path, ())
    for _ in range(2):
        (entry,) = consult(tmp_path, lambda history: history.runs())
        assert entry.name == run.info.id
    merge([_shard(tmp_path, 3, 1), _shard(tmp_path, 4, 2)], tmp_path, ())
    assert len(consult(tmp_path, lambda history: history.runs())) == 2
    assert len(consult(tmp_path, lambda history: history.of_case("kselftest:vfio/edu/a"))) == 4


def test_failure_of_one_part_is_the_verdict(tmp_path: Path) -> None:
    bad = (dataclasses.replace(case("a", Outcome.FAIL), job=OTHER.name),)
    run = merge([_shard(tmp_path, 1, 1), _shard(tmp_path, 2, 2, results=bad)], tmp_path, ())
    assert run.verdict is Verdict.BAD
    cut = merge([_shard(tmp_path, 3, 1), _shard(tmp_path, 4, 2, state=RunState.INTERRUPTED)], tmp_path, ())
    assert cut.state is RunState.INTERRUPTED


def test_a_missing_shard_is_no_success(tmp_path: Path) -> None:
    """A shard that left no run says nothing; it may be merged later."""
    shards = [_shard(tmp_path, day, part, count=3) for day, part in ((1, 1), (2, 2), (3, 3))]
    partly = merge(shards[:2], tmp_path, ())
    verdict = reach_verdict(partly)
    assert (partly.verdict, verdict.why) == (Verdict.INFRASTRUCTURE, "1 shard not merged: 3/3")
    assert merge([partly, shards[2]], tmp_path, ()).verdict is Verdict.GOOD


def _with_dump(root: Path, day: int, text: str, *, gone: bool = False) -> Run:
    """A shard whose guest died; its directory is *gone* if it stayed on another host."""
    vm_dir = f"vm/{JOB.name}-gw0-1"
    shard = _shard(root, day, 1, results=(case("a", Outcome.CRASH, vm_dir=vm_dir),))
    directory = Path(shard.directory)
    if not gone:
        (directory / vm_dir).mkdir(parents=True)
        (directory / vm_dir / "guest.dump").write_text(text, encoding="utf-8")
    file = "" if gone else f"{vm_dir}/guest.dump"
    record_dumps(directory, {vm_dir: Dump(file=file, answers=text)})
    return load(directory)


def test_vm_directories_keep_apart(tmp_path: Path) -> None:
    """Each attempt and its dump name the guest they had, also in a run that is merged again."""
    texts = ["first", "second", "third", "fourth"]
    one, two, three, four = (
        _with_dump(tmp_path, day, text, gone=text == "second") for day, text in enumerate(texts, 1)
    )
    run = merge([merge([one, two, three], tmp_path, ()), four], tmp_path, ())
    found = [run.dumps[one.vm_dir] for one in run.results]
    assert [dump.answers for dump in found] == texts
    assert [dump.file and Path(run.directory, dump.file).read_text(encoding="utf-8") for dump in found] == [
        "first",
        "",
        "third",
        "fourth",
    ]
    assert len(run.cases) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cases": ("probes/*",)}, "their cases differ"),
        ({"extra": {"matrix": "smoke"}}, "their matrix differ"),
    ],
)
def test_other_runs_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    one, other = _shard(tmp_path, 1, 1), _shard(tmp_path, 2, 2)
    inputs = dataclasses.replace(other.info.inputs, **change)  # type: ignore[arg-type]
    other = dataclasses.replace(other, info=dataclasses.replace(other.info, inputs=inputs))
    with pytest.raises(UsageError, match=said):
        merge([one, other], tmp_path, ())


def test_one_job_with_two_kernels_is_refused(tmp_path: Path) -> None:
    one, other = _shard(tmp_path, 1, 1), _shard(tmp_path, 2, 1)
    changed = dataclasses.replace(other.jobs[0], kernel="7.3.4 bb")
    with pytest.raises(UsageError, match="has one kernel in run run01 and another in run02"):
        merge([one, dataclasses.replace(other, jobs=(changed,))], tmp_path, ())


def test_one_run_is_not_merged(tmp_path: Path) -> None:
    one = _shard(tmp_path, 1, 1)
    for runs in ([one], [one, one]):
        with pytest.raises(UsageError, match="two or more different runs"):
            merge(runs, tmp_path, ())


def test_results_are_not_taken_twice(tmp_path: Path) -> None:
    """A run that was merged is not merged with one of its parts, however deep."""
    one, two, three = _shard(tmp_path, 1, 1), _shard(tmp_path, 2, 2), _shard(tmp_path, 3, 2)
    half = merge([one, two], tmp_path, ())
    whole = merge([half, three], tmp_path, ())
    assert len(whole.results) == 3 * len(GOOD)
    other = merge([one, three], tmp_path, ())
    for runs in ([one, half], [one, whole], [half, whole], [half, other]):
        with pytest.raises(UsageError, match="both have the results of run"):
            merge(runs, tmp_path, ())

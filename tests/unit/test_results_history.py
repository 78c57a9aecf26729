# SPDX-License-Identifier: GPL-2.0-only
"""The history: complete, rebuildable, shared, and the ground on which a run is judged."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from history_runs import GOOD, INPUTS, JOB, case, flaky, made_run, make_run

from harness.base.errors import ExitCode, InfraError, UsageError
from harness.results import (
    WHOLE_PROGRAM,
    Background,
    Comparison,
    JobRecord,
    Outcome,
    PastRun,
    Run,
    RunState,
    Verdict,
    reach_verdict,
)
from harness.results.historyfile import FILE_NAME, consult
from harness.results.store import RunStore, load

REPOSITORY = Path(__file__).parent.parent.parent


def runs(root: Path) -> dict[str, PastRun]:
    return {run.name: run for run in consult(root, lambda history: history.runs())}


def background(root: Path, run: Run) -> Background:
    return consult(root, lambda history: history.background(run))


def compared(root: Path, run: Run) -> Comparison:
    comparison = background(root, run).comparison
    assert comparison is not None
    return comparison


def names(changes: tuple[object, ...]) -> list[str]:
    return [change.address.case for change in changes]  # type: ignore[attr-defined]


def test_every_ended_run_goes_in_once(tmp_path: Path) -> None:
    """Finished and dead runs are taken in with their identity and counts; one still going is not."""
    make_run(tmp_path, 1)
    make_run(tmp_path, 2, {"a": Outcome.PASS}, state=None)
    make_run(tmp_path, 3, {"a": Outcome.PASS, "b": Outcome.FAIL}, results=flaky("c"))
    alive = make_run(tmp_path, 4, state=None)
    (tmp_path / "unrelated").mkdir()
    with RunStore.open(alive):
        runs(tmp_path)
        found = runs(tmp_path)
        assert list(found) == ["run03", "run02", "run01"]
    assert list(runs(tmp_path)) == ["run04", "run03", "run02", "run01"]
    assert found["run01"].counts == {"PASS": 2, "XFAIL": 1, "SKIP": 1}
    assert found["run03"].counts == {"PASS": 1, "FAIL": 1, "FLAKY": 1}
    good = found["run01"]
    assert (good.verdict, good.accel, good.jobs) == (Verdict.GOOD, INPUTS.accel, 1)
    assert (found["run02"].state, found["run02"].exit_code) == (RunState.RUNNING, ExitCode.INFRA)


def test_a_run_that_went_on_is_taken_in_again(tmp_path: Path) -> None:
    """A run that was resumed after it had been taken in replaces what it was."""
    directory = make_run(tmp_path, 1, {"a": Outcome.PASS}, state=None)
    assert runs(tmp_path)["run01"].verdict is Verdict.INFRASTRUCTURE
    with RunStore.open(directory) as store:
        store.add(case("b", Outcome.PASS))
        store.finish(Verdict.GOOD)
    (run,) = runs(tmp_path).values()
    assert (run.verdict, run.counts) == (Verdict.GOOD, {"PASS": 2})


def test_it_can_be_made_anew(tmp_path: Path) -> None:
    """Without the file the same history comes out of the run directories."""
    make_run(tmp_path, 1)
    make_run(tmp_path, 2, {"a": Outcome.PASS, "b": Outcome.PASS})
    before = runs(tmp_path)
    for path in tmp_path.glob(f"{FILE_NAME}*"):
        path.unlink()
    assert runs(tmp_path) == before


def test_it_can_travel_without_its_runs(tmp_path: Path) -> None:
    """A CI service keeps this one file from night to night: a bad night, too, is compared with it."""
    make_run(tmp_path, 1)
    make_run(tmp_path, 2, {**GOOD, "a": Outcome.FAIL})
    runs(tmp_path)
    night = tmp_path / "night"
    night.mkdir()
    shutil.copy(tmp_path / FILE_NAME, night)
    run = load(make_run(night, 3, {**GOOD, "b": Outcome.FAIL}))
    assert list(runs(night)) == ["run03", "run02", "run01"]
    comparison = compared(night, run)
    assert comparison.against == {JOB.name: "run01"}
    assert names(comparison.fixed) == ["a"]
    assert not list(night.glob(f"{FILE_NAME}-*"))


def test_a_good_run_changes_nothing(tmp_path: Path) -> None:
    """The same outcomes on the next stable release of the line are no change at all."""
    make_run(tmp_path, 1)
    run = made_run(tmp_path, 2, job=dataclasses.replace(JOB, name="7.3.5-cdev-edu", kernel="7.3.5 bb"))
    found = compared(tmp_path, run)
    assert found == Comparison(against={"7.3.5-cdev-edu": "run01"})
    assert reach_verdict(run, found).exit_code is ExitCode.GOOD


def test_what_changed_is_told_apart(tmp_path: Path) -> None:
    """New failures, vanished cases, new skips and new flaky cases, each in its own list."""
    make_run(tmp_path, 1, {**GOOD, "e": Outcome.PASS})
    worse = {"a": Outcome.FAIL, "b": Outcome.SKIP, "d": Outcome.SKIP, "n": Outcome.PASS}
    found = compared(tmp_path, made_run(tmp_path, 2, worse, results=flaky("e")))
    assert names(found.new_failures) == ["a"]
    assert names(found.new_skips) == ["b"]
    assert names(found.vanished) == ["c"]
    assert names(found.newly_flaky) == ["e"]
    assert names(found.other) == ["n"]
    assert found.is_worse


def test_failures_are_new_once(tmp_path: Path) -> None:
    """The night after, the same failure is no news but as bad; once gone it is fixed."""
    make_run(tmp_path, 1)
    make_run(tmp_path, 2, {**GOOD, "a": Outcome.FAIL})
    again = made_run(tmp_path, 3, {**GOOD, "a": Outcome.FAIL})
    found = compared(tmp_path, again)
    assert (names(found.still_failing), found.new_failures) == (["a"], ())
    assert reach_verdict(again, found).exit_code is ExitCode.CASE_FAILED
    assert found.against == {JOB.name: "run01"}
    assert names(compared(tmp_path, made_run(tmp_path, 4)).fixed) == ["a"]


def test_lost_coverage_is_bad_until_it_is_accepted(tmp_path: Path) -> None:
    """A case that vanished stays vanished, night after night, until a person says that it is meant."""
    make_run(tmp_path, 1)
    less = {name: outcome for name, outcome in GOOD.items() if name != "b"}
    second, third = made_run(tmp_path, 2, less), made_run(tmp_path, 3, less)
    for run in (second, third):
        judged = reach_verdict(run, compared(tmp_path, run))
        assert (judged.verdict, judged.exit_code) == (Verdict.BAD, ExitCode.CASE_FAILED)
        assert judged.why == (
            "tests are missing: 1 case vanished since run01, first kselftest:vfio/edu/b of 7.3.4-cdev-edu"
        )
    assert runs(tmp_path)["run03"].verdict is Verdict.BAD
    with RunStore.open(tmp_path / "run03") as store:
        store.accept("the case was merged into a")
    accepted = load(tmp_path / "run03")
    assert reach_verdict(accepted, compared(tmp_path, accepted)).verdict is Verdict.GOOD
    assert runs(tmp_path)["run03"].accepted == "the case was merged into a"
    fourth = made_run(tmp_path, 4, less)
    assert reach_verdict(fourth, compared(tmp_path, fourth)).verdict is Verdict.GOOD


def test_what_was_accepted_beside_an_open_failure_stays_accepted(tmp_path: Path) -> None:
    """The last good run is still the older one; what is meant to be gone since is not missed any more."""
    make_run(tmp_path, 1)
    failing = {"a": Outcome.FAIL, "b": Outcome.SKIP, "d": Outcome.SKIP}
    make_run(tmp_path, 2, failing)
    with RunStore.open(tmp_path / "run02") as store:
        store.accept("b needs a device that went, c was merged into a")
    later = compared(tmp_path, made_run(tmp_path, 3, failing))
    assert (later.lost, later.against) == ((), {JOB.name: "run01"})
    assert names(later.still_failing) == ["a"]
    again = compared(tmp_path, made_run(tmp_path, 4, {"b": Outcome.SKIP, "d": Outcome.SKIP}))
    assert names(again.vanished) == ["a"]


def test_a_case_that_the_harness_dropped_has_not_vanished(tmp_path: Path) -> None:
    """What is no longer in the catalogue is a change of ours and is not held against the kernel."""
    make_run(tmp_path, 1)
    run = made_run(tmp_path, 2, {"a": Outcome.PASS, "c": Outcome.XFAIL})
    found = consult(tmp_path, lambda h: h.background(run), exists=lambda address: address.case != "b")
    assert found.comparison is not None
    assert (found.comparison.vanished, names(found.comparison.other)) == ((), ["b"])


def test_coverage_is_kept_where_no_run_was_ever_good(tmp_path: Path) -> None:
    """On a line that always has one failure a case that vanishes is noticed all the same."""
    make_run(tmp_path, 1, {**GOOD, "x": Outcome.FAIL})
    run = made_run(tmp_path, 2, {"a": Outcome.PASS, "c": Outcome.XFAIL, "x": Outcome.FAIL})
    assert names(compared(tmp_path, run).vanished) == ["b"]


@pytest.mark.parametrize(
    "inputs",
    [
        dataclasses.replace(INPUTS, cases=("kselftest:vfio/edu/a",)),
        dataclasses.replace(INPUTS, narrowed=True),
    ],
)
def test_a_smaller_run_lost_nothing(tmp_path: Path, inputs: object) -> None:
    """One case alone is compared with what it was, and what was not asked for has not vanished."""
    make_run(tmp_path, 1)
    good = made_run(tmp_path, 2, {"a": Outcome.PASS}, inputs=inputs)
    assert not compared(tmp_path, good).is_worse
    bad = compared(tmp_path, made_run(tmp_path, 3, {"a": Outcome.FAIL}, inputs=inputs))
    assert (names(bad.new_failures), bad.against) == (
        ["a"],
        {JOB.name: "run02" if good.info.inputs.cases else "run01"},
    )
    # And a full run is not held against the small one.
    assert compared(tmp_path, made_run(tmp_path, 4)).against == {JOB.name: "run01"}


@pytest.mark.parametrize(
    "other",
    [
        {"job": dataclasses.replace(JOB, line="debian:7.2")},
        {"job": dataclasses.replace(JOB, addons=("debug",))},
        {"inputs": dataclasses.replace(INPUTS, root="virtme")},
        {"inputs": dataclasses.replace(INPUTS, machine="1 processors, default MiB")},
    ],
)
def test_only_like_is_compared_with_like(tmp_path: Path, other: dict[str, object]) -> None:
    """Another line, add-on, root or size of machine is no ground to judge by."""
    make_run(tmp_path, 1)
    assert compared(tmp_path, made_run(tmp_path, 2, {"a": Outcome.PASS}, **other)) == Comparison()


def test_trouble_is_no_lost_coverage(tmp_path: Path) -> None:
    """What an interrupt, a lost guest or a missing kernel kept from running did not vanish."""
    make_run(tmp_path, 1)
    stopped = made_run(tmp_path, 2, {"a": Outcome.PASS}, state=RunState.INTERRUPTED)
    lost = made_run(tmp_path, 3, dict.fromkeys(GOOD, Outcome.LOST))
    late = made_run(tmp_path, 5, {WHOLE_PROGRAM: Outcome.NOT_RUN})
    unbuilt = JobRecord(
        name="cdev-edu", variant="cdev", topology="edu", line="debian:7.3", problem="no",
        problem_code=ExitCode.KERNEL,
    )  # fmt: skip
    none = made_run(tmp_path, 4, {}, job=unbuilt)
    codes = []
    for run in (stopped, lost, late, none):
        found = compared(tmp_path, run)
        assert not found.is_worse
        codes.append(reach_verdict(run, found).exit_code)
    assert codes == [ExitCode.INTERRUPTED, ExitCode.INFRA, ExitCode.INFRA, ExitCode.KERNEL]


def test_flaky_is_news_once(tmp_path: Path) -> None:
    """A case that was flaky in any run of the window is not newly so; neither is bad."""
    make_run(tmp_path, 1, GOOD, results=flaky("f"))
    for day in (2, 3):
        make_run(tmp_path, day, {**GOOD, "f": Outcome.PASS})
    run = made_run(tmp_path, 4, GOOD, results=(*flaky("f"), *flaky("g")))
    found = compared(tmp_path, run)
    assert names(found.newly_flaky) == ["g"]
    judged = reach_verdict(run, found)
    assert judged.exit_code is ExitCode.GOOD
    assert judged.why == (
        "2 cases passed; flaky: 2 cases failed and then passed in a fresh VM, first kselftest:vfio/edu/f"
    )


@pytest.mark.parametrize(
    ("durations", "now", "accel", "slower"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.0], 2.0, "tcg", True),
        ([1.0, 1.1, 0.9, 1.0, 1.0], 1.4, "tcg", False),
        ([1.0, 3.0, 0.5, 2.0, 1.0], 3.1, "tcg", False),
        ([1.0, 1.0, 1.0, 1.0], 9.0, "tcg", False),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 9.0, "kvm", False),
    ],
    ids=["slower", "little", "noisy", "few", "other accelerator"],
)
def test_slower_means_more_than_noise(
    tmp_path: Path, durations: list[float], now: float, accel: str, slower: bool
) -> None:
    """Beyond the median and its noise, over at least five runs on the same accelerator; never a failure."""
    for day, seconds in enumerate(durations):
        make_run(tmp_path, day, {}, results=(case("a", Outcome.PASS, duration=seconds),))
    inputs = dataclasses.replace(INPUTS, accel=accel)
    run = made_run(tmp_path, 20, {}, results=(case("a", Outcome.PASS, duration=now),), inputs=inputs)
    found = compared(tmp_path, run)
    assert (names(found.slower) == ["a"]) is slower
    assert reach_verdict(run, found).exit_code is ExitCode.GOOD


def test_the_past_of_a_case(tmp_path: Path) -> None:
    """Every run's outcome, duration, kernel and splat of one address, oldest first."""
    splat = "BUG: unable to handle page fault\n vfio_x+0x1/0x2\n"
    make_run(tmp_path, 2, {}, results=(case("a", Outcome.CRASH, splat=splat),))
    make_run(tmp_path, 1)
    first, second = consult(tmp_path, lambda h: h.of_case("kselftest:vfio/edu/a"))
    assert (first.run, first.case.outcome, first.kernel, first.fingerprint) == (
        "run01", Outcome.PASS, "7.3.4 aa", "",
    )  # fmt: skip
    assert (second.case.outcome, len(second.fingerprint)) == (Outcome.CRASH, 12)
    assert "kselftest:vfio/edu/d" in consult(tmp_path, lambda h: h.addresses())


def test_how_long_things_take(tmp_path: Path) -> None:
    """For a plan: what jobs took that ran the same on the same accelerator, and what each case took."""
    for day in (1, 2):
        make_run(tmp_path, day, {}, results=(case("a", Outcome.PASS, duration=float(day)),))
    one = dataclasses.replace(INPUTS, cases=("kselftest:vfio/edu/b",))
    make_run(tmp_path, 3, {}, results=(case("b", Outcome.PASS, duration=9.0),), inputs=one)
    make_run(tmp_path, 4, {}, results=(case("a", Outcome.FAIL, duration=60.0),))
    make_run(tmp_path, 5, {"a": Outcome.PASS}, state=RunState.INTERRUPTED)
    jobs = consult(tmp_path, lambda h: h.job_seconds(JOB.series, INPUTS))
    assert jobs == (1.0, 2.0, 60.0)
    assert consult(tmp_path, lambda h: h.job_seconds("another", INPUTS)) == ()
    cases = consult(tmp_path, lambda h: h.case_seconds(JOB.series, "tcg"))
    assert {address.case: seconds for address, seconds in cases.items()} == {
        "a": (1.0, 2.0, 1.0),
        "b": (9.0,),
    }


def import_all(root: Path) -> str:
    return (
        "import sys; from pathlib import Path; from harness.results.historyfile import consult\n"
        f"print(len(consult(Path({str(root)!r}), lambda h: h.runs())))\n"
    )


def test_twenty_processes_at_once(tmp_path: Path) -> None:
    """Processes that find the same new runs at the same moment take each in once, and none fails."""
    for day in range(6):
        make_run(tmp_path, day, {f"c{number}": Outcome.PASS for number in range(50)})
    started = [
        subprocess.Popen(
            [sys.executable, "-c", import_all(tmp_path)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(20)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert {out.strip() for out, _ in said} == {"6"}, said
    assert [process.returncode for process in started] == [0] * 20
    assert all(run.counts == {"PASS": 50} for run in runs(tmp_path).values())


@pytest.mark.parametrize(
    "content", [b"this is not a database" * 500, b"\x00" * 8192, None], ids=["text", "zeros", "hole"]
)
def test_a_corrupt_history_is_rebuilt(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged file is moved aside with one sentence, and nothing is lost."""
    make_run(tmp_path, 1, {f"c{number}": Outcome.PASS for number in range(300)})
    before = runs(tmp_path)
    path = tmp_path / FILE_NAME
    if content is None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
    else:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert runs(tmp_path) == before
    (line,) = caplog.messages
    assert "is damaged" in line
    assert "rebuilt from the run directories" in line
    assert len(list(tmp_path.glob(f"{FILE_NAME}.damaged-*"))) == 1
    assert runs(tmp_path) == before


def test_values_nobody_knows_are_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value that no harness wrote is damage like a hole in the file."""
    make_run(tmp_path, 1)
    before = runs(tmp_path)
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    with connection:
        connection.execute("UPDATE run SET verdict = 'splendid'")
    connection.close()
    assert runs(tmp_path) == before
    assert "splendid" in caplog.text


def test_a_history_from_the_future(tmp_path: Path) -> None:
    """A newer schema is refused in a sentence and left as it is."""
    make_run(tmp_path, 1)
    runs(tmp_path)
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UsageError, match=r"history\.sqlite was written by a newer vfio-harness"):
        runs(tmp_path)
    assert not list(tmp_path.glob("*.damaged-*"))


def test_fingerprints_of_another_making_are_made_again(tmp_path: Path) -> None:
    """A history that was written before they changed would call every old splat new."""
    splat = "BUG: unable to handle page fault\n vfio_x+0x1/0x2\n"
    make_run(tmp_path, 1, {}, results=(case("a", Outcome.CRASH, splat=splat),))
    runs(tmp_path)
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    made = connection.execute("SELECT fingerprint FROM outcome").fetchall()
    connection.execute("UPDATE outcome SET fingerprint = 'old'")
    connection.execute("PRAGMA user_version = 3")
    connection.commit()
    runs(tmp_path)
    assert connection.execute("SELECT fingerprint FROM outcome").fetchall() == made
    connection.close()


def test_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a place that cannot be written are compared all the same; where none are, nothing is made."""
    make_run(tmp_path / "runs", 1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert list(runs(tmp_path / "runs")) == ["run01"]
    assert runs(tmp_path / "nowhere") == {}
    assert not (tmp_path / "runs" / FILE_NAME).exists()
    assert not (tmp_path / "nowhere").exists()


def test_an_unreadable_run_is_passed_over(tmp_path: Path) -> None:
    """One damaged run directory costs itself only."""
    make_run(tmp_path, 1)
    (make_run(tmp_path, 2) / "results.sqlite").write_bytes(b"rubbish" * 1000)
    assert list(runs(tmp_path)) == ["run01"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 4 MiB; skips where none can be mounted."""
    target = tmp_path / "disk"
    target.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(target)]
    if os.getuid() != 0 or subprocess.run(words, check=False, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    return target


@pytest.fixture
def mounted(small_disk: Path) -> Iterator[Path]:
    yield small_disk
    subprocess.run(["umount", "-l", str(small_disk)], check=True)


def test_a_full_disk(mounted: Path) -> None:
    """The history says that there is no space, the run's own results stay, and later it succeeds."""
    make_run(mounted, 1)
    runs(mounted)
    make_run(mounted, 2, {f"c{number}": Outcome.PASS for number in range(300)})
    filler = mounted / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 512):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break
    with pytest.raises(InfraError, match=r"no space left to write|failed|cannot be opened"):
        runs(mounted)
    assert len(load(mounted / "run02").results) == 300
    filler.unlink()
    assert list(runs(mounted)) == ["run02", "run01"]

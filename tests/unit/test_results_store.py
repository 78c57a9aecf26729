# SPDX-License-Identifier: GPL-2.0-only
"""The results file: complete, crash-safe, shared, and clear when something is wrong with it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.base.cause import Cause
from harness.base.errors import ExitCode, InfraError, UsageError
from harness.results import (
    Address,
    Inputs,
    JobRecord,
    Outcome,
    Result,
    RunInfo,
    RunState,
    Verdict,
    codec,
    database,
    is_alive,
    store,
)
from harness.results.store import FILE_NAME, RunStore, list_runs, load, new_run_id

REPOSITORY = Path(__file__).parent.parent.parent
INFO = RunInfo(
    id="20300102-030405-1",
    started=datetime.datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.UTC),
    harness_version="0.1.0",
    command=("vfio-harness", "run", "-k", "get_pa"),
    inputs=Inputs(
        tree="v7.3.4 (1f0c9a2b, dirty)",
        kernels={"cdev": "sha256:aa"},
        qemu="10.0.2",
        accel="tcg",
        timeout_factor=10.0,
        topologies=("edu", "igb"),
        root="virtme",
        seed=7,
        extra={"host": "north"},
    ),
)


def result(case: str = "a", outcome: Outcome = Outcome.PASS, job: str = "j") -> Result:
    return Result(address=Address(suite="probes", program="edu", case=case), job=job, outcome=outcome)


FULL = Result(
    address=Address(suite="kselftest:vfio", program="vfio_pci_device_test", case="f.v.t/sub"),
    job="7.3.4-cdev-edu",
    outcome=Outcome.CRASH,
    reason="it died",
    duration=1.25,
    attempt=2,
    log="line 1\nline 2\x00\udcff",
    splat="BUG: ...",
    vm_dir="vms/0",
    rerun="vfio-harness run 'x'",
    cause=Cause.NOT_REACHED,
    stopped_by=Outcome.LOST,
)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    """Every field of a run, its jobs and its results survives the disk."""
    job = JobRecord(
        name="j",
        kernel="7.3.4",
        variant="cdev",
        arch="x86_64",
        topology="edu",
        features=("cdev", "edu"),
        problem="no",
        problem_code=ExitCode.KERNEL,
        cause=Cause.COMPILER,
        suites=("probes",),
        applicable=False,
    )
    with RunStore.create(tmp_path / "run", INFO) as opened:
        opened.add_job(job)
        opened.add(FULL)
        opened.finish(Verdict.BAD)
    run = load(tmp_path / "run")
    assert (run.info, run.jobs, run.state, run.verdict) == (INFO, (job,), RunState.FINISHED, Verdict.BAD)
    # A byte that is no text is kept readable, not refused.
    assert run.results == (dataclasses.replace(FULL, log="line 1\nline 2\x00\\udcff"),)
    assert run.finished is not None
    assert run.directory == str(tmp_path / "run")


def test_a_job_can_be_updated_and_keeps_its_place(tmp_path: Path) -> None:
    """A Job is recorded when planned and again when its end is known; plan order stays."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.add_job(JobRecord(name="b"))
        opened.add_job(JobRecord(name="a"))
        opened.add_job(JobRecord(name="b", topology="igb"))
        assert opened.read().jobs == (JobRecord(name="b", topology="igb"), JobRecord(name="a"))


def test_a_run_directory_holds_one_run(tmp_path: Path) -> None:
    """A second run never mixes into the first."""
    RunStore.create(tmp_path, INFO).close()
    with pytest.raises(UsageError, match="already holds"):
        RunStore.create(tmp_path, INFO)


def test_a_run_being_born_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lists runs while one begins finds it whole or not at all, never a file without its run."""
    seen = []
    plain = codec.info_to_plain

    def look(info: RunInfo) -> dict[str, object]:
        seen.append(list_runs(tmp_path))
        return plain(info)

    monkeypatch.setattr(codec, "info_to_plain", look)
    RunStore.create(tmp_path / "run", INFO).close()
    assert seen == [()]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE_NAME]
    assert [one.problem for one in list_runs(tmp_path)] == [""]


def test_a_killed_writer_loses_nothing_it_finished(tmp_path: Path) -> None:
    """After SIGKILL in mid-run every result that was added can be read, and the run is not finished."""
    RunStore.create(tmp_path, INFO).close()
    script = (
        "import sys, os, signal; from pathlib import Path; from harness.results import *\n"
        "from harness.results.store import *\n"
        "s = RunStore.open(Path(sys.argv[1]))\n"
        "for n in range(20): s.add(Result(address=Address(suite='p', program='q', case=str(n)), job='j',"
        " outcome=Outcome.PASS))\n"
        "s._connection.execute('BEGIN IMMEDIATE'); s._connection.execute('DELETE FROM result')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    run = load(tmp_path)
    assert [one.address.case for one in run.results] == [str(n) for n in range(20)]
    assert (run.state, run.verdict) == (RunState.RUNNING, None)


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Processes and threads that write together lose no result and wait for each other."""
    script = (
        "import sys; from pathlib import Path; from harness.results import *\n"
        "from harness.results.store import *\n"
        "s = RunStore.open(Path(sys.argv[1]))\n"
        "for n in range(50): s.add(Result(address=Address(suite='p', program=sys.argv[2], case=str(n)),"
        " job='j', outcome=Outcome.PASS))\n"
    )
    with RunStore.create(tmp_path, INFO) as opened:
        workers = [
            subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(number)], cwd=REPOSITORY)
            for number in range(3)
        ]

        def write() -> None:
            for number in range(50):
                opened.add(result(str(number)))

        threads = [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
        assert len(opened.read().results) == 250


def test_a_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    """Another process's report does not have to wait for the end."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.add(result())
        assert len(load(tmp_path).results) == 1
        opened.add(result("b"))
        assert len(load(tmp_path).results) == 2


def test_a_finished_run_is_one_file(tmp_path: Path) -> None:
    """A finished run can be copied as a single file, and read where nothing may be written."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.add(result())
        opened.finish(Verdict.GOOD)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    """The error names the directory and what is not in it."""
    for act in (load, RunStore.open):
        with pytest.raises(UsageError, match=r"holds no run: there is no results\.sqlite"):
            act(tmp_path)


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"\x00" * 8192, b""])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    """Rubbish instead of a results file is one sentence, not a traceback, for reader and list alike."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE_NAME).write_bytes(content)
    with pytest.raises(InfraError, match="is damaged"):
        load(tmp_path / "run")
    (summary,) = list_runs(tmp_path)
    assert summary.info is None
    assert "is damaged" in summary.problem


def test_a_damaged_file(tmp_path: Path) -> None:
    """A file with a hole in it says so and points at what is still good."""
    with RunStore.create(tmp_path, INFO) as opened:
        for number in range(200):
            opened.add(dataclasses.replace(FULL, log="x" * 2000, attempt=number))
        opened.finish(Verdict.BAD)
    path = tmp_path / FILE_NAME
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 8192))
    with pytest.raises(InfraError, match=r"is damaged.*logs beside it"):
        load(tmp_path)


def test_values_nobody_knows_are_damage(tmp_path: Path) -> None:
    """An outcome that does not exist is reported as damage, not as a Python error."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.add(result())
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    with connection:
        connection.execute("UPDATE result SET outcome = 'PERHAPS'")
    connection.close()
    with pytest.raises(InfraError, match="PERHAPS"):
        load(tmp_path)


def test_a_file_from_the_future(tmp_path: Path) -> None:
    """A newer schema is refused in a sentence with both versions, and the file is left as it was."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.finish(Verdict.GOOD)
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    for act in (load, RunStore.open):
        with pytest.raises(UsageError, match=r"newer vfio-harness.*99"):
            act(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_somebody_else_s_database(tmp_path: Path) -> None:
    """An SQLite file of another program is not mistaken for a run."""
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    with pytest.raises(UsageError, match="not one of vfio-harness"):
        load(tmp_path)


def test_an_old_file_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of an older schema is migrated when it is next read, with its results."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.add(result())
        opened.finish(Verdict.GOOD)
    known = store._FORM.migrations
    newer = (*known, "ALTER TABLE result ADD COLUMN colour INTEGER NOT NULL DEFAULT 0")
    monkeypatch.setattr(store, "_FORM", dataclasses.replace(store._FORM, migrations=newer))
    assert len(load(tmp_path).results) == 1
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
    assert connection.execute("SELECT colour FROM result").fetchone() == (0,)
    connection.close()


def test_a_full_disk(tmp_path: Path) -> None:
    """When no more can be written the error says so, what was there stays, and a retry can succeed."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.add(result("kept"))
        pages = opened._connection.execute("PRAGMA page_count").fetchone()[0]
        opened._connection.execute(f"PRAGMA max_page_count = {pages}")
        big = dataclasses.replace(result("lost"), log="x" * 1_000_000)
        with pytest.raises(InfraError, match="no space left"):
            opened.add(big)
        opened._connection.execute("PRAGMA max_page_count = 100000")
        opened.add(big)
    assert [one.address.case for one in load(tmp_path).results] == ["kept", "lost"]


def test_a_writer_that_never_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is not released in time becomes an infrastructure error, not a hang."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with RunStore.create(tmp_path, INFO) as first, RunStore.open(tmp_path) as second:
        first._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(InfraError, match="locked by another process"):
            second.add(result())
        first._connection.execute("ROLLBACK")
        second.add(result())


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    """The list has every run, and ignores other directories."""
    for day in (1, 3, 2):
        started = INFO.started.replace(day=day)
        with RunStore.create(tmp_path / f"run{day}", dataclasses.replace(INFO, started=started)) as opened:
            opened.add(result("a", Outcome.FAIL))
            opened.add(result("b", Outcome.FAIL))
            opened.add(result("c"))
            opened.finish(Verdict.BAD)
    (tmp_path / "unrelated").mkdir()
    listed = list_runs(tmp_path)
    assert [summary.directory.name for summary in listed] == ["run3", "run2", "run1"]
    assert [summary.state for summary in listed] == [RunState.FINISHED] * 3
    assert list_runs(tmp_path / "nowhere") == ()


def test_a_file_of_the_first_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first release wrote is read with the defaults of what it did not know, writable or not."""
    first = dataclasses.replace(store._FORM, migrations=store._FORM.migrations[:1])
    path = tmp_path / FILE_NAME
    connection = first.connect(path)
    plain = codec.info_to_plain(INFO)
    for young in ("suites", "cases", "narrowed"):
        del plain["inputs"][young]
    record = codec.job_to_plain(JobRecord(name="j", variant="cdev"))
    for young in ("tree", "line", "addons", "cause"):
        del record[young]
    connection.execute("INSERT INTO job VALUES ('j', 0, ?)", (json.dumps(record),))
    columns = store._COLUMNS_SQL.partition(', "confirms"')[0]
    connection.execute("INSERT INTO run VALUES (1, ?, 'finished', NULL, 'our fault')", (json.dumps(plain),))
    values = "'j', 's', 'p', 'c', 'PASS', '', 1.0, 1, '', '', '', ''"
    connection.execute(f"INSERT INTO result ({columns}) VALUES ({values})")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda *_: False)
    run = load(tmp_path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    for read in (run, load(tmp_path)):
        assert (read.jobs[0].line, read.jobs[0].addons, read.info.inputs.narrowed) == ("", (), False)
        assert (read.results[0].confirms, read.accepted) == (False, "")
        assert read.verdict is Verdict.INFRASTRUCTURE
        assert (read.results[0].cause, read.results[0].stopped_by, read.jobs[0].cause) == (None, None, None)


def test_names_of_runs_sort_and_differ() -> None:
    """By the second they begin in; what begins in the same one is told apart by 32 bits."""
    names = [new_run_id(INFO.started) for _ in range(50)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("20300102-030405-[0-9a-f]{8}", name) for name in names)
    assert new_run_id(INFO.started + datetime.timedelta(seconds=1)) > max(names)


def test_a_writer_is_seen(tmp_path: Path) -> None:
    """A run that is being written is told from one whose process is gone, however that ended."""
    with RunStore.create(tmp_path, INFO):
        assert is_alive(tmp_path)
    assert not is_alive(tmp_path)
    script = "import os, sys, time; from pathlib import Path; from harness.results import *\n"
    script += "from harness.results.store import *\n"
    script += "s = RunStore.open(Path(sys.argv[1])); print(1, flush=True); time.sleep(600)\n"
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    assert is_alive(tmp_path)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert not is_alive(tmp_path)


def test_a_run_can_be_accepted(tmp_path: Path) -> None:
    """Why a loss is meant travels with the run."""
    with RunStore.create(tmp_path, INFO) as opened:
        opened.finish(Verdict.GOOD)
    with RunStore.open(tmp_path) as opened:
        opened.accept("the case went away upstream")
    assert load(tmp_path).accepted == "the case went away upstream"
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]

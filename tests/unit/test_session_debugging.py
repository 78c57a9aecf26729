# SPDX-License-Identifier: GPL-2.0-only
"""Find the dump that `debug` opens, and what became of the memory of dead guests."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import pytest
from session_values import planned

from harness.base.cause import Cause
from harness.base.errors import UsageError
from harness.machine.dump import FILE, NOTE
from harness.machine.interrogation import summary_of
from harness.report import view
from harness.results import Address, Dump, JobRecord, Outcome, Result, Run, RunInfo
from harness.results.store import RunStore, load, record_dumps
from harness.session.debugging import find_target
from harness.session.dumps import find_dump, question_dumps

INFO = RunInfo(id="r", started=datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC), harness_version="1")
ANSWERS = "== summary\nCPU 0 runs python3 (pid 7)\n\n== locks\nnone\n"


def result(case: str, outcome: Outcome, vm: str = "", **more: object) -> Result:
    made = Result(address=Address.parse(f"probes/mapping/{case}"), job="job", outcome=outcome)
    return dataclasses.replace(made, vm_dir=f"vm/{vm}" if vm else "", **more)  # type: ignore[arg-type]


def died(run: Run, vm: str, *, reason: str = "") -> None:
    """Leave what a VM leaves that was dumped, or not for *reason*."""
    directory = Path(run.directory, "vm", vm)
    directory.mkdir(parents=True)
    note = {"reason": reason, "format": "elf", "bytes": 3 << 20, "seconds": 1.5}
    (directory / NOTE).write_text(json.dumps(note), encoding="utf-8")
    if not reason:
        (directory / FILE).write_bytes(b"x")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    results = (
        result("good", Outcome.PASS, "a"),
        result("oops", Outcome.CRASH, "b"),
        result("hang", Outcome.LOST, "c", cause=Cause.NO_ANSWER),
        result("hang", Outcome.TIMEOUT, "d"),
    )
    return Run(info=INFO, results=results, directory=str(tmp_path))


def test_without_a_case(run: Run) -> None:
    """It is the only dump; without one, or with several, the message says what to do."""
    with pytest.raises(UsageError, match="no guest that died in run r left a dump") as none:
        find_target(run, None)
    assert none.value.hint == "name a case to open the VM in which it starts"
    died(run, "b")
    assert find_target(run, None).path(run) == Path(run.directory, "vm/b", FILE)
    died(run, "d")
    with pytest.raises(UsageError, match="2 guests died in run r") as several:
        find_target(run, None)
    assert several.value.hint == "name a case: probes/mapping/oops, probes/mapping/hang"


def test_a_case(run: Run) -> None:
    """The attempt that left a dump, else the last one; an unknown case has its nearest."""
    died(run, "c")
    assert find_target(run, "probes/mapping/hang").result.vm_dir == "vm/c"
    died(run, "d")
    assert find_target(run, "probes/mapping/hang").result.vm_dir == "vm/d"
    assert find_target(run, "probes/mapping/good").path(run) is None
    with pytest.raises(UsageError, match="has no case 'probes/mapping/ooops'") as caught:
        find_target(run, "probes/mapping/ooops")
    assert caught.value.hint == "did you mean 'probes/mapping/oops'?"


def test_a_job(run: Run) -> None:
    """It chooses among attempts at one case; an unknown one has its nearest."""
    there = dataclasses.replace(run.results[1], job="other", vm_dir="vm/other")
    jobs = (JobRecord(name="job"), JobRecord(name="other"))
    run = dataclasses.replace(run, results=(*run.results, there), jobs=jobs)
    died(run, "b")
    died(run, "other")
    assert find_target(run, "probes/mapping/oops", "job").result.vm_dir == "vm/b"
    assert find_target(run, None, "other").result.vm_dir == "vm/other"
    with pytest.raises(UsageError, match="run r has no job 'othr'"):
        find_target(run, None, "othr")


def test_what_became_of_the_memory(run: Run) -> None:
    """A dump, the reason for none, or nothing where no guest died."""
    died(run, "b")
    died(run, "c", reason="only 3 MiB are free")
    good, oops, hang, _ = run.results
    assert find_dump(run, oops) == Dump(file=f"vm/b/{FILE}", bytes=3 << 20, seconds=1.5)
    assert find_dump(run, hang) == Dump(reason="only 3 MiB are free")
    assert find_dump(run, good) is None
    Path(run.directory, "vm/b", FILE).unlink()
    found = find_dump(run, oops)
    assert found is not None
    assert found.reason.endswith("memory.kdump was removed, or stayed on the worker of a fleet")


def test_a_panic_that_qemu_was_not_told_of(run: Run) -> None:
    """A kernel without pvpanic resets the guest, and QEMU ends."""
    died = result("x", Outcome.LOST, "e", cause=Cause.PANICKED)
    found = find_dump(run, died)
    assert found is not None
    assert "CONFIG_PVPANIC_PCI" in found.reason


@pytest.mark.parametrize("cause", [Cause.LOST_VCPU, Cause.STOOD_STILL])
def test_nobody_asks_about_a_guest_that_lost_its_vcpu(run: Run, cause: Cause) -> None:
    """QEMU's fault, so the run does not make debug information for it; `debug` still opens its memory."""
    lost = result("slow", Outcome.LOST, "f", cause=cause)
    run = dataclasses.replace(run, results=(lost, result("slow", Outcome.PASS, "g")))
    died(run, "f")
    RunStore.create(Path(run.directory), INFO).close()
    plan = planned(Path(run.directory))
    assert not question_dumps(plan, run)
    assert find_target(run, "probes/mapping/slow").result.vm_dir == "vm/f"


def test_the_report(run: Run) -> None:
    """Only what died of it shows the memory: where it is, how to open it, and the short form."""
    dumps = {
        "vm/a": Dump(file="vm/a/memory.kdump"),
        "vm/b": Dump(file="vm/b/memory.kdump", bytes=3 << 20, answers=ANSWERS),
        "vm/c": Dump(reason="only 3 MiB are free"),
        "vm/d": Dump(file="vm/d/memory.kdump", reason="drgn is not installed"),
    }
    run = dataclasses.replace(run, dumps=dumps, directory="/runs/r")
    good, oops, lost, hang = (view.memory_of(run, one) for one in run.results)
    assert good is None
    assert oops is not None
    assert lost is not None
    assert hang is not None
    assert oops.what == "/runs/r/vm/b/memory.kdump (3 MiB); vfio-harness debug r probes/mapping/oops"
    assert (oops.summary, oops.answers) == (("CPU 0 runs python3 (pid 7)",), ANSWERS)
    assert (lost.what, lost.summary) == ("not dumped: only 3 MiB are free", ())
    assert hang.summary == ("not read: drgn is not installed",)


def test_the_database_keeps_them(tmp_path: Path) -> None:
    """Those of a resumed run are added."""
    RunStore.create(tmp_path, INFO).close()
    record_dumps(tmp_path, {"vm/a": Dump(reason="x")})
    record_dumps(tmp_path, {"vm/b": Dump(file="f", bytes=1, seconds=0.5, answers=ANSWERS)})
    assert load(tmp_path).dumps == {
        "vm/a": Dump(reason="x"),
        "vm/b": Dump(file="f", bytes=1, seconds=0.5, answers=ANSWERS),
    }


def test_the_short_form() -> None:
    """The first section; nothing of a text without it."""
    assert summary_of(ANSWERS) == ("CPU 0 runs python3 (pid 7)",)
    assert summary_of("") == ()

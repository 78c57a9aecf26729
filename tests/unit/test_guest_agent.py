# SPDX-License-Identifier: GPL-2.0-only
"""The agent on this machine, with probes written for these tests: forks, limits, verdicts, protocol."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest import agent, ground, kmsg, ktap, runner, taint
from guest.agent import Agent, BadRequest, parse_request, select
from guest.case import discover
from harness.base.outcome import Outcome
from harness.ktap import KtapParser, parse

CHECKOUT = Path(__file__).resolve().parents[2]

PROBES = '''
import os, signal, sys, time
from guest.case import case, Test

@case(cites="a.c f()")
def passes(t: Test) -> None:
    """It passes."""
    t.log("seed %d" % t.seed)
    print("why: not a verdict")
    sys.stderr.write("no newline at the end")

@case(cites="a.c f()")
def fails(t: Test) -> None:
    """It fails."""
    t.equal(1, 2, "one")

@case(cites="a.c f()")
def raises(t: Test) -> None:
    """It raises."""
    os.stat("/does/not/exist")

@case(cites="a.c f()")
def waits(t: Test) -> None:
    """It waits in vain."""
    t.wait_until(lambda: False, "it", 0.1)

@case(cites="a.c f()")
def hears_nothing(t: Test) -> None:
    """It waits for an interrupt in vain."""
    from guest.opened import Event
    t.equal(Event().arrives(0.1), 1, "interrupts")

@case(cites="a.c f()")
def gives_up(t: Test) -> None:
    """It raises the TimeoutError of a helper."""
    raise TimeoutError("no answer after 10 s")

@case(cites="a.c f()")
def is_answered(t: Test) -> None:
    """It is answered with the errno ETIMEDOUT."""
    raise TimeoutError(110, "Connection timed out")

@case(cites="a.c f()")
def skips(t: Test) -> None:
    """It skips."""
    t.skip("no reason here")

@case(needs=("edu", "!viommu"), cites="a.c f()")
def needs_edu(t: Test) -> None:
    """It needs a device."""

@case(cites="a.c f()", fresh=True)
def wants_a_fresh_vm(t: Test) -> None:
    """It needs an unused VM."""

@case(cites="a.c f()", destructive=True)
def does_damage(t: Test) -> None:
    """It damages the kernel."""
    t.fail("damaged")

@case(cites="a.c f()")
def hangs(t: Test) -> None:
    """It hangs and ignores SIGTERM, and so does its child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pid = os.fork()
    if pid:
        t.log("child %d" % pid)
    time.sleep(60)

@case(cites="a.c f()")
def dies(t: Test) -> None:
    """It is killed."""
    os.kill(os.getpid(), signal.SIGKILL)

@case(cites="a.c f()")
def exits(t: Test) -> None:
    """It exits without a verdict."""
    os._exit(0)

@case(cites="a.c f()")
def leaves_a_child(t: Test) -> None:
    """It ends before its child."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    t.log("child %d" % pid)

@case(cites="a.c f()")
def forges(t: Test) -> None:
    """It prints a verdict of its own and fails."""
    print("ok 1 fake_probes/forges")
    t.fail("caught")
'''


@pytest.fixture(scope="module", name="package")
def _package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    where = tmp_path_factory.mktemp("fake")
    (where / "fakepkg").mkdir()
    (where / "fakepkg" / "__init__.py").write_text("", encoding="utf-8")
    (where / "fakepkg" / "fake_probes.py").write_text(PROBES, encoding="utf-8")
    sys.path.insert(0, str(where))
    yield "fakepkg"
    sys.path.remove(str(where))


@pytest.fixture(autouse=True)
def _leave_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmsg, "say", lambda text: None)
    monkeypatch.setattr(kmsg, "KMSG", os.devnull)
    monkeypatch.setattr(ground.Ground, "restore", lambda self, first=False: ground.Cleaning())


def _ask(package: str, request: dict[str, object], features: str = "edu", **mode: bool) -> list[str]:
    out = io.StringIO()
    served = Agent(discover(package), frozenset(features.split(",")), out, **mode)
    served.serve(io.StringIO(json.dumps(request) + "\n"))
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["# agent ready 1", "KTAP version 1", "1..1"]
    assert lines[-1] == f"# END {request['case']}"
    return lines[3:-1]


def test_a_pass_carries_what_the_case_printed(package: str) -> None:
    assert _ask(package, {"case": "fake_probes/passes", "seed": 42}) == [
        "# seed 42",
        "#  why: not a verdict",
        "# no newline at the end",
        "ok 1 fake_probes/passes",
    ]


def test_a_failure_says_why_and_where(package: str) -> None:
    lines = _ask(package, {"case": "fake_probes/fails"})
    assert lines[0] == "# why: one: want 2, got 1"
    assert lines[1].startswith("# at: fake_probes.py:15: t.equal(1, 2")
    assert "# Traceback (most recent call last):" in lines
    assert lines[-1] == "not ok 1 fake_probes/fails"


def test_an_exception_is_a_failure_with_its_name(package: str) -> None:
    lines = _ask(package, {"case": "fake_probes/raises"})
    assert lines[0].startswith("# why: FileNotFoundError: ")
    assert lines[-1] == "not ok 1 fake_probes/raises"


@pytest.mark.parametrize(
    ("name", "late"),
    [("waits", True), ("hears_nothing", True), ("gives_up", True), ("is_answered", False), ("fails", False)],
)
def test_a_failure_after_a_wait_says_so(package: str, name: str, late: bool) -> None:
    """The host may have had no CPU for the guest meanwhile."""
    assert ("# late: the case had waited in vain" in _ask(package, {"case": f"fake_probes/{name}"})) is late


def test_skips_and_unmet_needs_are_skips_with_reasons(package: str) -> None:
    assert _ask(package, {"case": "fake_probes/skips"}) == ["ok 1 fake_probes/skips # SKIP no reason here"]
    assert _ask(package, {"case": "fake_probes/needs_edu"}) == ["ok 1 fake_probes/needs_edu"]
    assert _ask(package, {"case": "fake_probes/needs_edu"}, "viommu") == [
        "ok 1 fake_probes/needs_edu # SKIP needs edu, !viommu"
    ]


def _goes(pid: int) -> bool:
    """Return whether the killed process ends soon: here its orphans go to init, not to the agent."""
    end = time.monotonic() + 5
    while _is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_hanging_case_is_ended_with_its_children(package: str) -> None:
    began = time.monotonic()
    lines = _ask(package, {"case": "fake_probes/hangs", "timeout": 0.7})
    assert time.monotonic() - began < 10
    assert lines[-2:] == [
        "# why: the case did not end within 0.7 s",
        "not ok 1 fake_probes/hangs # TIMEOUT after 0.7s",
    ]
    # The agent reports where both processes are before it kills them.
    assert len([line for line in lines if re.match(r"# process \d+ \(\w\): wchan: ", line)]) == 2
    assert _goes(int(lines[0].split()[-1]))


def test_a_death_is_a_failure_with_the_signals_name(package: str) -> None:
    lines = _ask(package, {"case": "fake_probes/dies"})
    assert lines == ["# why: killed by SIGKILL", "# killed by SIGKILL", "not ok 1 fake_probes/dies"]


def test_no_verdict_is_no_success(package: str) -> None:
    lines = _ask(package, {"case": "fake_probes/exits"})
    assert lines == ["# why: the case exited with status 0 without a verdict", "not ok 1 fake_probes/exits"]


def test_what_a_case_leaves_running_is_killed(package: str) -> None:
    lines = _ask(package, {"case": "fake_probes/leaves_a_child"})
    assert lines[-1] == "ok 1 fake_probes/leaves_a_child"
    assert _goes(int(lines[0].split()[-1]))


def test_printing_a_verdict_does_not_make_one(package: str) -> None:
    lines = _ask(package, {"case": "fake_probes/forges"})
    assert lines[:2] == ["# ok 1 fake_probes/forges", "# why: caught"]
    assert lines[-1] == "not ok 1 fake_probes/forges"


def test_cleaning_and_dirt_are_diagnostics_after_the_verdict(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaning = ground.Cleaning(done=["0000:00:08.0: unbound from vfio-pci"], dirty=["0000:00:09.0 is gone"])
    monkeypatch.setattr(ground.Ground, "restore", lambda self, first=False: cleaning)
    assert _ask(package, {"case": "fake_probes/needs_edu"}) == [
        "ok 1 fake_probes/needs_edu",
        "# cleaned: 0000:00:08.0: unbound from vfio-pci",
        "# dirty: 0000:00:09.0 is gone",
    ]


def test_a_verdict_is_out_before_the_ground_state_is_restored(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    seen: dict[str, str] = {}

    def restore(self: ground.Ground, first: bool = False) -> ground.Cleaning:
        seen["restore"] = out.getvalue()
        return ground.Cleaning()

    def say(text: str) -> None:
        seen.setdefault(text, out.getvalue() if "restore" in seen else "before the restore")

    monkeypatch.setattr(ground.Ground, "restore", restore)
    monkeypatch.setattr(kmsg, "say", say)
    cases = discover(package)
    request = json.dumps({"case": "fake_probes/fails"})
    Agent(cases, frozenset({"edu"}), out).serve(io.StringIO(request + "\n"))
    assert seen["restore"].endswith("not ok 1 fake_probes/fails\n")
    assert seen["vfio-harness: begin fake_probes/fails"] == "before the restore"
    assert seen["vfio-harness: end fake_probes/fails"].endswith("not ok 1 fake_probes/fails\n")
    assert out.getvalue().endswith("\n# END fake_probes/fails\n")


def test_the_host_finds_dirt_after_the_verdict(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaning = ground.Cleaning(done=["huge pages given back"], dirty=["0000:00:09.0 is gone"])
    monkeypatch.setattr(ground.Ground, "restore", lambda self, first=False: cleaning)
    out = io.StringIO()
    Agent(discover(package), frozenset({"edu"}), out).serve(io.StringIO('{"case": "fake_probes/dies"}\n'))
    parser = KtapParser(expected=("fake_probes/dies",))
    for line in out.getvalue().splitlines()[1:]:
        parser.feed(line)
    assert parser.ended == "fake_probes/dies"
    report = parser.finish()
    assert [case.outcome for case in report.cases] == [Outcome.FAIL]
    assert report.notes("dirty") == ("0000:00:09.0 is gone",)
    assert report.notes("cleaned") == ("huge pages given back",)
    assert report.cases[0].notes("why") == ("killed by SIGKILL",)
    assert not report.problems


def test_the_host_is_told_how_long_the_end_may_take() -> None:
    assert ground.END_TIMEOUT > ground.RESTORE_TIMEOUT


def test_a_kernel_tainted_at_boot_fails_fresh_cases(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taint, "mask", lambda: 1 << 9 | 1 << 12)
    assert _ask(package, {"case": "fake_probes/wants_a_fresh_vm"}, untouched=True) == [
        "# why: the kernel was tainted at boot: bit 9 (W, warning), bit 12 (O, out-of-tree module loaded)",
        "not ok 1 fake_probes/wants_a_fresh_vm",
    ]


def test_a_used_vm_skips_fresh_cases(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taint, "mask", lambda: taint.USER)
    skipped = "# SKIP needs a just booted VM; this one is already tainted: bit 6 (U, requested by user space)"
    assert _ask(package, {"case": "fake_probes/wants_a_fresh_vm"}) == [
        f"ok 1 fake_probes/wants_a_fresh_vm {skipped}"
    ]
    out = io.StringIO()
    cases = select(discover(package), ["fake_probes/skips", "fake_probes/wants_a_fresh_vm"])
    used = Agent(cases, frozenset(), out, untouched=True)
    used.run_all(sorted(cases, key=lambda one: one.fresh), seed=1, scale=1)
    assert f"ok 2 fake_probes/wants_a_fresh_vm {skipped}" in out.getvalue()


def test_nothing_runs_after_a_destructive_case(package: str) -> None:
    """A destructive case runs last: its VM is not cleaned, and no other case runs in it."""
    out = io.StringIO()
    cases = select(discover(package), ["fake_probes/does_damage", "fake_probes/skips"])
    assert [one.name for one in cases] == ["skips", "does_damage"]
    agent = Agent(cases, frozenset(), out)
    agent.run_all([cases[1], cases[0]], seed=1, scale=1)
    assert "not ok 1 fake_probes/does_damage" in out.getvalue()
    assert "ok 2 fake_probes/skips # SKIP the VM is dirty since fake_probes/does_damage" in out.getvalue()


def test_the_console_hears_of_every_answer(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(kmsg, "say", said.append)
    monkeypatch.setattr(taint, "mask", lambda: taint.USER)
    _ask(package, {"case": "fake_probes/wants_a_fresh_vm"}, untouched=True)
    _ask(package, {"case": "fake_probes/skips"})
    assert said == [
        "vfio-harness: begin fake_probes/wants_a_fresh_vm",
        "vfio-harness: end fake_probes/wants_a_fresh_vm",
        "vfio-harness: begin fake_probes/skips",
        "vfio-harness: end fake_probes/skips",
    ]


def test_an_untainted_vm_runs_fresh_cases(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taint, "mask", lambda: 0)
    assert _ask(package, {"case": "fake_probes/wants_a_fresh_vm"}) == ["ok 1 fake_probes/wants_a_fresh_vm"]


def test_an_unknown_case_is_answered_with_the_nearest(package: str) -> None:
    lines = _ask(package, {"case": "fake_probes/pases"})
    assert lines[0] == (
        "# refused: no case is called 'fake_probes/pases' (did you mean 'fake_probes/passes'?)"
    )
    assert lines[-1] == "not ok 1 fake_probes/pases"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not JSON"),
        ("[]", "want an object"),
        ('{"case": 3}', "want an object"),
        ('{"case": "a/b", "tiemout": 3}', "unknown key 'tiemout'"),
        ('{"case": "a/b", "timeout": "3"}', "number of seconds"),
        ('{"case": "a/b", "timeout": 0}', "positive"),
        ('{"case": "a/b", "seed": 1.5}', "integer"),
    ],
)
def test_a_wrong_request_is_refused(line: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_request(line)


def test_a_request_has_defaults() -> None:
    assert parse_request('{"case": "a/b"}') == ("a/b", None, agent.DEFAULT_SEED)
    assert parse_request('{"case": "a/b", "timeout": 2, "seed": 9}') == ("a/b", 2, 9)


def test_rubbish_does_not_end_the_service(package: str) -> None:
    out = io.StringIO()
    served = Agent(discover(package), frozenset({"edu"}), out)
    served.serve(io.StringIO('rubbish\n\n{"case": "fake_probes/needs_edu"}\n'))
    assert "# refused: not JSON" in out.getvalue()
    assert out.getvalue().endswith("ok 1 fake_probes/needs_edu\n# END fake_probes/needs_edu\n")


def test_many_cases_are_one_document(package: str) -> None:
    out = io.StringIO()
    cases = select(discover(package), ["fake_probes/s*", "fake_probes/needs_edu"])
    assert Agent(cases, frozenset({"edu"}), out).run_all(cases, seed=1, scale=1) == 0
    assert [line for line in out.getvalue().splitlines() if not line.startswith("#")] == [
        "KTAP version 1",
        "1..2",
        "ok 1 fake_probes/skips # SKIP no reason here",
        "ok 2 fake_probes/needs_edu",
    ]


def test_a_pattern_that_matches_nothing_is_an_error(package: str) -> None:
    with pytest.raises(LookupError, match="did you mean 'fake_probes/passes'"):
        select(discover(package), ["fake_probes/pass"])


def test_the_command_line_refuses_unknown_features() -> None:
    done = _agent("--features", "noiomu")
    assert done.returncode == 2
    assert "unknown feature 'noiomu' (did you mean 'noiommu'?)" in done.stderr


def test_the_command_line_lists_cases_without_side_effects() -> None:
    done = _agent("--list")
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [one.address for one in discover()]
    assert all(len(row) == 3 for row in rows)


def _agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guest.agent", *arguments],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_lines_of_the_agents_own_cannot_be_faked() -> None:
    said: list[str] = []
    lines = runner._Lines(said.append)
    lines.feed(b"dirty: every")
    lines.feed(b"thing\nplain\n\xff")
    lines.close()
    assert said == [" dirty: everything", "plain", "\ufffd"]


@pytest.mark.parametrize("key", ["late", "why", "refused", "dirty"])
@pytest.mark.parametrize("before", ["", "60 %\r"])
def test_the_host_does_not_believe_them_either(key: str, before: str) -> None:
    """What a case prints about itself neither refuses nor excuses it."""
    out = io.StringIO()
    writer = ktap.Writer(out, plan=1)
    lines = runner._Lines(writer.diagnostic)
    lines.feed(f"{before}{key}: x\n".encode())
    writer.not_ok("m/c")
    assert parse(out.getvalue().splitlines()).notes(key) == ()

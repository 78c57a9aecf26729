# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin without VMs: collection, node ids, recording, and how items end.

The kernel of the plan does not exist and its features are few, so most cases do not apply and the rest
have no VM to run in: exactly the paths that must not lie.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from pathlib import Path

import pytest
from plan_jobs import job

import harness
from harness.base import paths, process
from harness.base.errors import ExitCode, UsageError
from harness.plan import Job, Plan, load_plan
from harness.plugin.items import CaseFailed, conclude
from harness.plugin.recorder import _key
from harness.results import Address, Outcome, Result, Run, RunInfo, RunState, reach_verdict
from harness.results.store import RunStore, load
from harness.suites.catalogue import check_cases


def plan(directory: Path, *jobs: Job, cases: tuple[str, ...] = ()) -> Path:
    directory.mkdir(exist_ok=True)
    jobs = jobs or (job(),)
    value = Plan(
        run_id="r",
        run_dir=str(directory),
        seed=1,
        cases=cases,
        jobs=jobs,
        reruns=dict.fromkeys((one.name for one in jobs), "vfio-harness run"),
    )
    path = directory / "plan.json"
    value.save(path)
    info = RunInfo(id="r", started=datetime.datetime.now(datetime.UTC), harness_version="test")
    RunStore.create(directory, info).close()
    return path


def run_pytest(plan_file: Path, *words: str) -> process.Completed:
    ini = Path(harness.__file__).parent / "plugin" / "pytest.ini"
    argv = [sys.executable, "-m", "pytest", "-p", "harness.plugin", f"--plan={plan_file}"]
    argv += [f"--config-file={ini}", f"--rootdir={paths.guest_dir().parent}"]
    return process.run([*argv, "-o", f"cache_dir={plan_file.parent / 'cache'}", *words])


def outcomes(run: Run) -> set[Outcome]:
    return {case.outcome for case in run.cases}


def test_plan_survives_its_file(tmp_path: Path) -> None:
    """A plan read back is the plan that was saved."""
    value = load_plan(plan(tmp_path, job("edu"), job("igb")))
    assert value.jobs == (job("edu"), job("igb"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("[]", "format None, expected 4"),
        ("{}", "format None, expected 4"),
        ('{"format": 3}', "format 3, expected 4"),
        ('{"format": 4, "jobs": [{}]}', "run_id: missing"),
        ('{"format": 4, "run_id": 7}', "run_id: expected str, got 7"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """Any other file, and a plan of another format, is refused in one sentence."""
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UsageError, match=problem) as refused:
        load_plan(tmp_path / "plan.json")
    assert str(tmp_path / "plan.json") in str(refused.value)


def test_node_ids_name_file_case_and_job(tmp_path: Path) -> None:
    """Collection boots nothing, and its node ids can be typed."""
    done = run_pytest(plan(tmp_path), "--collect-only", "-q")
    assert "guest/probes/get_pa.py::" in done.stdout
    assert (
        "harness/suites/kselftest-vfio.yaml::vfio_pci_device_test@edu0[7.3.4-group-cdev-edu]" in done.stdout
    )


def test_without_a_vm_nothing_passes_and_every_case_is_accounted_for(tmp_path: Path) -> None:
    """Cases that apply are NOT_RUN with the error of the boot, the others SKIP; the exit code is 3."""
    done = run_pytest(plan(tmp_path), "-q", "--tb=no")
    run = load(tmp_path)
    assert outcomes(run) == {Outcome.SKIP, Outcome.NOT_RUN}
    assert reach_verdict(run).exit_code is ExitCode.INFRA
    lost = [case for case in run.cases if case.outcome is Outcome.NOT_RUN]
    assert all("is not in the store and is not being built" in case.reason for case in lost)
    assert f"{len(lost)} not run" in done.stdout
    assert "failed" not in done.stdout
    collected = run_pytest(plan(tmp_path / "again"), "--collect-only", "-q").stdout.count("::")
    assert len(run.cases) == collected
    assert done.status != 0


def test_workers_agree_and_record_the_same(tmp_path: Path) -> None:
    """Under xdist the same cases get the same outcomes, one group per job."""
    run_pytest(plan(tmp_path / "one", job("edu"), job("igb")), "-q", "-p", "no:xdist", "--tb=no")
    done = run_pytest(
        plan(tmp_path / "two", job("edu"), job("igb")), "-q", "-n", "2", "--dist", "loadgroup", "--tb=no"
    )
    alone, together = load(tmp_path / "one"), load(tmp_path / "two")
    assert {(c.job, c.address, c.outcome) for c in alone.cases} == {
        (c.job, c.address, c.outcome) for c in together.cases
    }, done.stdout


def test_stopping_early_leaves_not_run(tmp_path: Path) -> None:
    """With -x the cases that were not reached are NOT_RUN."""
    done = run_pytest(plan(tmp_path), "-q", "-x", "--tb=no")
    run = load(tmp_path)
    assert any(case.reason == "the run stopped before it" for case in run.cases), done.stdout


def test_stopping_early_with_workers_is_no_interrupt(tmp_path: Path) -> None:
    """-x ends an xdist run with an exception that looks like Ctrl-C; the run still counts as finished."""
    run_pytest(
        plan(tmp_path, job("edu"), job("igb")), "-q", "-x", "-n", "2", "--dist", "loadgroup", "--tb=no"
    )
    run = load(tmp_path)
    assert run.state is RunState.FINISHED
    assert reach_verdict(run).exit_code is ExitCode.INFRA


def test_plugin_alone_makes_and_remakes_the_run(tmp_path: Path) -> None:
    """Without our CLI the plugin makes the run itself, and a second time another one."""
    path = plan(tmp_path / "first")
    (tmp_path / "first" / "results.sqlite").unlink()
    run_pytest(path, "-q", "--tb=no")
    first = load(tmp_path / "first")
    assert first.state is RunState.FINISHED
    run_pytest(path, "-q", "--tb=no")
    assert len(load(tmp_path / "first").results) == len(first.results)
    (second,) = [d for d in tmp_path.iterdir() if d.name not in ("first", "cache")]
    assert {c.address for c in load(second).cases} == {c.address for c in first.cases}


def test_last_failed_reruns_only_those(tmp_path: Path) -> None:
    """--lf selects the bad cases, because node ids stay the same."""
    path = plan(tmp_path)
    run_pytest(path, "-q", "--tb=no")
    bad = sum(case.outcome.is_bad for case in load(tmp_path).cases)
    again = run_pytest(path, "-q", "--lf", "--collect-only").stdout
    assert again.count("[7.3.4-group-cdev-edu]") == bad


def test_unknown_case_is_refused(tmp_path: Path) -> None:
    """A pattern that matches nothing is an error that names the nearest address."""
    done = run_pytest(plan(tmp_path, cases=("probes/get_pa/lengthzero",)), "-q")
    assert "no case matches 'probes/get_pa/lengthzero'" in done.stderr
    assert done.status == pytest.ExitCode.USAGE_ERROR


def test_key_survives_root_directory_and_xdist() -> None:
    """A node id names its work whatever pytest's root is and whatever xdist appends."""
    wanted = ("get_pa.py", "unmapped[j]")
    assert _key("guest/probes/get_pa.py::unmapped[j]") == wanted
    assert _key("../x/get_pa.py::unmapped[j]@j") == wanted


def result(outcome: Outcome, reason: str = "why") -> Result:
    return Result(address=Address.parse("probes/get_pa/x"), job="j", outcome=outcome, reason=reason)


def test_pytest_hears_the_worst() -> None:
    """One bad result makes the item fail; XFAIL and SKIP end it the way pytest knows; no result is bad."""
    with pytest.raises(CaseFailed):
        conclude([result(Outcome.PASS), result(Outcome.FAIL)])
    with pytest.raises(CaseFailed):
        conclude([])
    with pytest.raises(pytest.xfail.Exception):
        conclude([result(Outcome.PASS), result(Outcome.XFAIL)])
    with pytest.raises(pytest.skip.Exception):
        conclude([result(Outcome.SKIP)])
    conclude([result(Outcome.PASS), result(Outcome.SKIP)])


@pytest.mark.parametrize("outcome", Outcome)
def test_pytest_passes_a_pass_only(outcome: Outcome) -> None:
    """Every outcome but PASS ends its item as skipped, expected to fail, or failed."""
    ends = {Outcome.SKIP: pytest.skip.Exception, Outcome.XFAIL: pytest.xfail.Exception}
    if outcome is Outcome.PASS:
        conclude([result(outcome)])
    else:
        with pytest.raises(ends.get(outcome, CaseFailed)):
            conclude([result(outcome)])


def test_rerun_is_one_line(tmp_path: Path) -> None:
    """Every bad result has the command that runs it again."""
    run_pytest(plan(tmp_path), "-q", "--tb=no")
    bad = [case for case in load(tmp_path).cases if case.outcome.is_bad]
    assert bad
    for case in bad:
        assert case.rerun.startswith("vfio-harness run --case probes/") or "kselftest" in case.rerun
        assert "\n" not in case.rerun


def test_jobs_are_values() -> None:
    """A Job cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        job().cpus = 4  # type: ignore[misc]


def test_cases_of_a_suite_that_did_not_compile_may_be_asked_for() -> None:
    """That it did not compile is their result; if it did, an unknown case is a usage error."""
    built = job()
    broken = dataclasses.replace(built, kernel=dataclasses.replace(built.kernel, programs=()))
    asked = Plan(run_id="r", run_dir="/", seed=1, cases=("kselftest:vfio/vfio_dma*",), jobs=(broken,))
    check_cases(asked)
    with pytest.raises(UsageError, match="no case matches"):
        check_cases(dataclasses.replace(asked, jobs=(built,)))
    with pytest.raises(UsageError, match="no case matches"):
        check_cases(dataclasses.replace(asked, cases=("kselftest:iommu/*",)))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            "RuntimeError('the worker is gone')",
            "the tests were stopped: RuntimeError: the worker is gone; see ",
        ),
        ("KeyboardInterrupt()", "! interrupted !"),
    ],
)
def test_no_traceback_on_the_terminal(raised: str, said: str, tmp_path: Path) -> None:
    """pytest's own trouble is one line, with its details in the run's directory; an interrupt is a word."""
    hook = f"def pytest_sessionstart(session): pass\ndef pytest_runtestloop(session): raise {raised}\n"
    (tmp_path / "ends_badly.py").write_text(hook, encoding="utf-8")
    start = f"import sys, pytest; sys.path.insert(0, {str(tmp_path)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    words = ("-q", "-p", "ends_badly", "-p", "harness.plugin", f"--plan={plan(tmp_path)}")
    done = process.run([sys.executable, "-c", start, *words], cwd=paths.guest_dir().parent)
    assert said in done.stdout
    for text in (done.stdout, done.stderr):
        assert "INTERNALERROR" not in text
        assert "Traceback" not in text
    if "RuntimeError" in raised:
        assert "Traceback" in (tmp_path / "pytest-trouble.txt").read_text(encoding="utf-8")

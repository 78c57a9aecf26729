# SPDX-License-Identifier: GPL-2.0-only
"""The user's own programs and probes: what is taken, what is refused, how they run and are judged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plan_jobs import job

from guest import pci, program
from harness.base.errors import HostError, NoCase, UsageError
from harness.base.outcome import Outcome
from harness.bisect.start import start
from harness.bisect.state import BisectRequest, End, Rules, StepOptions, load_state
from harness.kernel import programs
from harness.kernel.toolchain import GCC
from harness.ktap import parse
from harness.plan import Job, Own, OwnProgram, Plan, load_plan
from harness.results.compare import covers, in_scope
from harness.results.model import Address, Inputs, Result
from harness.session import own
from harness.session.wishes import OwnWish
from harness.suites.catalogue import check_patterns, work_of
from harness.suites.judging import missing
from harness.suites.own import OwnSuite
from harness.suites.probes import own_cases
from harness.suites.registry import suite_named

CHECKOUT = Path(__file__).resolve().parents[2]

PROBE = '''
from guest.case import Test, case

@case(cites="a.c f()")
def {name}(t: Test) -> None:
    """{promise}"""
'''


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def take(
    *words: str, root: str = "virtme", needs: tuple[str, ...] = (), probes: Path | None = None
) -> object:
    return own.take(OwnWish(programs=words, needs=needs, probes=probes), root)


def with_programs(*found: OwnProgram, features: tuple[str, ...] = ("noiommu", "edu")) -> Job:
    return dataclasses.replace(job(features=features), suites=("own",), own=Own(programs=found))


def ready(name: str = "mytest", **more: object) -> OwnProgram:
    return OwnProgram(name=name, digest="d" * 32, main=name, seconds=45.0, **more)  # type: ignore[arg-type]


def test_what_is_read_is_what_runs(tmp_path: Path) -> None:
    """A change after the reading reaches neither the store nor a copy; equal content is one entry."""
    path = executable(tmp_path / "mytest", "#!/bin/sh\necho one\n")
    taken = programs.take_program(path)
    executable(path, "#!/bin/sh\necho two\n")
    assert "one" in (taken.entry / "mytest").read_text()
    taken.copy_to(tmp_path / "kept")
    copy = taken.place_in(tmp_path / "kept")
    assert "one" in copy.read_text()
    assert programs.take_program(copy) == taken
    assert programs.take_program(path).digest != taken.digest
    executable(path, "#!/bin/sh\necho one\n")
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert programs.take_program(executable(other / "mytest", "#!/bin/sh\necho one\n")) == taken


@pytest.mark.parametrize("main", ["dir", "dir.py", "dir.c"])
def test_directory_runs_the_program_of_its_name(tmp_path: Path, main: str) -> None:
    directory = tmp_path / "dir"
    (directory / "sub").mkdir(parents=True)
    (directory / ".git").mkdir()
    (directory / ".git" / "x").write_text("")
    (directory / "sub" / "data").write_text("1")
    executable(directory / main)
    taken = programs.take_program(directory)
    assert (taken.name, taken.main, taken.is_directory) == ("dir", main, True)
    found = sorted(str(p.relative_to(taken.entry)) for p in taken.entry.rglob("*") if p.is_file())
    assert found == sorted([main, "sub/data"])


def test_bad_programs_are_one_sentence(tmp_path: Path) -> None:
    """Each names the path, what is wrong, and the way out if there is one."""
    empty, plain = tmp_path / "empty", tmp_path / "plain"
    empty.mkdir()
    plain.mkdir()
    (plain / "other").write_text("")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "words").write_text("hello")
    (tmp_path / "words").chmod(0o755)
    executable(tmp_path / "two words")
    for path, said in (
        ("txet", "there is no txet (did you mean 'text'?)"),
        ("empty", "--program empty: the directory is empty"),
        ("plain", "--program plain: it has no program plain (nor plain.sh, .py or .c)"),
        ("text", "text is not executable (chmod +x text)"),
        ("words", "words is neither an ELF file nor a script"),
        ("two words", "'two words' cannot be part of an address"),
    ):
        with pytest.raises(UsageError) as error:
            take(path)
        assert said in str(error.value)


def test_options_of_programs_are_checked(tmp_path: Path) -> None:
    executable(tmp_path / "a")
    (tmp_path / "b").mkdir()
    executable(tmp_path / "b" / "a")
    with pytest.raises(UsageError, match="two are called 'a'"):
        take("./a", "./b/a")
    with pytest.raises(UsageError, match=r"--needs: unknown feature 'edo' \(did you mean 'edu'\?\)"):
        take("./a", needs=("edo",))
    with pytest.raises(UsageError, match="--needs is about your own program"):
        take(needs=("edu",))
    with pytest.raises(UsageError, match="No closing quotation"):
        take("./a 'x")


def test_python_is_compiled_by_the_guests_python(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(UsageError, match=r"^--program: t\.py:2: SyntaxError: "):
        take("t.py")


def test_program_of_another_world_is_refused(tmp_path: Path) -> None:
    """Another architecture, a loader, a library and an interpreter that guests lack."""
    foreign = bytearray(Path("/bin/true").read_bytes())
    foreign[18] ^= 0xFF
    (tmp_path / "foreign").write_bytes(foreign)
    (tmp_path / "foreign").chmod(0o755)
    with pytest.raises(UsageError, match="foreign is built for another architecture"):
        take("foreign")
    (tmp_path / "x.c").write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-o", "musl", "x.c", "-Wl,--dynamic-linker=/lib/ld-musl.so.1"], check=True)
    with pytest.raises(UsageError, match=r"musl needs /lib/ld-musl\.so\.1, which guests .*") as caught:
        take("musl")
    assert caught.value.hint == "link it statically"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "libmine.so", "-xc", "/dev/null"], check=True)
    flags = ["-Wl,--no-as-needed", "-L.", "-lmine"]
    subprocess.run(["gcc", "-o", "dynamic", "x.c", *flags], check=True)
    with pytest.raises(UsageError, match=r"dynamic needs libmine\.so, which guests"):
        take("dynamic")
    (tmp_path / "dir").mkdir()
    shutil.copy("libmine.so", "dir")
    subprocess.run(["gcc", "-o", "dir/dir", "x.c", *flags, "-Wl,-rpath,$ORIGIN"], check=True)
    take("dir")
    executable(tmp_path / "perl", "#!/usr/bin/env no-such-perl\n")
    with pytest.raises(UsageError, match="needs /usr/bin/no-such-perl, which guests of --root virtme"):
        take("perl")
    with pytest.raises(UsageError, match="the path is empty"):
        take("")


def compile_alone(directory: Path, text: str, *, is_directory: bool = False) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "t.c").write_text(text)
    taken = programs.Taken(name="t", digest="d", main="t.c", is_directory=is_directory)
    programs._compile(GCC, directory, directory, taken)


def test_compilers_first_error_is_told(tmp_path: Path) -> None:
    """It is the user's; a compiler that cannot work is the host's."""
    compile_alone(tmp_path / "c", "int main(void) { return 0; }\n")
    with pytest.raises(UsageError, match=r"t\.c does not compile against .*: t\.c:2:\d+: error: .*'x'"):
        compile_alone(tmp_path / "c", "int main(void) {\nreturn x + y; }\n")
    with pytest.raises(UsageError, match="undefined reference to `other'"):
        compile_alone(tmp_path / "c", "int other(void); int main(void) { return other(); }\n")
    with pytest.raises(UsageError, match=r"mine\.h: No such file.*as a directory"):
        compile_alone(tmp_path / "c", '#include "mine.h"\n')
    broken = dataclasses.replace(GCC, compiler="false")
    taken = programs.Taken(name="t", digest="d", main="t.c", is_directory=False)
    with pytest.raises(HostError, match=r"false cannot compile t\.c"):
        programs._compile(broken, tmp_path, tmp_path, taken)


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (0, Outcome.PASS, ""),
        (1, Outcome.FAIL, "exit status 1: open: Permission denied"),
        (2, Outcome.XFAIL, "exit status 2: "),
        (3, Outcome.XPASS, "exit status 3: "),
        (4, Outcome.SKIP, "exit status 4: "),
        (5, Outcome.FAIL, "exit status 5: "),
        (139, Outcome.FAIL, "the program was killed by SIGSEGV: "),
    ],
)
def test_exit_status_decides_without_tap(status: int, outcome: Outcome, reason: str) -> None:
    """By kselftest's codes, in one case that has a history."""
    (work,) = OwnSuite().work(with_programs(ready()))
    (result,) = OwnSuite().judge(work, parse(["hello", "open: Permission denied"]), status)
    assert (str(work.address_of(result.case)), result.outcome) == ("own/mytest/exit", outcome)
    assert result.reason.startswith(reason)
    assert not missing(OwnSuite().requirement(work, job(), (result,)), (result,))


@pytest.mark.parametrize("line", ["Bail out! no memory", "not ok - the device answers"])
@pytest.mark.parametrize("status", [0, 4])
def test_exit_status_does_not_decide_against_what_it_printed(line: str, status: int) -> None:
    """A program without one whole line of TAP may have bailed out."""
    outcome, reason = judged([line], status)["exit"]
    assert outcome is Outcome.ERROR
    assert line.rpartition(" ")[2] in reason


def judged(lines: list[str], status: int) -> dict[str, tuple[Outcome, str]]:
    suite = OwnSuite()
    (work,) = suite.work(with_programs(ready()))
    results = suite.judge(work, parse(lines), status)
    results += missing(suite.requirement(work, job(), results), results)
    return {result.case: (result.outcome, result.reason) for result in results}


def test_points_are_cases() -> None:
    """Each point counts whatever the exit status; a signal is named; all points skipped is no success."""
    points = judged(["TAP version 13", "1..2", "ok 1 a", "not ok 2 b"], 1)
    assert {name: outcome for name, (outcome, _) in points.items()} == {"a": Outcome.PASS, "b": Outcome.FAIL}
    died = judged(["TAP version 13", "1..2", "ok 1 a"], 139)
    assert died["a"][0] is Outcome.PASS
    assert died["(program)"][0] is Outcome.ERROR
    assert died["(program)"][1].startswith("the program was killed by SIGSEGV; ")
    skipped = judged(["TAP version 13", "1..1", "ok 1 a # SKIP no device"], 0)
    assert skipped["(program)"][0] is Outcome.ERROR
    assert judged(["1..0 # SKIP no device"], 4) == {"(program)": (Outcome.SKIP, "no device")}


def test_needs_and_compilers_refuse(tmp_path: Path) -> None:
    """A program that no job can run is refused; one that some can run is skipped elsewhere."""
    fits, lacks = ready(), ready(needs=("noiommu-cdev",))
    broken = ready(problem="t.c does not compile: t.c:1:1: error: x")
    own.refuse_useless([with_programs(fits)])
    with pytest.raises(NoCase, match=r"mytest does not run in this job: .* needs noiommu-cdev"):
        own.refuse_useless([with_programs(lacks)])
    with pytest.raises(NoCase, match="in any of these 2 jobs"):
        own.refuse_useless([with_programs(lacks), with_programs(broken)])
    with pytest.raises(UsageError, match="error: x"):
        own.refuse_useless([with_programs(broken), with_programs(broken)])
    own.refuse_useless([with_programs(broken), with_programs(fits)])
    (work,) = work_of(with_programs(broken))
    assert work.refusal == broken.problem
    (work,) = work_of(with_programs(ready(), features=("edu",)))
    assert work.refusal == "not applicable here: needs noiommu|viommu"


def test_jobs_travel_with_their_programs(tmp_path: Path) -> None:
    """A plan file holds them by digest, and no path."""
    one = with_programs(ready(arguments=("--fast",)))
    Plan(run_id="r", seed=1, cases=(), jobs=(one,)).save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").jobs == (one,)
    (work,) = work_of(one)
    script = suite_named("own").how(work, {"edu0": "0000:00:04.0"})
    assert str(tmp_path) not in (tmp_path / "plan.json").read_text(encoding="utf-8")
    assert '"argv": ["./mytest", "--fast"]' in script.text  # type: ignore[union-attr]


def test_another_program_loses_no_coverage(tmp_path: Path) -> None:
    """A run is compared with earlier runs of the same program, whatever else they ran."""
    executable(tmp_path / "a")
    (taken,) = (own.take(OwnWish(programs=("./a",)), "virtme"),)
    (recorded,) = taken.recorded(("own",))
    assert recorded.startswith("own/a@")
    results = [
        Result(address=Address.parse(f"own/{name}/exit"), job="j", outcome=Outcome.PASS) for name in "ab"
    ]
    now = Inputs(suites=(recorded,))
    assert [str(one.address) for one in in_scope(results, now)] == ["own/a/exit"]
    assert covers(Inputs(suites=(recorded, "own/b@123456")), now)
    assert not covers(Inputs(suites=("own/a@123456",)), now)


def test_own_probes_are_probes(tmp_path: Path) -> None:
    """They are declared, run in a job that has them, and may be asked for."""
    probes = tmp_path / "probes"
    probes.mkdir()
    (probes / "own_good.py").write_text(PROBE.format(name="holds", promise="It holds."))
    taken = own.take(OwnWish(probes=probes), "virtme").probes
    assert taken is not None
    check_patterns(["probes/own_good/holds"], ("probes",))
    one = dataclasses.replace(job(), suites=("probes",), own=Own(probes=taken.digest))
    work = next(work for work in work_of(one) if work.program == "own_good")
    assert work.path.parent == taken.entry
    assert not [work for work in work_of(job()) if work.program == "own_good"]
    assert [case.promise for case in own_cases(taken.digest)] == ["It holds."]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("own_syntax", "def f(:\n", r"own_syntax\.py:1: SyntaxError"),
        (
            "cdev",
            PROBE.format(name="x", promise="It is."),
            r"probes/cdev\.py: there is a module 'cdev' already",
        ),
        ("own_none", "x = 1\n", "it has no case"),
        (
            "own_mute",
            PROBE.format(name="x", promise=""),
            r"own_mute\.py:\d+: case own_mute/x: has no promise",
        ),
        ("own_numpy", "import numpy.linalg\n", r"own_numpy\.py:1: guests have no module 'numpy'"),
        ("own_raises", "1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_bad_probes_are_one_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    probes = tmp_path / "probes"
    probes.mkdir()
    (probes / f"{name}.py").write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        take(probes=Path("probes"))
    assert str(tmp_path / "cache") not in str(error.value)


def test_probes_are_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text("")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes").write_text("")
    for path, said in (
        ("gone", "there is no gone"),
        ("file.py", "not a directory"),
        ("bare", "has no module"),
    ):
        with pytest.raises(UsageError, match=said):
            take(probes=Path(path))


def run_here(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run guest/program.py without devices."""
    asked = {
        "name": "t",
        "directory": str(tmp_path),
        "argv": argv,
        "devices": {},
        "features": [],
        "not_started": 99,
    }
    return subprocess.run(
        [sys.executable, "-m", "guest.program", json.dumps(asked)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 4", 4), ("exit 99", 1), ("kill -SEGV $$", 139)]
)
def test_guest_passes_the_exit_status_on(tmp_path: Path, script: str, status: int) -> None:
    done = run_here(tmp_path, "sh", "-c", f"echo hello; {script}")
    assert (done.returncode, done.stdout.splitlines()[0]) == (status, "hello"), done.stderr


def test_guest_says_what_did_not_start(tmp_path: Path) -> None:
    done = run_here(tmp_path, "./gone")
    assert done.returncode == 99
    assert done.stdout.splitlines()[-1].startswith("cannot start t: ")


@pytest.mark.parametrize("prefix", ["", "setsid ", "setsid sh -c 'exec sleep 1001' & "])
def test_guest_kills_what_is_left_running(tmp_path: Path, prefix: str) -> None:
    """No daemon keeps the output or a device open, in a session of its own neither."""
    done = run_here(tmp_path, "sh", "-c", f"{prefix}sleep 1000 & echo $!")
    assert done.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_environment_names_devices_and_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {
        "0000:00:04.0": pci.Nodes(group=Path("/dev/vfio/noiommu-0"), cdev=None),
        "0000:00:05.0": pci.Nodes(group=None, cdev=Path("/dev/vfio/devices/noiommu-vfio1")),
    }
    monkeypatch.setattr(pci, "vfio_nodes", nodes.__getitem__)
    found = program.environment({"igb0": "0000:00:04.0", "my-edu": "0000:00:05.0"})
    assert {name: value for name, value in found.items() if name.startswith("VFIO")} == {
        "VFIO_DEVICES": "igb0 my-edu",
        "VFIO_BDF": "0000:00:04.0",
        "VFIO_GROUP": "/dev/vfio/noiommu-0",
        "VFIO_SELFTESTS_BDF": "0000:00:04.0",
        "VFIO_IGB0_BDF": "0000:00:04.0",
        "VFIO_IGB0_GROUP": "/dev/vfio/noiommu-0",
        "VFIO_MY_EDU_BDF": "0000:00:05.0",
        "VFIO_MY_EDU_CDEV": "/dev/vfio/devices/noiommu-vfio1",
    }


def test_a_bisect_runs_its_copies(tmp_path: Path) -> None:
    """Each step runs the program as it was when the bisect began, with its arguments and needs."""
    executable(tmp_path / "mytest")
    wish = OwnWish(programs=("./mytest --fast",), needs=("edu",))
    end = End(name="v1", commit="1" * 40)
    request = BisectRequest(
        repository="r", root=str(tmp_path), old=end, new=end, options=StepOptions(own=wish)
    )
    state, directory = start(request, Rules(), own.take(wish, "virtme"))
    executable(tmp_path / "mytest", "#!/bin/sh\nexit 1\n")
    copy = directory / "own" / "mytest"
    assert copy.read_text(encoding="utf-8") == "#!/bin/sh\n"
    words = state.request.options.words()
    assert words[words.index("--program") :][:4] == ["--program", f"{copy} --fast", "--needs", "edu"]
    assert load_state(directory) == state

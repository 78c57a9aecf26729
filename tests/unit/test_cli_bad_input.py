# SPDX-License-Identifier: GPL-2.0-only
"""Wrong input gets one sentence, the closest name and the right exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness.base import process
from harness.base.errors import ExitCode


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home: no cache, no runs, TCG by choice so that nothing is probed."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    return tmp_path


def harness(*words: str, cwd: Path | None = None) -> process.Completed:
    return process.run([sys.executable, "-m", "harness", *words], cwd=cwd)


RUN = ("run", "--accel", "tcg", "--tree", "/nonexistent")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rn",), "there is no verb 'rn': did you mean 'run'?"),
        (("run", "--varient", "cdev"), "No such option '--varient'. Did you mean '--variant'?"),
        ((*RUN, "--variant", "group-cedv"), "there is no variant 'group-cedv'\n  did you mean 'group-cdev'?"),
        ((*RUN, "--topology", "edu-ibg"), "there is no topology 'edu-ibg'\n  did you mean 'edu-igb'?"),
        ((*RUN, "--suite", "probs"), "there is no suite 'probs'\n  did you mean 'probes'?"),
        ((*RUN, "--case", "probes/get_pa/zero_lenth"), "no case matches 'probes/get_pa/zero_lenth'"),
        (
            (*RUN, "--case", "probes/pinnning/*"),
            "no case matches 'probes/pinnning/*'\n  did you mean 'probes/pinning/*'?",
        ),
        ((*RUN, "--case", "get_pa"), "no case matches 'get_pa'\n  here addresses begin with probes/"),
        ((*RUN, "--with", "kasan"), "there is no add-on 'kasan'"),
        ((*RUN, "--config", "/nonexistent.config"), "/nonexistent.config"),
        ((*RUN, "--topology", "/nonexistent.yaml"), "/nonexistent.yaml: No such file"),
        (RUN, "there is no kernel tree '/nonexistent'"),
        ((*RUN[:-1], "~no-such-user/linux"), "~no-such-user/linux: there is no such home directory"),
        (
            ("run", "--accel", "tcg", "--kernel", "~no-such-user/o"),
            "~no-such-user/o: there is no such home directory",
        ),
        ((*RUN, "--program", "~no-such-user/x.c"), "~no-such-user/x.c"),
        ((*RUN[:-1], "x" * 300), "x: File name too long"),
        (("run", "--accel", "kwm"), "'kwm' is not one of 'auto', 'kvm', 'tcg'"),
        (("run", "--cpus", "0"), "0 is not in the range"),
        (("doctor", "--worker", "--arch", "arm64"), "check them without --worker"),
        (("gc",), "say what to keep"),
        (("gc", "--max-size", "lots"), "'lots' is not a size"),
        (("list", "variantz"), "'variantz' is not one of"),
        (("list",), "Choose from: variants, topologies, matrices,"),
        ((*RUN, "--affected", "--lf"), "--affected chooses the cases: leave --lf out"),
        (("report",), "there are no runs in"),
        (("report", "x"), "there is no run 'x'"),
        (("report", "./x"), "x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_words(cli: Path, words: tuple[str, ...], said: str) -> None:
    """Each wrong word is named with what to do; the exit code is 2 and there is no traceback."""
    done = harness(*words, cwd=cli)
    assert said in done.stderr
    assert done.status == ExitCode.USAGE
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_user_topology_with_a_wrong_key(cli: Path) -> None:
    """A misspelt key in the user's own topology is named with file and line."""
    path = cli / "mine.yaml"
    path.write_text("summary: mine\nmin_memroy: 1024\ndevices: []\n")
    done = harness(*RUN, "--topology", str(path))
    assert f"{path}:2: the file has no key 'min_memroy'" in done.stderr
    assert "did you mean 'min_memory'?" in done.stderr
    assert done.status == ExitCode.USAGE


def test_fragment_with_a_syntax_error(cli: Path) -> None:
    """A fragment's bad line is named before anything is fetched or built."""
    path = cli / "mine.config"
    path.write_text("CONFIG_VFIO=y\nCONFIG_VFIO_GROUP yes\n")
    done = harness(*RUN, "--config", str(path))
    assert f"{path}:2" in done.stderr
    assert done.status == ExitCode.USAGE


def test_qemu_that_is_not_there(cli: Path) -> None:
    """A missing QEMU is infrastructure; the hint is about the path that was given."""
    done = harness(*RUN, "--qemu", "/nonexistent/qemu")
    assert "/nonexistent/qemu: No such file" in done.stderr
    assert "give --qemu" in done.stderr
    assert "doctor --fix" not in done.stderr
    assert done.status == ExitCode.INFRA


def test_qemu_that_is_too_old(cli: Path) -> None:
    """A QEMU that is too old is refused with both versions."""
    fake = cli / "qemu"
    fake.write_text("#!/bin/sh\necho QEMU emulator version 5.2.0\n")
    fake.chmod(0o755)
    done = harness(*RUN, "--qemu", str(fake))
    assert "is QEMU 5.2; 7.2 or newer is needed" in done.stderr
    assert done.status == ExitCode.INFRA


def test_qemu_without_igb(cli: Path) -> None:
    """A topology with a device this QEMU lacks is refused before anything is built."""
    fake = cli / "qemu"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo QEMU emulator version 7.2.0;;\n'
        """*) echo 'name "edu", bus PCI'; echo 'name "virtio-net-pci", bus PCI';; esac\n"""
    )
    fake.chmod(0o755)
    done = harness(*RUN, "--qemu", str(fake), "--topology", "igb")
    assert "igb" in done.stderr
    assert "7.2" in done.stderr
    assert done.status in (ExitCode.USAGE, ExitCode.INFRA)


def test_a_run_directory_that_cannot_be_written(cli: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory that cannot be written is refused at the start."""
    (cli / "file").write_text("")
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(cli / "file" / "runs"))
    done = harness("report")
    assert done.status == ExitCode.USAGE
    assert "Traceback" not in done.stderr


def test_no_colour_when_not_a_terminal(cli: Path) -> None:
    """Output that goes into a file carries no escape sequences."""
    done = harness("rn", cwd=cli)
    assert "\x1b" not in done.stderr


def test_help_of_every_verb(cli: Path) -> None:
    """Every verb has a help text."""
    for verb in ("run", "build", "shell", "list", "report", "compare", "history", "doctor", "gc"):
        done = harness(verb, "--help", cwd=cli)
        assert done.ok
        assert done.stdout.startswith("Usage:")


def test_completion_knows_variants(cli: Path) -> None:
    """The shell completes variant names."""
    words = {
        "_VFIO_HARNESS_COMPLETE": "bash_complete",
        "COMP_WORDS": "vfio-harness run --variant gr",
        "COMP_CWORD": "3",
    }
    program = Path(sys.executable).with_name("vfio-harness")
    done = process.run([os.fspath(program)], env=words)
    assert "plain,group-cdev" in done.stdout


def test_a_fact_without_a_value(cli: Path) -> None:
    done = harness("run", "--about", "x", cwd=cli)
    assert done.stderr == "error: --about x: it has no =\n  --about KEY=VALUE\n"
    assert done.status == 2


def test_a_series_without_a_tree(cli: Path) -> None:
    """It is asked for the tree, not told about a repository in the current directory."""
    done = harness("run", "--series", "x.mbox", cwd=cli)
    assert "--series needs the tree that its patches apply to" in done.stderr
    assert "--tree" in done.stderr
    assert done.status == ExitCode.USAGE


def test_a_report_into_a_missing_directory(cli: Path) -> None:
    """`report -o` and --junit-xml refuse it in the same words, and make nothing."""
    there = cli / "none"
    for words in (("report", "-o", str(there / "x.html")), (*RUN, "--junit-xml", str(there / "x.xml"))):
        done = harness(*words)
        assert f"there is no directory {there}" in done.stderr
        assert done.status == ExitCode.USAGE
    assert not there.exists()


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "<&- >&- 2>&-", "2>&1 | true", ">/dev/full 2>&1"])
def test_nobody_listens(cli: Path, streams: str) -> None:
    """An error that cannot be printed keeps its exit code."""
    words = " ".join((sys.executable, "-m", "harness", *RUN, "--json"))
    done = process.run(["bash", "-c", f"({words}; echo $? >status) {streams}"], cwd=cli)
    assert (cli / "status").read_text() == f"{int(ExitCode.USAGE)}\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("list", "variants"), ("list", "variants", "--json"), ("--help",)])
def test_a_full_disk_is_the_hosts_fault(cli: Path, words: tuple[str, ...]) -> None:
    """Output that cannot be written is an error of one sentence, with --json too."""
    words = (sys.executable, "-m", "harness", *words)
    done = process.run(["bash", "-c", f"{' '.join(words)} >/dev/full"], cwd=cli)
    assert "error: cannot write the standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.status == ExitCode.INFRA


def test_a_closed_stream_is_no_file_of_ours(cli: Path) -> None:
    """The number of a closed stream is taken at once, so that no file that is opened later gets output."""
    code = (
        "import os; from harness.base import output; output.open_standard_streams();"
        "assert os.open('/', 0) > 2; print('x', flush=True)"
    )
    done = process.run(["bash", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-'])
    assert done.ok


def test_a_directory_that_was_removed(cli: Path) -> None:
    """No relative path means anything there, and that is no bug of ours."""
    words = f"cd {cli} && mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m harness list variants"
    done = process.run(["bash", "-c", words])
    assert "error: the current directory cannot be used: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.status == ExitCode.USAGE


@pytest.mark.parametrize("python", ["PYTHONOPTIMIZE=2 {}", "{} -OO"])
def test_a_python_that_leaves_out_docstrings(cli: Path, python: str) -> None:
    """They hold the promises of the cases."""
    done = process.run(["bash", "-c", f"{python.format(sys.executable)} -m harness list cases"])
    assert done.ok, done.stderr
    assert "probes/get_pa/gap_ends_the_length" in done.stdout

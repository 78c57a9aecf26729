# SPDX-License-Identifier: GPL-2.0-only
"""Wrong input is answered with one sentence, the nearest right spelling and the right exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness import process
from harness.errors import ExitCode


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
        (("run", "--accel", "kwm"), "'kwm' is not one of 'auto', 'kvm', 'tcg'"),
        (("run", "--cpus", "0"), "0 is not in the range"),
        (("gc",), "say what to keep"),
        (("gc", "--max-size", "lots"), "'lots' is no size"),
        (("list", "variantz"), "'variantz' is not one of"),
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
    """A missing QEMU is the host's trouble, with the command that mends it."""
    done = harness(*RUN, "--qemu", "/nonexistent/qemu")
    assert "/nonexistent/qemu: No such file" in done.stderr
    assert "doctor --fix" in done.stderr
    assert done.status == ExitCode.INFRA


def test_qemu_that_is_too_old(cli: Path) -> None:
    """An ancient QEMU is refused with its version and what is needed."""
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
    """Where results cannot be kept the harness says so instead of running into it at the end."""
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
    """Every verb explains itself."""
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

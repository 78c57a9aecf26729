# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness shell` in a real VM: words, data, terminal, shared directories and prepared devices."""

from __future__ import annotations

import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

import pytest

from harness.kernel.provide import Kernel

SHELL = (sys.executable, "-m", "harness", "shell", "--tree", "debian:7.3", "--topology", "edu")
SECONDS = 600.0

pytestmark = pytest.mark.usefixtures("group_cdev")


def shell(
    *options: str, run: Sequence[str], data: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command *run* in a guest, with *data* as its input."""
    return subprocess.run(
        [*SHELL, *options, "--", *run],
        input=data,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )


def test_a_command_and_its_status(group_cdev: Kernel) -> None:
    """It runs in the VM, and its words stay apart."""
    done = shell(run=["sh", "-c", 'uname -r; echo "$1" >&2; exit 7', "sh", "a  $$"])
    assert done.stdout.decode() == f"{group_cdev.release}\n"
    assert done.stderr.endswith(b"a  $$\n")
    assert done.returncode == 7


def test_the_signal_that_ended_the_command() -> None:
    """The guest still runs, so the status is 128 + 9 and not that of an infrastructure failure."""
    done = shell(run=["sh", "-c", "kill -9 $$"])
    assert (done.returncode, done.stdout) == (137, b""), done.stderr


def test_ten_megabytes_pass_unchanged() -> None:
    """In both directions at once: without a terminal here there is none in the guest."""
    data = os.urandom(10 << 20)
    done = shell(run=["cat"], data=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


@pytest.mark.parametrize("root", ["image", "virtme"])
def test_shared_directories(root: str, tmp_path: Path) -> None:
    """Whatever a path's characters; the guest writes only where it may, and a snapshot is restored."""
    kept, written, vm = tmp_path / "a, b=c", tmp_path / "written", tmp_path / "vm"
    for directory in (kept, written, vm):
        directory.mkdir()
    (kept / "bytes").write_bytes(bytes(range(256)))
    script = "cd /run/share && cp 'a, b=c/bytes' written && ls vm/*; touch 'a, b=c/no' || echo refused"
    words = ("--root", root, "--share", str(kept), "--share", f"{written}:rw", "--share", str(vm))
    for restored in (False, True) if root == "image" else (False,):
        done = shell(*words, run=["sh", "-c", script], TMPDIR=str(vm))
        assert done.returncode == 0, done.stderr
        assert (written / "bytes").read_bytes() == bytes(range(256))
        assert done.stdout.endswith(b"refused\n")
        assert f"{kept} is /run/share/a, b=c, read-only\n" in done.stderr.decode()
        assert f"{written} is /run/share/written, writable\n" in done.stderr.decode()
        assert not restored or b"console-boot.log" in done.stdout
        (written / "bytes").unlink()
    assert not (kept / "no").exists()
    assert not list(vm.iterdir())


def test_prepared_devices() -> None:
    """They are bound, no-IOMMU mode is on, and the nodes that are told are there."""
    script = (
        "cat /sys/module/vfio/parameters/enable_unsafe_noiommu_mode;"
        "echo /dev/vfio/*noiommu* /dev/vfio/devices/*"
    )
    done = shell("--prepare", run=["sh", "-c", script])
    mode, nodes = done.stdout.decode().splitlines()
    assert mode == "Y"
    assert len(nodes.split()) == 2
    (line,) = (line for line in done.stderr.decode().splitlines() if line.startswith("edu0 is "))
    assert line.partition(": ")[2].split(", ") == nodes.split()


def test_the_window_has_the_size_of_ours(tmp_path: Path) -> None:
    """At the start, and when ours changes."""
    script = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done"
    pid, terminal = pty.fork()
    if not pid:
        os.execv(SHELL[0], [*SHELL, "--", "bash", "-c", script])
    try:
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 31, 97, 0, 0))
        said, resized, limit = b"", False, time.monotonic() + SECONDS
        while time.monotonic() < limit:
            try:
                said += os.read(terminal, 4096)
            except OSError:
                # EIO: the last process on the terminal has ended.
                break
            if b"ready" in said and not resized:
                resized = True
                ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 29, 83, 0, 0))
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    assert b"31 97" in said
    assert b"29 83" in said

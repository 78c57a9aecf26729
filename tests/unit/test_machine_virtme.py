# SPDX-License-Identifier: GPL-2.0-only
"""What the virtme root takes from virtme-ng's command, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import InfraError, UsageError
from harness.kernel.arch import host_arch
from harness.machine import roots, virtme

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def test_read_command() -> None:
    """Shares and the guest protocol are kept; the machine, its consoles and its ports are dropped."""
    parts = virtme.read_command((GOLDEN / "virtme-run-1.42.txt").read_text(encoding="utf-8"))
    assert parts.devices == (
        "virtio-9p-pci,fsdev=virtfs1,mount_tag=/dev/root",
        "virtio-9p-pci,fsdev=virtfs5,mount_tag=virtme.initmount0",
    )
    assert parts.options[::2] == ("-fsdev", "-fsdev")
    assert parts.kernel_args == (
        "nr_open=1048576",
        "virtme_initmount0=/run/vfio-harness/guest",
        "virtme_initmount0_fstype=9p",
        "virtme_initmount0_access=ro",
        "virtme_console=ttyS0",
        "virtme.exec=`ZXhlYyAvYmluL3No`",
        "virtme_root_user=1",
        "rootfstype=9p",
        "rootflags=version=9p2000.L,trans=virtio,access=any,msize=524288,cache=loose",
        "raid=noautodetect",
        "ro",
        "init=/opt/virtme/guest/bin/virtme-ng-init",
    )


@pytest.mark.parametrize(
    "text", ["", "qemu-system-x86_64 -nodefaults", "qemu -append 'init=/x virtme.exec=`x`'"]
)
def test_a_command_without_a_root(text: str) -> None:
    """Output of an unknown form is an InfraError."""
    with pytest.raises(InfraError, match="install virtme-ng"):
        virtme.read_command(text)


def test_ask_argv(tmp_path: Path) -> None:
    """virtme-run runs nothing, needs no daemon, and both shares are read-only."""
    argv = virtme.ask_argv(tmp_path / "guest", tmp_path / "6.1")
    for word in (
        "--dry-run",
        "--show-command",
        "--force-9p",
        f"--rodir=/run/vfio-harness/guest={tmp_path}/guest",
    ):
        assert word in argv
    assert f"--rodir=/run/vfio-harness/modules={tmp_path}/6.1" in argv
    assert not any(word.startswith(("--rw", "--rwdir")) for word in argv)


def test_unsharable_path(tmp_path: Path) -> None:
    """A path that virtme-run cannot share is refused with a hint."""
    with pytest.raises(InfraError, match="letters, digits"):
        virtme.ask_argv(tmp_path / "a,b", None)


def test_the_installed_virtme_ng(tmp_path: Path) -> None:
    """The output of the installed virtme-ng is understood."""
    parts = roots.find_root("virtme", host_arch()).parts(tmp_path, None, None)
    assert parts.kernel_args[-1].endswith("/virtme-ng-init")
    assert any(f"path={tmp_path}" in word for word in parts.options)


def test_unknown_root() -> None:
    """The hint for an unknown root is the nearest one."""
    with pytest.raises(UsageError, match="did you mean 'virtme'"):
        roots.find_root("virtm", host_arch())

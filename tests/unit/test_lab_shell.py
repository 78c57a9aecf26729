# SPDX-License-Identifier: GPL-2.0-only
"""What a shell says of prepared devices; tests/integration opens real shells."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import HostError, InfraError, KernelError, LostGuest
from harness.lab import shell
from harness.machine.accel import Accel
from harness.machine.shares import Share

EDU, IGB = "0000:00:05.0", "0000:00:04.0"


class FakeGuest:
    """A guest that cannot mount."""

    def check(self, command: str, deadline: Deadline) -> str:
        raise LostGuest(f"{command[:8]} exited with 32 in the guest: unknown filesystem type '9p'")


def booted() -> Any:
    machine = SimpleNamespace(accel=Accel.TCG)
    vm = SimpleNamespace(machine=machine, patient=lambda limit: limit)
    return SimpleNamespace(vm=vm, guest=FakeGuest(), bdfs={"edu0": EDU, "igb0": IGB})


def prepared(answer: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], dict[str, str]]:
    monkeypatch.setattr(shell, "ask", lambda guest, words, limit: answer)
    return shell._prepare(booted(), ("edu", "noiommu"))


def test_nodes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of each device, or why it has none; and the environment of the user's own programs."""

    def answer(nodes: object) -> str:
        return json.dumps({"nodes": nodes, "environment": {"VFIO_BDF": EDU}})

    nodes = ["/dev/vfio/noiommu-0", "/dev/vfio/devices/noiommu-vfio0"]
    said, environment = prepared(answer({EDU: nodes, IGB: "[Errno 22] Invalid argument"}), monkeypatch)
    assert said == {
        EDU: ": /dev/vfio/noiommu-0, /dev/vfio/devices/noiommu-vfio0",
        IGB: ", not bound to vfio-pci: [Errno 22] Invalid argument",
    }
    assert environment == {"VFIO_BDF": EDU}
    assert prepared(answer({EDU: []}), monkeypatch)[0] == {EDU: ": bound to vfio-pci, without a node"}


def test_a_kernel_that_binds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to run a command on; what the guest says else is no verdict on the kernel."""
    with pytest.raises(KernelError, match="binds no device to vfio-pci: no"):
        prepared(json.dumps({"nodes": {EDU: "no", IGB: "never"}, "environment": {}}), monkeypatch)
    with pytest.raises(LostGuest, match="could not prepare its devices: KeyError: 1"):
        prepared("Traceback\nKeyError: 1", monkeypatch)


def test_a_kernel_without_9p() -> None:
    """The message names the directory and what the kernel needs."""
    with pytest.raises(InfraError, match=r"cannot mount /x: .*'9p'.*CONFIG_NET_9P_VIRTIO"):
        shell._mount(booted(), 0, Share(Path("/x"), writable=False))


@pytest.mark.parametrize(
    ("error", "boots"),
    [
        (InfraError("the guest's clock is wrong", cause=Cause.HOST), 2),
        (LostGuest("no SSH", cause=Cause.NO_SSH), 1),
        (HostError("mkfs.erofs is missing"), 1),
    ],
)
def test_a_boot_on_a_busy_host_is_tried_again(
    error: InfraError, boots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run; a guest that hangs, or a missing tool, is reported at once."""
    begun: list[object] = []

    @contextlib.contextmanager
    def boot(recipe: object, _directory: Path) -> Iterator[object]:
        begun.append(recipe)
        if len(begun) == 1:
            raise error
        yield recipe

    monkeypatch.setattr(shell, "boot", boot)
    told: list[str] = []
    recipe: Any = "recipe"
    with contextlib.ExitStack() as stack:
        if boots == 1:
            with pytest.raises(type(error)):
                shell._boot(recipe, Path(), stack, told.append)
        else:
            assert shell._boot(recipe, Path(), stack, told.append) == recipe
    assert (len(begun), len(told)) == (boots, boots - 1)

# SPDX-License-Identifier: GPL-2.0-only
"""A running VM of a Job for a debugger on this host."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from harness.base import process
from harness.base.errors import InfraError
from harness.kernel.debugfile import DebugInformation
from harness.kernel.store import hold
from harness.lab.boot import Recipe, boot
from harness.machine.dump import FILE, Dumper
from harness.machine.interrogation import drgn_command
from harness.machine.machine import GDB_SOCKET
from harness.plan import Job


def gdb_command(program: Path, directory: Path) -> list[str]:
    """Return the command that opens gdb on the guest whose VM is in *directory*."""
    return ["gdb", str(program), "-ex", f"target remote {directory / GDB_SOCKET}"]


def debug_live(
    job: Job,
    directory: Path,
    information: DebugInformation,
    tell: Callable[[str], None],
    *,
    gdb: bool = False,
) -> int:
    """Boot *job* below *directory*, or restore it from its snapshot, and open drgn, or *gdb*, on it.

    The guest is as its first case finds it, and runs.  *tell* is called with how to log in.  Returns the
    debugger's exit status.  Raises what boot() raises, and HostError when the debugger is missing.
    """
    recipe = Recipe.of(job)
    with hold(job.kernel.digest, programs=job.own.digests), boot(recipe, directory) as booted:
        ssh = booted.vm.ssh
        login = ["ssh", "-i", str(ssh.client_key), "-p", str(ssh.port)]
        login += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        tell(f"log in from another terminal: {shlex.join([*login, f'{ssh.user}@{ssh.host}'])}")
        for device, bdf in booted.bdfs.items():
            tell(f"{device} is {bdf}")
        if gdb:
            booted.vm.qmp.monitor(f"gdbserver unix:{GDB_SOCKET},server=on,wait=off")
            return process.run_foreground(gdb_command(information.program, directory), own_stdout=True)
        note = Dumper(booted.vm.qmp, directory, job.memory_mib, recipe.accel.timeout_factor).take()
        if note.reason:
            raise InfraError(f"the guest's memory cannot be dumped: {note.reason}")
        tell("drgn sees the guest as it is now; the guest runs on")
        argv = drgn_command(directory / FILE, information, "--shell")
        return process.run_foreground(argv, own_stdout=True)

# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness shell`: an interactive shell in the machine that `run` uses."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import click

from harness.boot import Recipe, boot
from harness.cli import options
from harness.kernel.store import hold
from harness.machine.machine import GDB_SOCKET
from harness.output import tell
from harness.remote import interact
from harness.session.planning import provide_job
from harness.session.wishes import KernelWish, MachineWish


@click.command("shell")
@options.tree_option
@options.variant_option(multiple=False)
@options.topology_option(multiple=False)
@options.kernel_options
@options.machine_options
@click.option("--gdb", is_flag=True, help="Offer a gdb server on a unix socket, which is named at the start.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(
    tree: str | None,
    variant: str,
    topology: str,
    addons: tuple[str, ...],
    configs: tuple[Path, ...],
    jobs: int | None,
    machine: MachineWish,
    gdb: bool,
    words: tuple[str, ...],
) -> int:
    """Boot the same machine that run uses and open a shell in it, or run WORDS there.

    The VM ends with the shell.  Console and QEMU command are in the directory named first.

    \b
    Examples:
      vfio-harness shell --topology hotplug
      vfio-harness shell -- ls -l /dev/vfio
    """
    wish = KernelWish(tree=tree, variant=variant, addons=addons, configs=configs, jobs=jobs)
    job = provide_job(wish, machine.on(topology))
    recipe = Recipe.of(job, gdb=gdb)
    directory = Path(tempfile.mkdtemp(prefix="vfio-harness-shell-"))
    with contextlib.ExitStack() as stack:
        tell(f"the VM's directory: {directory}")
        if gdb:
            target = f"target remote {directory / GDB_SOCKET}"
            tell(shlex.join(["gdb", str(recipe.machine.vmlinux), "-ex", target]))
        stack.enter_context(hold(job.kernel.digest))
        booted = stack.enter_context(boot(recipe, directory))
        for device, bdf in booted.bdfs.items():
            tell(f"{device} is {bdf}")
        sys.stderr.flush()
        status = interact(booted.guest, " ".join(words) or None)
    # Only a machine that went well leaves nothing to look at.
    shutil.rmtree(directory, ignore_errors=True)
    return status

# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness shell`: open an interactive shell in the VM that `run` would use."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from harness.base.output import tell
from harness.cli import options
from harness.lab.shell import Shell, open_shell, refuse_background
from harness.machine.shares import read_shares
from harness.session.jobs import provide_job
from harness.session.planning import take_ready
from harness.session.wishes import KernelWish, MachineWish, OwnWish


@click.command("shell")
@options.kernel_wish
@options.variant_option(multiple=False)
@options.topology_option(multiple=False)
@options.machine_options
@click.option(
    "--program",
    "programs",
    multiple=True,
    metavar="PATH",
    help="Bring your own test as run does, and print how to start it; see docs/own-tests.md. Repeatable.",
)
@click.option("--gdb", is_flag=True, help="Start a gdb server on a unix socket and print how to connect.")
@click.option(
    "--share",
    "shared",
    multiple=True,
    metavar="DIR[:rw]",
    help="Show DIR of this host in the guest, at /run/share/NAME; read-only without :rw. Repeatable.",
)
@click.option(
    "--prepare",
    is_flag=True,
    help="Bind the devices to vfio-pci, as a probe does, and print their nodes; no-IOMMU mode is on unless "
    "they have an IOMMU.",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(
    kernel: KernelWish,
    variant: str,
    topology: str,
    machine: MachineWish,
    programs: tuple[str, ...],
    gdb: bool,
    shared: tuple[str, ...],
    prepare: bool,
    words: tuple[str, ...],
) -> int:
    """Boot the VM that run would use and open a login shell in it, or run the command WORDS there.

    WORDS are a program and its arguments, passed unchanged; use `sh -c '...'` for pipes and variables.  If
    input or output is a pipe or a file, the guest gets no terminal and data pass unchanged.

    The VM ends with the shell.  The directory printed first has its console log and QEMU command; it is
    removed with the VM, but kept after an error.

    The exit code is that of the shell or the command, 128+N if signal N ended it; otherwise it is 2 for wrong
    use, 3 for infrastructure (no VM, or it ended first), 4 without a kernel, 130 if interrupted.

    \b
    Examples:
      vfio-harness shell --topology hotplug
      vfio-harness shell -- ls -l /dev/vfio
      vfio-harness shell -- cat /proc/config.gz > config.gz
      tar -c tests | vfio-harness shell -- tar -xvC /tmp
      vfio-harness shell --prepare --share ./mytests -- /run/share/mytests/open_cdev
    """
    refuse_background(words)
    shares = read_shares(shared)
    own = OwnWish(programs=programs)
    job = provide_job(take_ready(kernel).of(variant), machine.on(topology), own)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        # Closing the terminal ends the shell like SIGTERM: the VM ends and its directory is removed.
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    with _kept_after_an_error() as directory:
        shell = Shell(qemu=machine.qemu, gdb=gdb, shares=shares, prepare=prepare)
        return open_shell(job, directory, words, shell, tell)


@contextlib.contextmanager
def _kept_after_an_error() -> Iterator[Path]:
    """Make a directory and remove it afterwards; after an error, keep it unless it is empty."""
    directory = Path(tempfile.mkdtemp(prefix="vfio-harness-shell-"))
    tell(f"the VM's directory: {directory}")
    kept = False
    try:
        yield directory
    except Exception:
        kept = any(directory.iterdir())
        raise
    finally:
        if kept:
            tell(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)

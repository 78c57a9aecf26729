# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness debug`: open a debugger on a guest that died in a run, or on the VM of a case."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from harness.base import process
from harness.base.errors import HarnessError, HostError, UsageError
from harness.base.output import emit, tell
from harness.cli import options
from harness.kernel.debugfile import symbols_only
from harness.lab.debug import debug_live
from harness.machine.interrogation import drgn_command, interrogate, refuse_without_drgn
from harness.results import Run
from harness.session.debugging import Target, debug_information, find_target, job_of, kernel_of
from harness.session.dumps import interrogation_limit
from harness.session.reporting import find_run


@click.command("debug")
@options.runs_argument("run")
@click.argument("case", required=False, metavar="[CASE]")
@click.option("--job", metavar="NAME", help="The job in which CASE ran, if the run has several.")
@click.option("--live", is_flag=True, help="Open the VM in which CASE starts, even if there is a dump.")
@click.option("--gdb", is_flag=True, help="Open gdb instead of drgn; only on a VM.")
@click.option("--answers", is_flag=True, help="Print stacks, locks, devices and contexts; open nothing.")
def command(run: str, case: str | None, job: str | None, live: bool, gdb: bool, answers: bool) -> int:
    """Open drgn on the memory of the guest that died in CASE of RUN, with debug information.

    If CASE left no dump, the VM in which CASE starts is opened: booted, or restored from its snapshot.  CASE
    may be left out if RUN has one dump only.

    In drgn the functions summary(), tasks(), locks(), devices() and contexts() print; vfio_devices(),
    vfio_groups(), iommufd_contexts(), iommufd_objects(context), open_files() and blocked_tasks() return
    objects.  See docs/debug.md.

    \b
    Examples:
      vfio-harness debug 20261130-091500-1f0c9a2b
      vfio-harness debug 20261130-091500-1f0c9a2b probes/mapping/copy_shares_the_pages --answers
      vfio-harness debug 20261130-091500-1f0c9a2b probes/mapping/copy_shares_the_pages --live --gdb
    """
    if case is None and live:
        raise click.UsageError("--live needs a CASE")
    if live and answers:
        raise click.UsageError("--answers reads a dump, and --live opens a VM: give one of them")
    found = find_run(run)
    target = find_target(found, case, job)
    dump = None if live else target.path(found)
    if dump is None and answers:
        raise UsageError(_no_dump(target), hint="vfio-harness debug without --answers opens a VM")
    if dump is None:
        if not live:
            tell(f"{_no_dump(target)}: opening the VM in which it starts")
        return _open_vm(found, target, gdb=gdb)
    if gdb:
        raise UsageError("gdb cannot read a compressed dump", hint="use drgn, or --live for a VM")
    refuse_without_drgn()
    information = debug_information(found, job_of(found, target.result))
    if answers:
        emit(interrogate(dump, information, interrogation_limit()).rstrip("\n"))
        return 0
    tell(f"the dump of job {target.result.job}: {dump}")
    return process.run_foreground(drgn_command(dump, information, "--shell"), own_stdout=True)


def _no_dump(target: Target) -> str:
    why = target.dump.reason if target.dump is not None else "its guest did not die"
    return f"{target.result.address} left no dump ({why})"


def _open_vm(run: Run, target: Target, *, gdb: bool) -> int:
    job = job_of(run, target.result)
    if gdb and process.find_tool("gdb") is None:
        raise HostError("gdb is not installed", hint="apt-get install gdb")
    if not gdb:
        refuse_without_drgn()
    try:
        information = debug_information(run, job)
    except HarnessError as error:
        if not gdb:
            raise
        tell(f"gdb has symbols only: {error}")
        information = symbols_only(kernel_of(job))
    with tempfile.TemporaryDirectory(prefix="vfio-harness-debug-") as directory:
        tell(f"the VM's directory: {directory}")
        return debug_live(job, Path(directory), information, tell, gdb=gdb)

# SPDX-License-Identifier: GPL-2.0-only
"""A shell, or one command, in the VM of a Job."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import HostError, InfraError, KernelError, LostGuest
from harness.kernel.arch import find_arch
from harness.kernel.store import find_built, hold
from harness.lab.boot import Booted, Recipe, ask, boot
from harness.lab.current import SERVICE_SECONDS
from harness.lab.retries import BOOT_TRIES
from harness.machine.machine import GDB_SOCKET
from harness.machine.qemu import find_qemu
from harness.machine.rootparts import GUEST_RUN
from harness.machine.shares import Share, mount_words
from harness.machine.virtme import HIDDEN, VirtmeRoot
from harness.plan import Job
from harness.remote import interact
from harness.remote import refuse_background as refuse_background
from harness.suites.model import Script
from harness.suites.own import SUITE as OWN
from harness.suites.registry import suite_named

_END_SECONDS = 1.0
"""Seconds for a VM whose connection broke to end and to give its reason."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """What a shell needs besides its Job."""

    qemu: str | None = None
    gdb: bool = False
    """Whether QEMU serves a debugger."""
    shares: tuple[Share, ...] = ()
    prepare: bool = False
    """Whether the devices are bound to vfio-pci."""


def open_shell(
    job: Job, directory: Path, words: Sequence[str], shell: Shell, tell: Callable[[str], None]
) -> int:
    """Boot *job* below *directory*, run a shell or the command *words* in the guest; return its exit status.

    *tell* is called with where devices, their nodes and shares are, and with the command for a debugger.
    Raises what boot() raises, KernelError if no device can be bound, and LostGuest with the reason if the VM
    ends meanwhile.
    """
    qemu = find_qemu(shell.qemu, find_arch(job.arch))
    recipe = Recipe.of(job, qemu=qemu, gdb=shell.gdb, shares=shell.shares)
    with contextlib.ExitStack() as stack:
        built = find_built(job.kernel.digest)
        if shell.gdb and built is not None:
            tell(shlex.join(built.debugger(directory / GDB_SOCKET)))
        stack.enter_context(hold(job.kernel.digest, programs=job.own.digests))
        booted = _boot(recipe, directory, stack, tell)
        for number, share in enumerate(shell.shares):
            _mount(booted, number, share)
            tell(f"{share.directory} is {share.point}, {'writable' if share.writable else 'read-only'}")
        nodes, environment = _prepare(booted, job.features) if shell.prepare else ({}, {})
        for device, bdf in booted.bdfs.items():
            tell(f"{device} is {bdf}{nodes.get(bdf, '')}")
        for name, path in _bring_programs(booted, job):
            tell(f"{name} runs as in a test by: sh {path}")
        if isinstance(recipe.machine.root, VirtmeRoot):
            hidden = " and ".join(HIDDEN)
            tell(f"{hidden} are empty in the guest: this host's files there are not shared")
        sys.stderr.flush()
        try:
            return interact(booted.guest, words, environment)
        except LostGuest as error:
            booted.vm.wait(Deadline.after(_END_SECONDS))
            ending = booted.vm.ending
            if ending is None:
                raise
            hint = f"the console: {booted.vm.console.path}"
            raise LostGuest(ending.text, hint=hint, cause=ending.cause) from error


def _boot(
    recipe: Recipe, directory: Path, stack: contextlib.ExitStack, tell: Callable[[str], None]
) -> Booted:
    """Boot, and again as often as a run does if this host was too busy."""
    for left in reversed(range(BOOT_TRIES)):
        try:
            return stack.enter_context(boot(recipe, directory))
        except InfraError as error:
            # A HostError lacks something that another boot does not bring.
            if not left or error.cause is not Cause.HOST or isinstance(error, HostError):
                raise
            tell(f"{error.message}; booting again")
    raise AssertionError(BOOT_TRIES)


def _limit(booted: Booted) -> Deadline:
    return booted.vm.patient(Deadline.after(SERVICE_SECONDS * booted.vm.machine.accel.timeout_factor))


def _mount(booted: Booted, number: int, share: Share) -> None:
    """Mount *share*.  Raises InfraError with the reason when the guest cannot."""
    point = shlex.quote(share.point)
    try:
        booted.guest.check(f"mkdir -p {point} && {shlex.join(mount_words(number, share))}", _limit(booted))
    except LostGuest as error:
        message = f"the guest cannot mount {share.directory}: {error.message}"
        hint = "its kernel needs CONFIG_NET_9P_VIRTIO and CONFIG_9P_FS"
        raise InfraError(message, hint=hint, cause=error.cause) from error


def _bring_programs(booted: Booted, job: Job) -> Iterator[tuple[str, str]]:
    """Copy the user's own programs into the guest; yield each name and the script that runs it as a test."""
    suite = suite_named(OWN)
    for work in suite.work(job):
        how = suite.how(work, booted.bdfs)
        if isinstance(how, Script):
            path = f"{GUEST_RUN}/{work.program}.sh"
            booted.bring(how.files, _limit(booted))
            booted.guest.check(f"cat > {path}", _limit(booted), stdin=how.text.encode())
            yield work.program, path


def _prepare(booted: Booted, features: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Bind all devices to vfio-pci; return for each BDF its nodes, or why it is not bound.

    The second value is the environment of the user's own programs, see docs/own-tests.md.
    Raises KernelError when none is bound.
    """
    bdfs = tuple(booted.bdfs.values())
    named = [f"{name}={bdf}" for name, bdf in booted.bdfs.items()]
    answer = ask(booted.guest, ["prepare", ",".join(features), *named], _limit(booted))
    found: dict[str, list[str] | str]
    try:
        facts = json.loads(answer)
        found, environment = facts["nodes"], facts["environment"]
    except (ValueError, KeyError, TypeError) as error:
        last = answer.strip().rpartition("\n")[2]
        raise LostGuest(f"the guest could not prepare its devices: {last}") from error
    if bdfs and not any(isinstance(nodes, list) for nodes in found.values()):
        raise KernelError(f"the kernel binds no device to vfio-pci: {found[bdfs[0]]}")
    said = {
        bdf: f", not bound to vfio-pci: {nodes}"
        if isinstance(nodes, str)
        else f": {', '.join(nodes) or 'bound to vfio-pci, without a node'}"
        for bdf, nodes in found.items()
    }
    return said, environment

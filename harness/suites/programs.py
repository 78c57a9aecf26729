# SPDX-License-Identifier: GPL-2.0-only
"""Runs one of upstream's programs in the guest, with everything it needs given to it first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from guest import kmsg
from harness.deadline import Deadline
from harness.ktap import KtapParser, KtapReport
from harness.machine.roots import GUEST_KERNEL_DIR, GUEST_RUN
from harness.remote import Guest
from harness.suites.model import Program

SELFTESTS = f"{GUEST_KERNEL_DIR}/selftests"
"""Where a kernel's selftests are inside the guest; on the `image` root that is read-only."""

_NOIOMMU = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
_SRIOV = "/sys/module/vfio_pci/parameters/enable_sriov"

_SETUP_FAILED = 99
"""Our own exit status for a guest that could not be made ready; no selftest uses it."""


class SetupFailed(Exception):
    """What the program needs could not be given to it; the message says what."""


_KUNIT_DEBUGFS = "/sys/kernel/debug/kunit"
"""One directory for each suite (Documentation/dev-tools/kunit/run_manual.rst, lib/kunit/debugfs.c)."""


def kunit_script(program: Program) -> str:
    """The shell script that runs the KUnit suite *program* once more and prints what came of it.

    Its results stand in debugfs when it has ended, and point by point in the kernel's log.
    """
    suite = shlex.quote(f"{_KUNIT_DEBUGFS}/{program.name}")
    return "\n".join(
        [
            f"test -d {_KUNIT_DEBUGFS} || mount -t debugfs none /sys/kernel/debug",
            f'test -e {suite}/run || {{ echo "the kernel has no KUnit suite {program.name}"; exit 1; }}',
            f'echo "{kmsg.BEGIN} {program.title}" > /dev/kmsg',
            f"echo run > {suite}/run; status=$?",
            f"cat {suite}/results",
            f'echo "{kmsg.END} {program.title}" > /dev/kmsg',
            "exit $status",
        ]
    )


def script(program: Program, bdfs: tuple[str, ...], features: frozenset[str]) -> str:
    """The shell script that makes the guest ready, runs *program* on *bdfs* and cleans up after it.

    Binding and unbinding is left to upstream's own scripts/setup.sh and cleanup.sh.
    """
    devices = shlex.join(bdfs)
    directory, _, name = program.path.rpartition("/")
    need = f'|| {{ echo "setup: $step"; exit {_SETUP_FAILED}; }}'
    lines = [f"cd {shlex.quote(f'{SELFTESTS}/{directory}')} || exit {_SETUP_FAILED}"]

    def step(what: str, command: str) -> None:
        lines.append(f"step={shlex.quote(what)}; {command} {need}")

    if "modular" in features and bdfs:
        step("cannot load vfio-pci", "modprobe -a iommufd vfio vfio-pci")
    allowed = [_NOIOMMU] if "noiommu" in features and bdfs else []
    if allowed:
        step("cannot allow no-IOMMU mode", f"echo Y > {_NOIOMMU}")
    if program.sriov:
        allowed.append(_SRIOV)
        step("cannot allow SR-IOV", f"echo Y > {_SRIOV}")
    if program.hugepages:
        step("cannot reserve huge pages", f"echo {program.hugepages} > /proc/sys/vm/nr_hugepages")
        # 1 GiB pages exist only on a big enough guest; the programs skip their 1 GiB points without.
        lines.append("echo 1 2>/dev/null > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
    if bdfs:
        step("scripts/setup.sh failed", f"bash scripts/setup.sh {devices} > {GUEST_RUN}/setup.log 2>&1")
    lines.append(f'echo "{kmsg.BEGIN} {program.title}" > /dev/kmsg')
    # One pipe for both: what a point says on stderr must stand before its result, and SSH's two streams may
    # overtake each other.
    lines += [f"./{name} {devices} 2>&1", "status=$?"]
    lines.append(f'echo "{kmsg.END} {program.title}" > /dev/kmsg')
    if bdfs:
        lines.append(f"bash scripts/cleanup.sh {devices} > {GUEST_RUN}/cleanup.log 2>&1")
    # A probe may come next, and begins with every parameter off.
    lines += [f"echo N > {parameter}" for parameter in allowed]
    if program.hugepages:
        lines.append("echo 0 > /proc/sys/vm/nr_hugepages")
        lines.append("echo 0 2>/dev/null > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
    lines.append("exit $status")
    return "\n".join(lines)


def run_program(
    guest: Guest,
    program: Program,
    bdfs: Mapping[str, str],
    features: frozenset[str],
    deadline: Deadline,
    raw: list[str],
) -> tuple[KtapReport, int]:
    """Run *program*, appending every line it prints to *raw*; return its parsed output and exit status.

    Raises TimeoutError at *deadline*, LostGuest when the guest goes, SetupFailed when the guest could not be
    made ready.
    """
    addresses = tuple(bdfs[target] for target in program.targets)
    commands = kunit_script(program) if program.is_kunit else script(program, addresses, features)
    stream = guest.stream(["bash", "-c", commands], deadline)
    parser = KtapParser()
    for line in stream.lines(deadline):
        raw.append(line)
        parser.feed(line)
    status = stream.status(deadline)
    if status == _SETUP_FAILED:
        raise SetupFailed(raw[-1] if raw else "the selftests are not in the guest")
    return parser.finish(), status

# SPDX-License-Identifier: GPL-2.0-only
"""Upstream's selftests, which are compiled beside a kernel: one suite for each kselftest-*.yaml."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from guest import kmsg
from harness.machine.rootparts import GUEST_RUN
from harness.results import Address
from harness.suites.model import COMPILES, SELFTESTS, SETUP_FAILED, Script, Work
from harness.suites.programs import Program, ProgramSuite

_NOIOMMU = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
_SRIOV = "/sys/module/vfio_pci/parameters/enable_sriov"


@dataclasses.dataclass(frozen=True, kw_only=True)
class KselftestSuite(ProgramSuite):
    """One directory of the tree's tools/testing/selftests."""

    @property
    def summary(self) -> str:
        return f"upstream's tools/testing/selftests/{self.directory}"

    @property
    def selftests(self) -> str:
        return self.directory

    def has(self, address: Address) -> bool:
        """The case for a suite that does not compile is gone as soon as the suite compiles."""
        return f"{address.program}/{address.case}" != COMPILES

    def paths(self, built: Sequence[str]) -> Sequence[str]:
        return [path for path in built if path.partition("/")[0] == self.directory]

    def script(self, work: Work, program: Program, bdfs: Sequence[str]) -> Script:
        """Prepare the guest, run *program* on *bdfs* and clean up.

        Binding and unbinding is left to upstream's own scripts/setup.sh and cleanup.sh.
        """
        devices = shlex.join(bdfs)
        directory, _, name = program.path.rpartition("/")
        need = f'|| {{ echo "setup: $step"; exit {SETUP_FAILED}; }}'
        lines = [f"cd {shlex.quote(f'{SELFTESTS}/{directory}')} || exit {SETUP_FAILED}"]

        def step(what: str, command: str) -> None:
            lines.append(f"step={shlex.quote(what)}; {command} {need}")

        if "modular" in work.features and bdfs:
            step("cannot load vfio-pci", "modprobe -a iommufd vfio vfio-pci")
        # A device with an IOMMU does not need no-IOMMU mode, and tests of the mode skip themselves without
        # it.
        unsafe = "noiommu" in work.features and "viommu" not in work.features
        allowed = [_NOIOMMU] if unsafe and bdfs else []
        if allowed:
            step("cannot allow no-IOMMU mode", f"echo Y > {_NOIOMMU}")
        if program.entry.sriov:
            allowed.append(_SRIOV)
            step("cannot allow SR-IOV", f"echo Y > {_SRIOV}")
        if program.entry.hugepages:
            step("cannot reserve huge pages", f"echo {program.entry.hugepages} > /proc/sys/vm/nr_hugepages")
            # 1 GiB pages need a big guest; without them the programs skip their 1 GiB points.
            lines.append("echo 1 2>/dev/null > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
        if bdfs:
            step("scripts/setup.sh failed", f"bash scripts/setup.sh {devices} > {GUEST_RUN}/setup.log 2>&1")
        lines.append(f'echo "{kmsg.BEGIN} {work.name}" > /dev/kmsg')
        # One pipe for both, because SSH's two streams may overtake each other, and what a point prints to
        # stderr must come before its result.
        lines += [f"./{name} {devices} 2>&1", "status=$?"]
        lines.append(f'echo "{kmsg.END} {work.name}" > /dev/kmsg')
        if bdfs:
            lines.append(f"bash scripts/cleanup.sh {devices} > {GUEST_RUN}/cleanup.log 2>&1")
        # A probe may come next, and expects every parameter to be off.
        lines += [f"echo N > {parameter}" for parameter in allowed]
        if program.entry.hugepages:
            lines.append("echo 0 > /proc/sys/vm/nr_hugepages")
            lines.append("echo 0 2>/dev/null > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
        lines.append("exit $status")
        return Script("\n".join(lines), needs_selftests=True)


def suites() -> tuple[KselftestSuite, ...]:
    """Return one suite for each kselftest-*.yaml beside this file."""
    return tuple(map(KselftestSuite.read, sorted(Path(__file__).parent.glob("kselftest-*.yaml"))))

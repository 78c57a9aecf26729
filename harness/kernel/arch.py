# SPDX-License-Identifier: GPL-2.0-only
"""Arch: everything that differs between architectures, one row each.

A new architecture is a row in ARCHES, its kconfig fragment and, in harness/machine/splats.yaml, the messages
that only its kernels print.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Mapping
from types import MappingProxyType

from harness.base.errors import InfraError, UsageError, nearest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Iommu:
    """A device model of QEMU that is an IOMMU, or a value of the machine's property `iommu`."""

    feature: str
    """The feature of guest/needs.py that it stands for."""
    on_pci: bool
    """Whether it takes a bus and a slot."""
    needs_split_irqchip: bool
    """Whether it remaps interrupts, which KVM's own interrupt controller does not allow."""
    symbols: tuple[str, ...]
    """What a kernel must have =y to drive it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Which slots of the first root complex are used for what."""

    topology: range
    network: int
    ports: int
    panic: int
    root: range
    """The slots for the disks or shares of the root file system."""
    shares: int
    """The slot whose functions are the directories that a user shares."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interrupts:
    """How to read the interrupt controller of a vCPU from QEMU's monitor."""

    title: str
    command: str
    """A command of the human monitor, to be formatted with `cpu`."""
    in_service: re.Pattern[str]
    """Matches the line that lists the interrupts in service; group 1 is the list."""

    def parse(self, printed: str) -> frozenset[str]:
        """Return the interrupts in service, from what *command* printed."""
        line = self.in_service.search(printed)
        return frozenset(re.findall(r"\d+", line[1])) if line else frozenset()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BootSector:
    """A guest of a few instructions that makes QEMU exit, which proves that it ran."""

    code: bytes
    options: tuple[str, ...]
    """Options of QEMU that boot it; `{file}` is the file that begins with *code*."""
    status: int
    """QEMU's exit status then; without *code* it would not exit."""


# Rows are compared by identity: mappings have no hash.
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arch:
    """One architecture: its kernels, its QEMU machine and how its kernels report trouble."""

    name: str
    """The value of kbuild's ARCH, which Jobs and results use."""
    host: str
    """The name that uname(1) prints on such a host."""
    debian: str
    """Debian's name."""

    # Kernel.
    source: str
    """Its directory below arch/ in the source."""
    image: str
    """The file that boots, relative to the O= directory; its name is the make target."""
    triplet: str
    """The GNU triplet: the cross prefix without its dash, and Debian's directory for its headers."""
    fragment: str
    """Its kconfig fragment, applied right after the base."""
    elf_machine: int
    """EM_* of include/uapi/linux/elf-em.h."""
    packed_image: tuple[int, bytes, str]
    """Offset and bytes by which its compressed boot image is known, and what people call that."""
    debugged: tuple[str, ...]
    """Objects of its own in which debuggers need types; see harness/kernel/debugfile.py."""
    vmcoreinfo: str
    """VMCOREINFO of a kernel that was not moved, but for its release; symbols in braces are its addresses.
    Empty if it depends on more than them."""
    coarse_dumps: str
    """The symbol of the kernels whose pages are as large as those in which QEMU dumps the memory of any guest
    (target/arm/arch_dump.c); drgn cannot read the dumps of others.  Empty: it can."""
    large_pages: tuple[str, ...]
    """The symbols that make its pages larger than 4 KiB."""
    required: tuple[str, ...]
    """What a kernel must have =y to boot on the machine below and be heard; see kconfigs/required.yaml."""

    # QEMU.
    qemu: str
    qemu_package: str
    """Debian's package of that program."""
    machine: Mapping[str, str | bool]
    """Type and properties of `-machine`."""
    machine_properties: frozenset[str]
    """The properties that a topology may set; `-machine TYPE,help` does not list all of them."""
    firmware: str | None
    """Firmware that boots faster than the default one and leaves the PCI buses to the kernel."""
    roots_firmware: tuple[str, str] | None
    """File and Debian package of the firmware that sets up further root complexes; None: QEMU's own does."""
    cpu: Mapping[str, str]
    """Accelerator -> CPU model."""
    kvm_hosts: tuple[str, ...]
    """Hosts, as uname(1) names them, whose KVM can run it."""
    iommus: Mapping[str, Iommu]
    """The IOMMUs by model."""
    features: frozenset[str]
    """The features of guest/needs.py that all its machines have."""
    slots: Slots
    panic_device: str
    """The device through which a kernel that panicked tells QEMU."""
    interrupts: Interrupts | None
    """None where QEMU's monitor does not tell."""
    boot_sector: BootSector

    # The running kernel.
    console: str
    """The console device of the kernel command line."""
    machine_args: tuple[str, ...]
    """Kernel arguments that its QEMU machine needs."""
    emulated_args: tuple[str, ...]
    """Kernel arguments for a slow, emulated machine."""
    program_counter: str
    """A regular expression for what stands before the function name in a register dump."""

    @property
    def image_name(self) -> str:
        """The boot image's file name, which is also its make target."""
        return self.image.rpartition("/")[2]

    @property
    def cross_compile(self) -> str:
        """The value of CROSS_COMPILE; empty where this host's own compiler will do."""
        return "" if self.is_host else f"{self.triplet}-"

    @property
    def is_host(self) -> bool:
        """Whether it is that of this host."""
        return platform.machine() == self.host

    @property
    def label(self) -> str:
        """Its name as part of the name of a job; empty if it is that of this host."""
        return "" if self.is_host else self.name

    @property
    def doctor(self) -> str:
        """The command that installs what this host lacks for it."""
        return f"vfio-harness doctor{f' --arch {self.label}' if self.label else ''} --fix"


_VIRTIO_IOMMU = Iommu(
    feature="viommu-virtio", on_pci=True, needs_split_irqchip=False, symbols=("VIRTIO_IOMMU",)
)

_DEBUG_EXIT_PORT, _DEBUG_EXIT_VALUE = 0x501, 0x2A

_X86_64 = Arch(
    name="x86_64",
    host="x86_64",
    debian="amd64",
    source="x86",
    # Entered through PVH: no decompressor, no real mode.
    image="vmlinux",
    triplet="x86_64-linux-gnu",
    fragment="arch-x86_64",
    elf_machine=62,
    # Documentation/arch/x86/boot.rst: the setup header.
    packed_image=(0x202, b"HdrS", "bzImage"),
    debugged=("arch/x86/kernel/setup_percpu.o", "arch/x86/kernel/process.o"),
    # arch/x86/kernel/vmcore_info_64.c; the last symbol says whether the page tables have five levels.
    vmcoreinfo="PAGESIZE=4096\nKERNELOFFSET=0\nNUMBER(phys_base)=0\n"
    "SYMBOL(swapper_pg_dir)={init_top_pgt:x}\nSYMBOL(__pgtable_l5_enabled)={__pgtable_l5_enabled:x}\n",
    coarse_dumps="",
    large_pages=(),
    required=("64BIT", "PVH", "ACPI", "SERIAL_8250", "SERIAL_8250_CONSOLE"),
    qemu="qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    machine=MappingProxyType({"type": "q35", "sata": False, "smbus": False, "vmport": False, "i8042": False}),
    machine_properties=frozenset(
        {
            *("kernel-irqchip", "default-bus-bypass-iommu", "vmport", "smm", "hpet", "pit", "sata"),
            *("smbus", "i8042", "usb"),
        }
    ),
    # 0.15 s faster than SeaBIOS under TCG.
    firmware="qboot.rom",
    roots_firmware=None,
    # Page tables of five levels cost an emulator one more level at every miss.
    cpu=MappingProxyType({"kvm": "host", "tcg": "max,la57=off"}),
    kvm_hosts=("x86_64",),
    iommus=MappingProxyType(
        {
            "intel-iommu": Iommu(
                feature="viommu-intel",
                on_pci=False,
                needs_split_irqchip=True,
                symbols=("INTEL_IOMMU", "INTEL_IOMMU_DEFAULT_ON", "IRQ_REMAP"),
            ),
            "amd-iommu": Iommu(
                feature="viommu-amd",
                on_pci=False,
                needs_split_irqchip=True,
                symbols=("AMD_IOMMU", "IRQ_REMAP"),
            ),
            "virtio-iommu-pci": _VIRTIO_IOMMU,
        }
    ),
    features=frozenset({"lenient-bus"}),
    # 0x00 is the host bridge, 0x01 goes to amd-iommu's own PCI function, 0x1f is the ICH9.
    slots=Slots(
        topology=range(0x02, 0x18),
        network=0x18,
        ports=0x19,
        panic=0x1A,
        root=range(0x1B, 0x1E),
        shares=0x1E,
    ),
    panic_device="pvpanic-pci",
    interrupts=Interrupts(
        title="local APIC", command="info lapic {cpu}", in_service=re.compile(r"^ISR\b(.*)$", re.MULTILINE)
    ),
    boot_sector=BootSector(
        code=(
            bytes((0xBA, _DEBUG_EXIT_PORT & 0xFF, _DEBUG_EXIT_PORT >> 8))  # mov dx, 0x501
            + bytes((0xB0, _DEBUG_EXIT_VALUE))  # mov al, 0x2a
            + b"\xee"  # out dx, al
            + b"\xf4\xeb\xfd"  # halt for ever if the write did not end QEMU
        ).ljust(510, b"\0")
        + b"\x55\xaa",
        options=(
            *("-device", f"isa-debug-exit,iobase={_DEBUG_EXIT_PORT:#x},iosize=1"),
            *("-drive", "if=none,id=sector,format=raw,readonly=on,file={file}"),
            *("-device", "virtio-blk-pci,drive=sector"),
        ),
        # QEMU hw/misc/debugexit.c.
        status=(_DEBUG_EXIT_VALUE << 1) | 1,
    ),
    console="ttyS0",
    machine_args=(),
    emulated_args=(
        "no_timer_check",  # counts ticks against the TSC; on a busy host: "timer doesn't work" and a panic
        # A vCPU that is slow to answer makes the clocksource watchdog wait for it with interrupts off.  While
        # jiffies are the clock, early in boot, that wait has no end, and a vCPU that is in stop_machine() to
        # switch the clock never answers: Linux 7.3 hangs (kernel/time/clocksource.c watchdog_wait_seq(); seen
        # in 1 boot of some 100).  Emulated TSCs all show the host's clock anyway.
        "tsc=nowatchdog",
    ),
    program_counter=r"RIP: \w+:",
)

_ARM64 = Arch(
    name="arm64",
    host="aarch64",
    debian="arm64",
    source="arm64",
    image="arch/arm64/boot/Image",
    triplet="aarch64-linux-gnu",
    fragment="arch-arm64",
    elf_machine=183,
    # Documentation/arch/arm64/booting.rst: the magic number in the header of an uncompressed image.
    packed_image=(56, b"ARM\x64", "boot Image"),
    debugged=("arch/arm64/kernel/process.o",),
    # arch/arm64/kernel/vmcore_info.c: it depends on the page size and on where the kernel was loaded.
    vmcoreinfo="",
    coarse_dumps="ARM64_64K_PAGES",
    large_pages=("ARM64_16K_PAGES", "ARM64_64K_PAGES"),
    required=(
        "64BIT",
        "SERIAL_AMBA_PL011",
        "SERIAL_AMBA_PL011_CONSOLE",
        "PCI_HOST_GENERIC",
        "ARM_GIC_V3_ITS",
    ),
    qemu="qemu-system-aarch64",
    qemu_package="qemu-system-arm",
    machine=MappingProxyType({"type": "virt", "gic-version": "3"}),
    machine_properties=frozenset(
        {
            *("gic-version", "its", "iommu", "default-bus-bypass-iommu", "highmem", "highmem-ecam"),
            *("highmem-mmio", "kernel-irqchip", "acpi", "mte", "ras", "secure", "virtualization"),
        }
    ),
    # A direct boot has a device tree with one root complex.  EDK2 sets up all, and describes them by ACPI.
    firmware=None,
    roots_firmware=("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd", "qemu-efi-aarch64"),
    # Pointer authentication by QEMU's own algorithm: the architected one costs an emulator half its time.
    cpu=MappingProxyType({"kvm": "host", "tcg": "max,pauth-impdef=on,sve=off,sme=off,lpa2=off"}),
    kvm_hosts=("aarch64",),
    iommus=MappingProxyType(
        {
            "smmuv3": Iommu(
                feature="viommu-smmuv3", on_pci=False, needs_split_irqchip=False, symbols=("ARM_SMMU_V3",)
            ),
            "virtio-iommu-pci": _VIRTIO_IOMMU,
        }
    ),
    features=frozenset({"its"}),
    slots=_X86_64.slots,
    panic_device="pvpanic-pci",
    interrupts=None,
    boot_sector=BootSector(
        # Arm DEN0022, Power State Coordination Interface: SYSTEM_OFF.
        code=bytes.fromhex("000180d20080b0f2020000d400000014"),
        options=("-kernel", "{file}"),
        status=0,
    ),
    console="ttyAMA0",
    # Here Linux suspends ports without a device (pci_bridge_d3_possible()), and QEMU's, which
    # have no PME then, do not tell of a device that is plugged in.
    machine_args=(
        "pcie_port_pm=off",
        # A BAR smaller than a page can be mapped only if nothing else is in its page, which may have 64 KiB:
        # each BAR of any device gets a page (drivers/pci/pci.c pci_specified_resource_alignment()).
        "pci=resource_alignment=16@pci:0:0",
    ),
    emulated_args=(),
    program_counter=r"pc :",
)

ARCHES: Mapping[str, Arch] = MappingProxyType({arch.name: arch for arch in (_X86_64, _ARM64)})
"""Every architecture the harness knows, by name."""

IOMMUS: Mapping[str, Iommu] = MappingProxyType(
    {driver: iommu for arch in ARCHES.values() for driver, iommu in arch.iommus.items()}
)
"""Every model that is an IOMMU on some architecture."""


def find_arch(name: str) -> Arch:
    """Return the architecture that kbuild, uname(1) or Debian call *name*; UsageError names the nearest."""
    for arch in ARCHES.values():
        if name in (arch.name, arch.host, arch.debian):
            return arch
    raise UsageError(f"there is no architecture {name!r}", hint=nearest(name, ARCHES))


def host_arch() -> Arch:
    """Return the architecture of this host; InfraError if the harness does not know it."""
    for arch in ARCHES.values():
        if arch.is_host:
            return arch
    raise InfraError(f"hosts of the architecture {platform.machine()} are not supported")

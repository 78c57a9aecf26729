# SPDX-License-Identifier: GPL-2.0-only
"""A vmlinux of a few bytes that looks finished to the harness, and a .config that can be tested."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

from harness.base import paths
from harness.kernel.kconfig import find_fragment, merge
from harness.kernel.variants import load_catalogue

RELEASE = "7.3.4-mine"
X86_64, AARCH64, RISCV = 62, 183, 243


def good_config(variant: str = "group-cdev", **changed: str) -> str:
    """What the shipped fragments ask for *variant*, as a .config, but for the symbols *changed*."""
    catalogue = load_catalogue()
    names = [*catalogue.base, "arch-x86_64", *catalogue.variant(variant).fragments, "noiommu"]
    settings = merge(find_fragment(paths.kconfigs_dir(), name) for name in names)
    values = {symbol: setting.value for symbol, setting in settings.items()}
    values["IOMMUFD_NOIOMMU"] = "y"
    values |= changed
    lines = (f"CONFIG_{symbol}={value}\n" for symbol, value in values.items() if value != "n")
    return f"# Linux/x86 {RELEASE.partition('-')[0]} Kernel Configuration\n{''.join(lines)}"


def make_vmlinux(
    path: Path,
    config: str | None = None,
    *,
    release: str = RELEASE,
    machine: int = X86_64,
    build_id: bytes = b"\x12" * 20,
    memory: int = 32 << 20,
) -> Path:
    """Write an ELF file with a banner, a build-id unless that is empty, and *config* as IKCONFIG has it."""
    note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id if build_id else b""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    notes = struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(note), len(note), 4)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0, memory, 4096)
    tools = "gcc (Debian 12.2.0-14) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40"
    banner = f"Linux version {release} (me@here) ({tools}) #1 SMP Mon Nov 30\n" if release else ""
    own = b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED" if config is not None else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + notes + load + note + banner.encode() + own)
    return path


def make_module(path: Path, release: str = RELEASE) -> Path:
    """Write a module of *release*, as far as anybody looks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF" + bytes(60) + f"vermagic={release} SMP mod_unload \0".encode())
    return path


def make_build(directory: Path, config: str | None = None, **fields: object) -> Path:
    """Write a build directory: .config and vmlinux, which contains the same."""
    text = config if config is not None else good_config()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".config").write_text(text, encoding="utf-8")
    make_vmlinux(directory / "vmlinux", text, **fields)  # type: ignore[arg-type]
    return directory

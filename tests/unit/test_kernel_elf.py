# SPDX-License-Identifier: GPL-2.0-only
"""The build-id is found among other notes, and its absence is told."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.base.errors import InfraError
from harness.kernel.elf import build_id, find_build_ids, find_symbols, symbols_of


def note(name: bytes, kind: int, data: bytes) -> bytes:
    padded = [part + b"\0" * (-len(part) % 4) for part in (name, data)]
    return struct.pack("<III", len(name), len(data), kind) + b"".join(padded)


OTHERS = note(b"Xen\0", 6, b"abcdef") + note(b"GNU\0", 1, bytes(16))


def elf(notes: bytes) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4) + notes


def test_build_id_among_other_notes() -> None:
    """Notes of other names and kinds are stepped over, padding included."""
    wanted = bytes(range(20))
    assert list(find_build_ids(OTHERS + note(b"GNU\0", 3, wanted) + OTHERS)) == [wanted.hex()]
    assert list(find_build_ids(OTHERS)) == []
    assert list(find_build_ids(b"")) == []


def test_build_id_of_a_file(tmp_path: Path) -> None:
    """The note segment is found through the program headers."""
    path = tmp_path / "vmlinux"
    path.write_bytes(elf(OTHERS + note(b"GNU\0", 3, b"\x12" * 20)))
    assert build_id(path) == "12" * 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (elf(OTHERS), "no GNU build-id"),
        (b"\x7fELF\x01" + bytes(80), "not a 64-bit"),
        (b"short", "not a 64-bit"),
        (elf(OTHERS)[:30], "is cut off at 30 bytes"),
    ],
)
def test_file_without_one(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that cannot prove which kernel booted is refused with its name."""
    path = tmp_path / "vmlinux"
    path.write_bytes(content)
    with pytest.raises(InfraError, match=message) as caught:
        build_id(path)
    assert str(path) in str(caught.value)


def test_symbols(tmp_path: Path) -> None:
    """Those that were asked for, by their whole names, or all functions and objects; of ELF files only."""
    strings = b"\0init_top_pgt\0my_init_top_pgt\0other\0"
    table = b"".join(
        struct.pack("<IBBHQQ", strings.index(name), kind, 0, 1, address, 8)
        for name, kind, address in (
            (b"init_top_pgt\0", 1, 0x1000),  # an object
            (b"my_init_top_pgt\0", 18, 0x2000),  # a global function
            (b"other\0", 0, 0x3000),
        )
    )
    sections = 64 + len(strings) + len(table)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, 0, 0, sections, 0, 64, 0, 0, 64, 2, 0)
    body = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, start, size, link, 0, 1, 0)
        for kind, start, size, link in (
            (3, 64, len(strings), 0),
            (2, 64 + len(strings), len(table), 0),
        )
    )
    path = tmp_path / "vmlinux"
    path.write_bytes(header + strings + table + body)
    assert find_symbols(path, {"init_top_pgt", "missing"}) == {"init_top_pgt": 0x1000}
    assert symbols_of(path) == {(b"init_top_pgt", 0x1000, 8), (b"my_init_top_pgt", 0x2000, 8)}
    path.write_bytes(b"#!/bin/sh\n" + bytes(64))
    with pytest.raises(InfraError, match="is not a 64-bit little-endian ELF file"):
        find_symbols(path, {"init_top_pgt"})

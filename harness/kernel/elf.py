# SPDX-License-Identifier: GPL-2.0-only
"""Read the GNU build-id out of an ELF file: the identity a booted kernel shows in /sys/kernel/notes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from harness.errors import InfraError

_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")


def build_id(path: Path) -> str:
    """The GNU build-id of a 64-bit little-endian ELF file, in hex.

    Layouts: include/uapi/linux/elf.h.  Raises InfraError when it is no such file or has no build-id.
    """
    try:
        with path.open("rb") as file:
            header = _HEADER.unpack(file.read(_HEADER.size))
            if header[0][:6] != b"\x7fELF\x02\x01":
                raise InfraError(f"{path} is not a 64-bit little-endian ELF file")
            offset, count = header[5], header[10]
            file.seek(offset)
            table = file.read(count * _PROGRAM_HEADER.size)
            for kind, _flags, start, _va, _pa, size, _memory, _align in _PROGRAM_HEADER.iter_unpack(table):
                if kind == _PT_NOTE:
                    file.seek(start)
                    for found in find_build_ids(file.read(size)):
                        return found
    except (OSError, struct.error) as error:
        raise InfraError(f"cannot read the build-id of {path}: {error}") from error
    raise InfraError(f"{path} carries no GNU build-id note")


def find_build_ids(notes: bytes) -> Iterator[str]:
    """The build-ids in a stream of ELF notes, such as the contents of /sys/kernel/notes."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        data_at = name_at + _aligned(name_size)
        name = notes[name_at : name_at + name_size].rstrip(b"\0")
        if name == b"GNU" and kind == _NT_GNU_BUILD_ID:
            yield notes[data_at : data_at + size].hex()
        at = data_at + _aligned(size)


def _aligned(size: int) -> int:
    """Notes and their names are padded to 4 bytes."""
    return (size + 3) & ~3

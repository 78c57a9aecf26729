# SPDX-License-Identifier: GPL-2.0-only
"""Read an ELF file: its architecture, its size in memory, its symbols, and its GNU build-id."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from harness.base.errors import HostError

_PT_LOAD, _PT_INTERP, _PT_NOTE = 1, 3, 4
_NT_GNU_BUILD_ID = 3
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_SYMTAB = 2
_STT_OBJECT, _STT_FUNC = 1, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """What the headers of an ELF file say."""

    machine: int
    """Its architecture, EM_* of include/uapi/linux/elf-em.h."""
    build_id: str
    """Its GNU build-id, in hex; empty when it has none."""
    loaded: int
    """The bytes of memory that its segments take."""
    loader: str
    """The program that loads it; empty when it is static."""


def read_elf(path: Path) -> Elf:
    """Read the headers of a 64-bit little-endian ELF file.

    Layouts: include/uapi/linux/elf.h.  Raises InfraError for another file.
    """
    end = 0
    try:
        end = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
            if not start.startswith(b"\x7fELF\x02\x01"):
                raise HostError(f"{path} is not a 64-bit little-endian ELF file")
            header = _HEADER.unpack(start)
            offset, count = header[5], header[10]
            file.seek(offset)
            table = file.read(count * _PROGRAM_HEADER.size)
            found, loaded, loader = "", 0, b""
            for kind, _flags, at, _va, _pa, size, memory, _align in _PROGRAM_HEADER.iter_unpack(table):
                if at + size > end:
                    raise HostError(f"{path} is cut off at {end} bytes")
                loaded += memory if kind == _PT_LOAD else 0
                if kind == _PT_NOTE and not found:
                    file.seek(at)
                    found = next(find_build_ids(file.read(size)), "")
                if kind == _PT_INTERP:
                    file.seek(at)
                    loader = file.read(size).rstrip(b"\0")
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    except struct.error as error:
        raise HostError(f"{path} is cut off at {end} bytes") from error
    return Elf(machine=header[2], build_id=found, loaded=loaded, loader=loader.decode(errors="replace"))


def find_symbols(path: Path, names: Collection[str]) -> dict[str, int]:
    """Return the addresses of those of *names* that the symbol table of a 64-bit ELF file has.

    Raises InfraError for another file.
    """
    found: dict[str, int] = {}
    for text, table in _symbol_tables(path):
        wanted = {at: name for name in names for at in _places(text, name)}
        found |= {wanted[one[0]]: one[4] for one in table if one[0] in wanted}
    return found


def symbols_of(path: Path) -> set[tuple[bytes, int, int]]:
    """Return name, address and size of each function and object of a 64-bit ELF file.

    Raises InfraError for another file.
    """
    return {
        (text[one[0] : text.index(b"\0", one[0])], one[4], one[5])
        for text, table in _symbol_tables(path)
        for one in table
        if one[1] & 0xF in (_STT_OBJECT, _STT_FUNC)
    }


def _symbol_tables(path: Path) -> list[tuple[bytes, list[tuple[int, ...]]]]:
    """Return the names and the entries of each symbol table of a 64-bit ELF file."""
    try:
        content = path.read_bytes()
        header = _HEADER.unpack_from(content)
        if header[0][:6] != b"\x7fELF\x02\x01":
            raise HostError(f"{path} is not a 64-bit little-endian ELF file")
        offset, count = header[6], header[12]
        sections = list(_SECTION.iter_unpack(content[offset : offset + count * _SECTION.size]))
        found = []
        for section in (one for one in sections if one[1] == _SHT_SYMTAB):
            start, size, strings = section[4], section[5], sections[section[6]]
            table = list(_SYMBOL.iter_unpack(content[start : start + size]))
            found.append((content[strings[4] : strings[4] + strings[5]], table))
    except (OSError, struct.error, IndexError) as error:
        raise HostError(f"cannot read the symbols of {path}: {error}") from error
    return found


def _places(strings: bytes, name: str) -> Iterator[int]:
    """Yield where *name* ends a string of the table *strings*: strings may share their ends."""
    at = strings.find(name.encode() + b"\0")
    while at >= 0:
        yield at
        at = strings.find(name.encode() + b"\0", at + 1)


def is_elf(path: Path) -> bool:
    """Whether *path* is an ELF file.  Raises OSError."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def build_id(path: Path) -> str:
    """Return the GNU build-id of an ELF file, in hex.

    Raises InfraError as read_elf(), and for a file without a build-id.
    """
    found = read_elf(path).build_id
    if not found:
        raise HostError(f"{path} has no GNU build-id note")
    return found


def find_build_ids(notes: bytes) -> Iterator[str]:
    """Yield the build-ids in a stream of ELF notes, such as the contents of /sys/kernel/notes."""
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

# SPDX-License-Identifier: GPL-2.0-only
"""Kconfig fragments and resolved configurations: parse, merge, compare.  Independent of any source tree.

Symbols are written without their CONFIG_ prefix everywhere but in files and messages.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from harness.base.errors import UsageError, nearest

_SET = re.compile(r"CONFIG_(\w+)=(.*)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")
_NUMBER = re.compile(r"-?\d+|0[xX][0-9a-fA-F]+")
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What one line of a fragment asks for."""

    symbol: str
    value: str  # y, m, n (also for "is not set"), a number, or a text with its quotes
    path: Path
    line: int

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    def __str__(self) -> str:
        return f"CONFIG_{self.symbol}={self.value}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """One fragment file, usable as is by the kernel's own scripts/kconfig/merge_config.sh."""

    name: str
    path: Path
    settings: tuple[Setting, ...]

    def without(self, symbols: Container[str]) -> Fragment:
        """Return this fragment without its settings of *symbols*."""
        kept = tuple(setting for setting in self.settings if setting.symbol not in symbols)
        return dataclasses.replace(self, settings=kept)


def read_fragment(path: Path) -> Fragment:
    """Read a fragment; UsageError with file and line for the first invalid line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"cannot read the kconfig fragment {path}: {reason}") from error
    parsed = (_parse_line(path, number, line.rstrip()) for number, line in enumerate(lines, 1))
    return Fragment(name=path.stem, path=path, settings=tuple(filter(None, parsed)))


@functools.cache
def find_fragment(directory: Path, name: str) -> Fragment:
    """Read the shipped fragment *name* once; UsageError naming the nearest one when there is none."""
    path = directory / f"{name}.config"
    if not path.is_file():
        known = [found.stem for found in directory.glob("*.config")]
        raise UsageError(f"there is no kconfig fragment {name!r} in {directory}", hint=nearest(name, known))
    return read_fragment(path)


def _parse_line(path: Path, number: int, line: str) -> Setting | None:
    if unset := _UNSET.fullmatch(line):
        return Setting(symbol=unset[1], value="n", path=path, line=number)
    if not line or line.startswith("#"):
        if re.match(r"#\s*CONFIG_\w+ ", line):
            raise UsageError(
                f"{path}:{number}: {line!r} is neither a comment nor a setting",
                hint="write '# CONFIG_X is not set'",
            )
        return None
    found = _SET.fullmatch(line)
    if found is None:
        raise UsageError(
            f"{path}:{number}: {line!r} is not a kconfig setting",
            hint="write CONFIG_X=y, CONFIG_X=m, CONFIG_X=1, CONFIG_X=\"text\" or '# CONFIG_X is not set'",
        )
    symbol, value = found[1], found[2]
    if value not in ("y", "m", "n") and not _NUMBER.fullmatch(value) and not _TEXT.fullmatch(value):
        raise UsageError(
            f"{path}:{number}: CONFIG_{symbol} cannot be {value!r}",
            hint="a value is y, m, n, a number or a text in double quotes",
        )
    return Setting(symbol=symbol, value=value, path=path, line=number)


def merge(fragments: Iterable[Fragment]) -> dict[str, Setting]:
    """Return all settings by symbol; UsageError naming both lines when two of them disagree."""
    merged: dict[str, Setting] = {}
    for fragment in fragments:
        for setting in fragment.settings:
            earlier = merged.setdefault(setting.symbol, setting)
            if earlier.value != setting.value:
                raise UsageError(
                    f"{setting.where} asks for {setting} but {earlier.where} asks for {earlier}",
                    hint="remove one of the two",
                )
    return merged


def render(settings: Mapping[str, Setting]) -> str:
    """Return the settings as the text of one fragment, in the order of their symbols."""
    return "".join(
        f"# CONFIG_{symbol} is not set\n" if setting.value == "n" else f"CONFIG_{symbol}={setting.value}\n"
        for symbol, setting in sorted(settings.items())
    )


_TOOLS = {"RUST": "RUSTC_", "DEBUG_INFO_BTF": "PAHOLE_"}
"""A symbol -> how those symbols begin that describe the tool which it needs (init/Kconfig)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """A whole .config as olddefconfig left it."""

    text: str
    values: Mapping[str, str] = dataclasses.field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> ResolvedConfig:
        """Parse the text of a .config; other lines are skipped, as kconfig does."""
        found = (_SET.fullmatch(line) for line in text.splitlines())
        return cls(text, {match[1]: match[2] for match in found if match})

    def get(self, symbol: str) -> str:
        """Return the symbol's value; "n" when it is off or absent, which are the same to kconfig."""
        return self.values.get(symbol, "n")

    @property
    def modular(self) -> bool:
        """Whether any symbol is m."""
        return "m" in self.values.values()

    @property
    def digest(self) -> str:
        """The digest of the settings; comments, hence the file's heading, do not count."""
        lines = (f"{symbol}={value}\n" for symbol, value in sorted(self._counting))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def differing(self, other: ResolvedConfig) -> frozenset[str]:
        """Return the symbols that differ."""
        return frozenset(name for name, _ in self._counting ^ other._counting)

    @property
    def _counting(self) -> set[tuple[str, str]]:
        """The settings, without what kconfig found of tools on this host that the build does not use."""
        unused = tuple(prefix for user, prefix in _TOOLS.items() if self.get(user) != "y")
        return {one for one in self.values.items() if not one[0].startswith(unused)}

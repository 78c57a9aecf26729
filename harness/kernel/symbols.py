# SPDX-License-Identifier: GPL-2.0-only
"""Read symbols and their dependencies from a tree's Kconfig files, to say why one did not get the requested
value.

kconfig's own conf decides values; this only explains them.  The published Kconfig libraries for Python do not
parse `transitional` (new in 6.18), hence our own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path

from harness.base.errors import UsageError, nearest
from harness.base.files import write_atomic
from harness.kernel.arch import Arch, host_arch
from harness.kernel.expr import Expression, parse_expression
from harness.kernel.kconfig import ResolvedConfig

_TYPES = ("bool", "tristate", "string", "int", "hex")
_WORD = re.compile(r"\s*([a-z_]+)\b\s*(.*)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """One condition on a symbol, and where it is written."""

    expression: Expression
    where: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """`by` turns a symbol on whenever it is itself on and *condition* holds."""

    by: str
    condition: Expression | None
    where: str


@dataclasses.dataclass(slots=True, kw_only=True)
class Definition:
    """One `config X` block; a symbol may have several, any one of which suffices."""

    symbol: str
    where: str
    prompt: bool = False
    dependencies: list[Dependency] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, kw_only=True)
class _Found:
    """The result of a _Reader."""

    tree: Path
    arch: Arch
    definitions: dict[str, list[Definition]] = dataclasses.field(default_factory=dict)
    selects: dict[str, list[Select]] = dataclasses.field(default_factory=dict)
    files: set[str] = dataclasses.field(default_factory=set)


class KconfigFiles:
    """The symbols that a tree defines, read from its top Kconfig and everything that sources."""

    def __init__(self, tree: Path, *, memo: Path | None = None, arch: Arch | None = None) -> None:
        """Files are read on demand.  *memo* is a file that lists the defined symbols, so that the 1700 files,
        which take a second, are read only to explain a miss.  Its name must identify the files."""
        self.tree = tree
        self.memo = memo
        self.arch = arch or host_arch()

    @functools.cached_property
    def _found(self) -> _Found:
        found = _Found(tree=self.tree, arch=self.arch)
        _Reader(found, "Kconfig").read([])
        return found

    @property
    def definitions(self) -> Mapping[str, list[Definition]]:
        return self._found.definitions

    @property
    def files(self) -> frozenset[str]:
        """Every file that was read, relative to the tree."""
        return frozenset(self._found.files)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Every symbol that is defined."""
        if self.memo is not None:
            with contextlib.suppress(OSError):
                return frozenset(self.memo.read_text(encoding="utf-8").split())
        names = frozenset(self.definitions)
        if self.memo is not None:
            with contextlib.suppress(OSError):
                self.memo.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self.memo, "\n".join(sorted(names)))
        return names

    def defines(self, symbol: str) -> bool:
        """Whether any file defines the symbol."""
        return symbol in self.names

    def has_prompt(self, symbol: str) -> bool:
        """Whether a fragment can set the symbol; without a prompt only selects and defaults do."""
        return any(definition.prompt for definition in self.definitions.get(symbol, ()))

    def depends_on(self, symbol: str) -> frozenset[str]:
        """Return every symbol that a dependency of *symbol* names."""
        return frozenset(
            name
            for definition in self.definitions.get(symbol, ())
            for dependency in definition.dependencies
            for name in dependency.expression.symbols()
        )

    def explain_miss(self, symbol: str, wanted: str, config: ResolvedConfig) -> str:
        """Return in one clause why *symbol* is not *wanted*: which condition fails, or what selects it."""
        if not self.defines(symbol):
            return f"this tree defines no CONFIG_{symbol}; {nearest(symbol, self._close(symbol))}"
        got = config.get(symbol)
        if wanted == "n":
            return self._explain_on(symbol, got, config)
        missing = self._unsatisfied(symbol, wanted, config)
        if missing:
            return f"CONFIG_{symbol} is {got}: it needs {'; '.join(missing)}"
        if not self.has_prompt(symbol):
            selectors = ", ".join(sorted({select.by for select in self._found.selects.get(symbol, ())}))
            return f"CONFIG_{symbol} has no prompt: only {selectors or 'its default'} can turn it on"
        return f"CONFIG_{symbol} came out as {got}, though its dependencies hold"

    def _explain_on(self, symbol: str, got: str, config: ResolvedConfig) -> str:
        active = [
            f"{select.by} ({select.where})"
            for select in self._found.selects.get(symbol, ())
            if config.get(select.by) != "n" and (select.condition is None or select.condition.value(config))
        ]
        if active:
            return f"CONFIG_{symbol} is {got}: it is selected by {', '.join(active)}"
        if not self.has_prompt(symbol):
            return f"CONFIG_{symbol} is {got}: it has no prompt and its default is on"
        return f"CONFIG_{symbol} came out as {got}"

    def _unsatisfied(self, symbol: str, wanted: str, config: ResolvedConfig) -> list[str]:
        """The conditions that fail, for the definition that has the fewest of them."""
        need = {"y": 2, "m": 1}.get(wanted, 1)
        candidates = []
        for definition in self.definitions[symbol]:
            failing = [
                f"{part} ({part.describe(config)}; {dependency.where})"
                for dependency in definition.dependencies
                for part in dependency.expression.conjuncts()
                if part.value(config) < need
            ]
            candidates.append(list(dict.fromkeys(failing)))
        return min(candidates, key=len)

    def _close(self, symbol: str) -> list[str]:
        """Return symbols that start like a misspelt one."""
        return [name for name in self.definitions if name[:3] == symbol[:3]] or sorted(self.definitions)[:5]


class _Reader:
    """Parses one file, with a stack of the conditions of nested `if` and `menu` blocks."""

    def __init__(self, found: _Found, path: str) -> None:
        self.found = found
        self.path = path
        self.number = 0
        self.current: Definition | None = None
        self.stack: list[list[Dependency]] = []
        self.open_menu: list[Dependency] | None = None
        self.help_indent: int | None = None

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"

    def read(self, outer: list[Dependency]) -> None:
        self.found.files.add(self.path)
        try:
            text = (self.found.tree / self.path).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"cannot read {self.found.tree / self.path}: {error.strerror}") from error
        self.stack = [outer]
        pending = ""
        for number, line in enumerate(text.splitlines(), 1):
            self.number = self.number if pending else number
            if self._in_help(line):
                continue
            line = pending + line
            if line.endswith("\\"):
                pending = line[:-1]
                continue
            pending = ""
            self._line(_uncommented(line))

    def _in_help(self, line: str) -> bool:
        """Whether the line belongs to a help text, which ends where a line is indented less."""
        if self.help_indent is None:
            return False
        expanded = line.expandtabs(8)
        indent = len(expanded) - len(expanded.lstrip())
        if not expanded.strip():
            return True
        if self.help_indent < 0:
            self.help_indent = indent or 1
        if indent >= self.help_indent:
            return True
        self.help_indent = None
        return False

    def _line(self, line: str) -> None:
        found = _WORD.match(line)
        if found is None:
            return
        word, rest = found[1], found[2].strip()
        if word in ("config", "menuconfig"):
            self._begin(rest)
        elif word in ("if", "menu", "choice", "comment", "endif", "endmenu", "endchoice", "source"):
            self.current = self.open_menu = None
            self._structure(word, rest)
        elif word == "help":
            self.help_indent = -1
        else:
            self._property(word, rest)

    def _begin(self, symbol: str) -> None:
        self.open_menu = None
        self.current = Definition(symbol=symbol, where=self.where, dependencies=list(self._outer()))
        self.found.definitions.setdefault(symbol, []).append(self.current)

    def _outer(self) -> list[Dependency]:
        return [dependency for level in self.stack for dependency in level]

    def _structure(self, word: str, rest: str) -> None:
        if word == "if":
            self.stack.append([Dependency(expression=parse_expression(rest), where=self.where)])
        elif word in ("menu", "choice"):
            self.open_menu = []
            self.stack.append(self.open_menu)
        elif word == "source":
            self._source(rest)
        elif word != "comment" and len(self.stack) > 1:
            self.stack.pop()

    def _source(self, rest: str) -> None:
        # What the top Makefile exports to Kconfig.
        arch = self.found.arch
        variables = {"SRCARCH": arch.source, "HEADER_ARCH": arch.source, "ARCH": arch.name}
        path = re.sub(r"\$\((\w+)\)", lambda m: variables.get(m[1], m[0]), rest.strip().strip('"'))
        if path not in self.found.files and (self.found.tree / path).is_file():
            _Reader(self.found, path).read(self._outer())

    def _property(self, word: str, rest: str) -> None:
        if word == "depends":
            self._depends(rest.removeprefix("on").strip())
        elif self.current is None:
            return
        elif word in _TYPES or word == "prompt":
            self.current.prompt = self.current.prompt or rest.startswith(('"', "'"))
        elif word == "select":
            symbol, _, condition = rest.partition(" if ")
            select = Select(
                by=self.current.symbol,
                condition=parse_expression(condition) if condition else None,
                where=self.where,
            )
            self.found.selects.setdefault(symbol.strip(), []).append(select)

    def _depends(self, rest: str) -> None:
        expression, _, condition = rest.partition(" if ")
        parsed = parse_expression(expression)
        if condition:
            parsed = parse_expression(f"!({condition}) || ({expression})")
        dependency = Dependency(expression=parsed, where=self.where)
        if self.current is not None:
            self.current.dependencies.append(dependency)
        elif self.open_menu is not None:
            self.open_menu.append(dependency)


def _uncommented(line: str) -> str:
    """The line without a trailing comment; a # inside quotes is text."""
    if "#" not in line:
        return line
    return re.sub(r'("(?:[^"\\]|\\.)*")|#.*', lambda m: m[1] or "", line)

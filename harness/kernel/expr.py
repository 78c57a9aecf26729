# SPDX-License-Identifier: GPL-2.0-only
"""Kconfig's tristate expressions: evaluate them against a .config, say which part fails.

The language is Documentation/kbuild/kconfig-language.rst, "Menu dependencies".
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from harness.kernel.kconfig import ResolvedConfig

_TOKEN = re.compile(
    r'\s*(&&|\|\||!=|<=|>=|[!()=<>]|"(?:[^"\\]|\\.)*"|\'[^\']*\'|\$\((?:[^()]|\([^()]*\))*\)|[\w.$-]+)'
)
_SYMBOL = re.compile(r"(?!-?\d+$|0x[0-9a-fA-F]+$|[a-z.-])[\w.-]+")
_VALUES = {"n": 0, "m": 1, "y": 2}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """A tristate expression as its tokens: 0 is n, 1 is m, 2 is y."""

    tokens: tuple[str, ...]

    def value(self, config: ResolvedConfig) -> int:
        """Return its value in *config*.

        An expression that cannot be parsed counts as true: conf decides, and unknown syntax must not stop a
        build.
        """
        evaluation = _Evaluation(self.tokens, config)
        try:
            value = evaluation.any_of()
        except (IndexError, ValueError):
            return 2
        return value if evaluation.at == len(self.tokens) else 2

    def conjuncts(self) -> Iterator[Expression]:
        """Yield the parts that must all hold."""
        parts: list[list[str]] = [[]]
        depth = 0
        for token in self.tokens:
            depth += (token == "(") - (token == ")")
            if depth == 0 and token == "||":
                yield self
                return
            if depth == 0 and token == "&&":
                parts.append([])
            else:
                parts[-1].append(token)
        for part in parts:
            if part[:1] == ["("]:
                yield from Expression(tuple(part[1:-1])).conjuncts()
            else:
                yield Expression(tuple(part))

    def symbols(self) -> frozenset[str]:
        """Return every symbol it names."""
        return frozenset(filter(_SYMBOL.fullmatch, self.tokens))

    def describe(self, config: ResolvedConfig) -> str:
        """Return the values of its symbols: `A is n, B is m`."""
        if self.symbols() == set(self.tokens):
            return f"it is {config.get(self.tokens[0])}"
        return ", ".join(f"{name} is {config.get(name)}" for name in sorted(self.symbols())) or "constant"

    def __str__(self) -> str:
        return "".join(f" {token} " if token in ("&&", "||") else token for token in self.tokens)


def parse_expression(text: str) -> Expression:
    """Return the expression that *text* spells."""
    return Expression(tuple(_TOKEN.findall(text)))


class _Evaluation:
    """Recursive descent; precedence from low to high: ||, &&, !, comparison."""

    def __init__(self, tokens: tuple[str, ...], config: ResolvedConfig) -> None:
        self.tokens, self.config, self.at = tokens, config, 0

    def _accept(self, *wanted: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at] in wanted:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def any_of(self) -> int:
        value = self._all_of()
        while self._accept("||"):
            value = max(value, self._all_of())
        return value

    def _all_of(self) -> int:
        value = self._negation()
        while self._accept("&&"):
            value = min(value, self._negation())
        return value

    def _negation(self) -> int:
        if self._accept("!"):
            return 2 - self._negation()
        if self._accept("("):
            value = self.any_of()
            if not self._accept(")"):
                raise ValueError("unbalanced parenthesis")
            return value
        left = self._operand()
        comparison = self._accept(*_COMPARISONS)
        if comparison is None:
            # A $(macro) depends on the compiler; it counts as true.
            return 2 if "$" in left else _VALUES.get(left, 0)
        right = self._operand()
        numbers = left.isdecimal() and right.isdecimal()
        holds = _COMPARISONS[comparison]
        return 2 * (holds(int(left), int(right)) if numbers else holds(left, right))

    def _operand(self) -> str:
        """Take a symbol's value or a constant."""
        token = self.tokens[self.at]
        self.at += 1
        if token in ("&&", "||", "!", "(", ")", *_COMPARISONS):
            raise ValueError(f"found {token} instead of a symbol")
        return (self.config.get(token) if _SYMBOL.fullmatch(token) else token).strip("\"'")

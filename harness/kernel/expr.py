# SPDX-License-Identifier: GPL-2.0-only
"""Kconfig's tristate expressions: parse, evaluate against a .config, say which part fails.

The language is Documentation/kbuild/kconfig-language.rst, "Menu dependencies".
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator

from harness.kernel.kconfig import ResolvedConfig

_TOKEN = re.compile(
    r'\s*(?:(?P<op>&&|\|\||!=|<=|>=|[!()=<>])|(?P<text>"(?:[^"\\]|\\.)*"|\'[^\']*\')'
    r"|(?P<macro>\$\((?:[^()]|\([^()]*\))*\))|(?P<word>[\w.$-]+))"
)
_LITERAL = re.compile(r"-?\d+|0x[0-9a-fA-F]+|[a-z.-].*")
_VALUES = {"n": 0, "m": 1, "y": 2}


class Kind(enum.Enum):
    """What a node of an expression is."""

    SYMBOL = "symbol"
    CONSTANT = "constant"
    UNKNOWN = "unknown"  # a $(macro): the compiler's business, taken to hold
    NOT = "!"
    AND = "&&"
    OR = "||"
    COMPARE = "compare"


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """A tristate expression: 0 is n, 1 is m, 2 is y."""

    kind: Kind
    text: str = ""  # the symbol, constant, macro or comparison operator
    parts: tuple[Expression, ...] = ()

    def value(self, config: ResolvedConfig) -> int:
        """What it is worth in *config*."""
        match self.kind:
            case Kind.SYMBOL:
                return _VALUES.get(config.get(self.text), 0)
            case Kind.CONSTANT:
                return _VALUES.get(self.text, 0)
            case Kind.UNKNOWN:
                return 2
            case Kind.NOT:
                return 2 - self.parts[0].value(config)
            case Kind.AND:
                return min(part.value(config) for part in self.parts)
            case Kind.OR:
                return max(part.value(config) for part in self.parts)
            case Kind.COMPARE:
                return self._compare(config)

    def _compare(self, config: ResolvedConfig) -> int:
        left, right = (part.word(config) for part in self.parts)
        numbers = left.isdigit() and right.isdigit()
        low = (
            (int(left) > int(right)) - (int(left) < int(right))
            if numbers
            else (left > right) - (left < right)
        )
        holds = {"=": low == 0, "!=": low != 0, "<": low < 0, "<=": low <= 0, ">": low > 0, ">=": low >= 0}
        return 2 if holds[self.text] else 0

    def word(self, config: ResolvedConfig) -> str:
        """Its value as text, for a comparison."""
        return config.get(self.text).strip('"') if self.kind is Kind.SYMBOL else self.text

    def conjuncts(self) -> Iterator[Expression]:
        """The parts that must all hold."""
        if self.kind is Kind.AND:
            for part in self.parts:
                yield from part.conjuncts()
        else:
            yield self

    def symbols(self) -> frozenset[str]:
        """Every symbol it names."""
        if self.kind is Kind.SYMBOL:
            return frozenset([self.text])
        return frozenset(name for part in self.parts for name in part.symbols())

    def describe(self, config: ResolvedConfig) -> str:
        """The values of its symbols: `A is n, B is m`."""
        if self.kind is Kind.SYMBOL:
            return f"it is {config.get(self.text)}"
        return ", ".join(f"{name} is {config.get(name)}" for name in sorted(self.symbols())) or "constant"

    def __str__(self) -> str:
        match self.kind:
            case Kind.NOT:
                return f"!{self._wrapped(self.parts[0])}"
            case Kind.AND | Kind.OR:
                return f" {self.kind.value} ".join(self._wrapped(part) for part in self.parts)
            case Kind.COMPARE:
                return f"{self.parts[0]}{self.text}{self.parts[1]}"
            case Kind.SYMBOL | Kind.CONSTANT | Kind.UNKNOWN:
                return self.text

    @staticmethod
    def _wrapped(part: Expression) -> str:
        return f"({part})" if part.kind in (Kind.AND, Kind.OR) else str(part)


def parse_expression(text: str) -> Expression:
    """Parse an expression; what cannot be parsed is kept as one UNKNOWN, which holds.

    This reader only explains what conf decided, so a construct it does not know must not stop it.
    """
    tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup]
    parser = _Parser([(str(match.lastgroup), match[str(match.lastgroup)]) for match in tokens])
    try:
        expression = parser.any_of()
    except (IndexError, ValueError):
        return Expression(Kind.UNKNOWN, text.strip())
    return expression if parser.at == len(parser.tokens) else Expression(Kind.UNKNOWN, text.strip())


class _Parser:
    """Recursive descent; precedence from low to high: ||, &&, !, comparison."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.at = 0

    def _accept(self, *operators: str) -> str | None:
        if self.at < len(self.tokens):
            group, text = self.tokens[self.at]
            if group == "op" and text in operators:
                self.at += 1
                return text
        return None

    def any_of(self) -> Expression:
        parts = [self.all_of()]
        while self._accept("||"):
            parts.append(self.all_of())
        return parts[0] if len(parts) == 1 else Expression(Kind.OR, "", tuple(parts))

    def all_of(self) -> Expression:
        parts = [self.negation()]
        while self._accept("&&"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else Expression(Kind.AND, "", tuple(parts))

    def negation(self) -> Expression:
        if self._accept("!"):
            return Expression(Kind.NOT, "", (self.negation(),))
        if self._accept("("):
            inner = self.any_of()
            if not self._accept(")"):
                raise ValueError("unbalanced parenthesis")
            return inner
        left = self.operand()
        operator = self._accept("=", "!=", "<", "<=", ">", ">=")
        return Expression(Kind.COMPARE, operator, (left, self.operand())) if operator else left

    def operand(self) -> Expression:
        group, text = self.tokens[self.at]
        self.at += 1
        if group == "op":
            raise ValueError(f"{text} where a symbol belongs")
        if group == "macro" or "$" in text:
            return Expression(Kind.UNKNOWN, text)
        if group == "text":
            return Expression(Kind.CONSTANT, text[1:-1])
        constant = text in _VALUES or _LITERAL.fullmatch(text)
        return Expression(Kind.CONSTANT if constant else Kind.SYMBOL, text)

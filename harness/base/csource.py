# SPDX-License-Identifier: GPL-2.0-only
"""C source in the kernel's style -> its syntax tree, and its functions.  The only user of tree-sitter."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

import tree_sitter_c
from tree_sitter import Language, Parser
from tree_sitter import Node as Node

_C = Parser(Language(tree_sitter_c.language()))

_MACRO = re.compile(r"_*[A-Z][A-Z0-9_]*")

_HEAD = re.compile(r"^\w[^;:={]*", re.M)
_ATTRIBUTE = re.compile(
    r"(?<!struct )(?<!union )(?<!enum )\b__(?:(?:printf|scanf|must_hold|acquires|releases)\([^()]*\)"
    r"|(?![us]\d|[bl]e\d|w?sum|inline|\w+_t\b)\w+(?=\s+\w))"
)
"""A macro in the head of a function; the grammar does not know them and takes some for the type."""

_OUTSIDE = re.compile(r"translation_unit|preproc_(?:if|ifdef|elif|else)|linkage_\w+|declaration_list|ERROR")
"""Nodes that may contain functions, in tree-sitter-c's grammar."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Function:
    """A function, with the lines of its head and body, from 1."""

    start: int
    end: int
    name: str

    @property
    def lines(self) -> range:
        return range(self.start, self.end + 1)


def parse(source: str) -> Node:
    """Return the syntax tree of *source*, in which macros in the heads of functions are blanks."""
    plain = _HEAD.sub(lambda head: _ATTRIBUTE.sub(lambda word: " " * len(word[0]), head[0]), source)
    return _C.parse(plain.encode()).root_node


def lines_of(node: Node) -> range:
    """Return the lines of *node*, from 1."""
    return range(node.start_point.row + 1, node.end_point.row + 2)


@functools.lru_cache(maxsize=512)
def find_functions(source: str) -> tuple[Function, ...]:
    """Return the functions that *source* defines; one of `#if` and one of `#else` may have the same name."""
    return tuple(Function(lines_of(node)[0], lines_of(node)[-1], name) for name, node in definitions(source))


def definitions(source: str) -> Iterator[tuple[str, Node]]:
    """Yield name and syntax tree of each function that *source* defines."""
    left = [parse(source)]
    while left:
        node = left.pop()
        if node.type == "function_definition":
            if name := _name(node):
                yield name, node
        elif _OUTSIDE.fullmatch(node.type):
            left += reversed(node.children)


def _name(definition: Node) -> str:
    """Return the name of a function; it is the argument of a macro in DOMAIN_NS(map_pages)(...)."""
    node = definition.child_by_field_name("declarator")
    while node is not None and node.type != "identifier":
        inner = node.child_by_field_name("declarator")
        if inner is not None and _MACRO.fullmatch(text_of(inner.child_by_field_name("declarator"))):
            return text_of(inner.child_by_field_name("parameters")).strip("()")
        node = inner
    return text_of(node)


def walk(node: Node) -> Iterator[Node]:
    """Yield *node* and all nodes below it, in the order of the source."""
    left = [node]
    while left:
        yield (found := left.pop())
        left += reversed(found.children)


def text_of(node: Node | None) -> str:
    """Return the source of *node*; empty without one."""
    return node.text.decode(errors="replace") if node is not None and node.text is not None else ""

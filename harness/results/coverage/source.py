# SPDX-License-Identifier: GPL-2.0-only
"""Which lines of a C file are no-IOMMU code.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from harness.base.csource import Node, definitions, lines_of, text_of, walk

NOIOMMU = re.compile(r"no_?iommu", re.IGNORECASE)

_NEGATED = re.compile(r"!\s*[\w>().-]*no_?iommu", re.IGNORECASE)


def find_noiommu(name: str, text: str) -> frozenset[int]:
    """Return the lines of no-IOMMU code in the file *name*.

    These are: all lines of a file with `noiommu` in its name; functions with it in their name; what `#if` or
    `#ifdef` of a NOIOMMU symbol includes; statements that mention it, and the block after an `if` whose
    condition mentions it without negating it.  `no_iommu` and capitals count as well.
    """
    lines = text.splitlines()
    if NOIOMMU.search(name.rpartition("/")[2]):
        return frozenset(range(1, len(lines) + 1))
    found = set(_conditional(lines))
    for function, definition in definitions(text):
        if NOIOMMU.search(function):
            found.update(lines_of(definition))
        for node in walk(definition):
            if not node.children and node.type != "comment" and NOIOMMU.search(text_of(node)):
                found.update(_statement(node))
    return frozenset(found)


def _conditional(lines: Sequence[str]) -> Iterator[int]:
    """Yield the lines that the preprocessor keeps because a NOIOMMU symbol is on."""
    stack: list[bool] = []
    for number, line in enumerate(lines, 1):
        word = re.match(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)", line)
        if word is None:
            if any(stack):
                yield number
        elif word[1].startswith("if"):
            stack.append(word[1] != "ifndef" and bool(NOIOMMU.search(word[2])) and not _NEGATED.search(line))
        elif stack:
            if word[1] == "endif":
                stack.pop()
            else:
                stack[-1] = False


def _statement(node: Node) -> range:
    """Return the lines of the statement around *node*, and of the block that it is the condition of."""
    while not node.type.endswith(("_statement", "declaration", "function_definition")) and node.parent:
        node = node.parent
    if node.type != "if_statement":
        return lines_of(node)
    negated = _NEGATED.search(text_of(node.child_by_field_name("condition")))
    last = node.child_by_field_name("condition" if negated else "consequence")
    return range(lines_of(node)[0], lines_of(last or node)[-1] + 1)

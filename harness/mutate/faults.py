# SPDX-License-Identifier: GPL-2.0-only
"""C source -> the faults that can be planted in it, from its syntax tree: pure functions.

Most faults compile: a value stays used, and an operand keeps its type.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import enum
import hashlib
import re
from collections.abc import Callable, Iterator

from harness.base.csource import Node, definitions, text_of, walk


class Kind(enum.Enum):
    """What a fault does to the code; the value is its name for people."""

    NEGATED = "condition negated"
    NEVER = "condition never true"
    ALWAYS = "condition always true"
    UNCHECKED = "check dropped"
    ERRNO = "another errno"
    BOUND = "bound moved by one"
    REMOVED = "statement removed"
    FLAG = "flag lost"
    NARROWED = "lock held shorter"
    UNLOCKED = "lock not taken"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One wrong change of one function."""

    id: str
    """Eight hex digits; they stay the same when other code changes."""
    file: str
    """Relative to the top of the tree."""
    function: str
    line: int
    """The line of its first edit, from 1."""
    kind: Kind
    edits: tuple[tuple[int, int, str], ...]
    """Offsets [start, end) in bytes of the source as UTF-8, ascending, and the text that replaces them."""

    def apply(self, source: str) -> str:
        """Return *source* with the fault planted."""
        raw = source.encode()
        for start, end, text in reversed(self.edits):
            raw = raw[:start] + text.encode() + raw[end:]
        return raw.decode()

    def diff(self, source: str) -> str:
        """Return the fault as a patch for `patch -p1`."""
        before, after = (text.splitlines(True) for text in (source, self.apply(source)))
        return "".join(difflib.unified_diff(before, after, f"a/{self.file}", f"b/{self.file}", n=2))

    @property
    def label(self) -> str:
        """Return place and kind of the fault, in one line."""
        return f"{self.file}:{self.line} {self.function}(): {self.kind.value}"


_Edit = tuple[Node, str]
_Change = tuple[Kind, tuple[_Edit, ...]]


def find_faults(file: str, source: str, wanted: Callable[[str, int], bool] = lambda *_: True) -> list[Fault]:
    """Return the faults for *file* in functions and lines (from 1) for which *wanted* is true.

    Of two kinds with the same edits the first is kept, which says more: a lock before a statement.
    """
    found, seen, known = [], collections.Counter[str](), set[object]()
    for name, definition in definitions(source):
        for kind, edits in _changes(definition):
            placed = tuple(sorted((node.start_byte, node.end_byte, text) for node, text in edits))
            line = min(node.start_point.row for node, _ in edits) + 1
            old = " ".join(word for node, _ in edits for word in text_of(node).split())
            what = f"{file}\n{name}\n{kind.name}\n{old}\n{placed[0][2]}"
            seen[what] += 1
            identity = hashlib.sha256(f"{what}\n{seen[what]}".encode()).hexdigest()[:8]
            if wanted(name, line) and placed not in known:
                known.add(placed)
                found.append(Fault(id=identity, file=file, function=name, line=line, kind=kind, edits=placed))
    return found


def _changes(definition: Node) -> Iterator[_Change]:
    body = definition.child_by_field_name("body")
    if body is None:
        return
    changes = [*_locks(body)]
    for node in walk(body):
        if node.type in _CHANGES:
            changes += _CHANGES[node.type](node)
    # An error elsewhere does not matter: the grammar knows no macro that takes a type or begins a loop.
    yield from (change for change in changes if not any(map(_is_unclear, (node for node, _ in change[1]))))


def _is_unclear(node: Node | None) -> bool:
    """Whether *node* or what it is part of could not be parsed."""
    if node is None or node.has_error:
        return node is not None
    while node is not None and node.type != "ERROR":
        node = node.parent
    return node is not None


def _conditions(node: Node) -> Iterator[_Change]:
    condition = node.child_by_field_name("condition")
    if condition is None:
        return
    inner = _inside(condition)
    text = text_of(inner)
    checks = node.type == "if_statement" and _leaves(node.child_by_field_name("consequence"))
    bare = inner.type == "unary_expression" and text.startswith("!")
    yield Kind.NEGATED, ((inner, text[1:].lstrip() if bare else f"!({text})"),)
    yield Kind.UNCHECKED if checks else Kind.NEVER, ((inner, f"({text}) && 0"),)
    if node.type != "while_statement" and not checks:
        yield Kind.ALWAYS, ((inner, f"({text}) || 1"),)


def _inside(node: Node) -> Node:
    """Return the expression in parentheses."""
    while node.type == "parenthesized_expression":
        node = node.named_children[0]
    return node


_JUMPS = ("return_statement", "goto_statement", "break_statement", "continue_statement")


def _leaves(body: Node | None) -> bool:
    """Whether *body* ends in a jump: its `if` is a check."""
    if body is not None and body.type == "compound_statement" and body.named_children:
        body = body.named_children[-1]
    return body is not None and body.type in _JUMPS


_ERRNO = re.compile(r"E[A-Z0-9]{2,}")


def _errnos(node: Node) -> Iterator[_Change]:
    name = node.child_by_field_name("argument")
    if (
        text_of(node.child_by_field_name("operator")) == "-"
        and name is not None
        and _ERRNO.fullmatch(text_of(name))
    ):
        yield Kind.ERRNO, ((name, "EIO" if text_of(name) == "EINVAL" else "EINVAL"),)


_MOVED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_FLAG = re.compile(r"[A-Z][A-Z0-9_]{2,}")


def _operators(node: Node) -> Iterator[_Change]:
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    operator = node.child_by_field_name("operator")
    if left is None or right is None or operator is None:
        return
    word = text_of(operator)
    if word in _MOVED:
        yield Kind.BOUND, ((operator, _MOVED[word]),)
    elif word in "+-" and text_of(right) == "1":
        yield Kind.BOUND, ((right, "0"),)
    elif word in ("&&", "||"):
        neutral = "&& 0" if word == "||" else "|| 1"
        # The left one may guard the right one, whose pointer is NULL without it.
        for operand in (left, right) if word == "||" else (right,):
            yield Kind.UNCHECKED, ((operand, f"(({text_of(operand)}) {neutral})"),)
    elif word == "|":
        for operand in (left, right):
            if _FLAG.fullmatch(text_of(operand)):
                yield Kind.FLAG, ((operand, "0"),)


_LOCK = re.compile(
    r"(?:mutex_(?:un)?lock(?:_\w+)?|(?:down|up)_(?:read|write)(?:_\w+)?|spin_(?:un)?lock(?:_\w+)?"
    r"|xa_(?:un)?lock(?:_\w+)?|read_(?:un)?lock|write_(?:un)?lock)"
)
_RELEASE = re.compile(r"up_|\w*unlock")
_UNTOLD = re.compile(r"(?:lockdep_\w+|might_\w+|pr_\w+|dev_\w+|WARN\w*|trace_\w+|kfree\w*|cond_resched)")
"""Calls whose absence no test can see; a missing kfree() is a leak, which kmemleak reports too late."""


_NOTHING = "{ }"
"""Replaces a statement; compilers warn of a lone semicolon after an `if`."""


def _statements(node: Node) -> Iterator[_Change]:
    expression = node.named_children[0] if node.named_children else None
    if expression is None:
        return
    name = _called(node)
    if expression.type == "call_expression" and (_LOCK.fullmatch(name) or _UNTOLD.fullmatch(name)):
        return
    if expression.type in ("call_expression", "assignment_expression", "update_expression"):
        yield Kind.REMOVED, ((node, _NOTHING),)


def _called(statement: Node) -> str:
    """Return the name of the function that *statement* calls; empty if it is no such call."""
    call = statement.named_children[0] if statement.named_children else None
    return (
        text_of(call.child_by_field_name("function"))
        if call is not None and call.type == "call_expression"
        else ""
    )


def _locks(body: Node) -> Iterator[_Change]:
    by_lock: dict[str, list[Node]] = {}
    for node in walk(body):
        if node.type != "expression_statement" or not node.named_children:
            continue
        name, call = _called(node), node.named_children[0]
        if name in ("guard", "scoped_guard"):
            continue
        if _LOCK.fullmatch(name):
            by_lock.setdefault(text_of(call.child_by_field_name("arguments")), []).append(node)
            yield from _narrowed(node, name)
        elif call.type == "call_expression" and text_of(call).startswith("guard("):
            yield Kind.UNLOCKED, ((node, _NOTHING),)
    for nodes in by_lock.values():
        released = [bool(_RELEASE.match(_called(node))) for node in nodes]
        if True in released and False in released:
            yield Kind.UNLOCKED, tuple((node, _NOTHING) for node in nodes)


def _narrowed(node: Node, name: str) -> Iterator[_Change]:
    """Take the lock one statement later, or release it one earlier."""
    other = node.prev_named_sibling if _RELEASE.match(name) else node.next_named_sibling
    plain = ("expression_statement", "if_statement", "for_statement", "while_statement")
    if other is not None and other.type in plain and not _LOCK.fullmatch(_called(other)):
        yield Kind.NARROWED, ((node, text_of(other)), (other, text_of(node)))


_CHANGES: dict[str, Callable[[Node], Iterator[_Change]]] = {
    "if_statement": _conditions,
    "while_statement": _conditions,
    "conditional_expression": _conditions,
    "unary_expression": _errnos,
    "binary_expression": _operators,
    "expression_statement": _statements,
}
"""Type of node in tree-sitter-c's grammar -> the function that makes its faults."""

# SPDX-License-Identifier: GPL-2.0-only
"""Text from a guest made safe for reports: a test may print anything."""

from __future__ import annotations

import re

# Everything that XML 1.0 does not allow (section 2.2, "Char"), which covers terminals and HTML as well.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
# Marks that turn the reading direction or are invisible: they make a name look like another one.
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def text(raw: str) -> str:
    """*raw* without terminal escapes, and with U+FFFD for every character that XML does not allow."""
    return _ILLEGAL.sub("\ufffd", _ESCAPES.sub("", raw).replace("\r\n", "\n").replace("\r", "\n"))


def name(raw: str) -> str:
    """*raw* as a name: one line, visible characters only, never empty."""
    return " ".join(_INVISIBLE.sub("\ufffd", text(raw)).split()) or "(unnamed)"


def dotless(raw: str) -> str:
    """*raw* as one component of a JUnit class name, where a dot would start a package."""
    return name(raw).replace(".", "_")


def excerpt(raw: str, most: int) -> str:
    """The last *most* characters of *raw*, from the start of a line, with a note about what was left out."""
    clean = text(raw)
    if len(clean) <= most:
        return clean
    tail = clean[-most:]
    newline = tail.find("\n", 0, most // 2)
    tail = tail[newline + 1 :]
    return f"... {len(clean) - len(tail)} characters left out ...\n{tail}"

# SPDX-License-Identifier: GPL-2.0-only
"""A short text that is equal for two splats of one cause, in any boot and any process."""

from __future__ import annotations

import hashlib

from harness.machine.culprit import Account, explain

_FRAMES = 5
"""The number of functions that count, innermost first: the outer ones are system calls."""

LENGTH = 12


def fingerprint(splat: str) -> str:
    """Return twelve hex digits for the kind and the functions of *splat*; empty without a splat.

    Of several splats, the first counts.  Without a stack trace the first line alone decides.
    """
    account = account_of(splat)
    if not account.title:
        return ""
    said = "\n".join([account.cause, *account.functions[:_FRAMES]])
    return hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()[:LENGTH]


def account_of(splat: str) -> Account:
    """Return the Account of the first splat in *splat*; its title is empty without a splat."""
    return explain(splat.strip().split("\n\n")[0].splitlines())

# SPDX-License-Identifier: GPL-2.0-only
"""The environment of every child process: a short list of the caller's variables, and nothing else.

A build, a git command or a VM must not depend on what the caller's shell happens to export.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping

from harness.base.errors import UsageError

PASS_VARIABLE = "VFIO_HARNESS_PASS_ENV"
"""Names of further variables that children get, separated by commas or blanks."""

_KEPT = re.compile(
    r"HOME|PATH|TMPDIR|USER|LOGNAME|XDG_.*|VFIO_HARNESS_.*|(?i:https?_proxy|no_proxy|all_proxy)"
)

_TERMINAL = re.compile(r"TERM|COLORTERM|NO_COLOR|COLUMNS|LINES|TZ|LANG|LANGUAGE|LC_.*|DISPLAY|SUDO_ASKPASS")
"""Further variables for a child that talks to the user itself."""

_BUILD = re.compile(
    r"LLVM|LLVM_IAS|CC|LD|HOSTCC|HOSTLD|ARCH|SUBARCH|SRCARCH|CROSS_COMPILE|O|OUTPUT|INSTALL_.*_PATH"
    r"|KBUILD_.*|KCONFIG_.*|K(?:C|CPP|A)FLAGS|(?:C|CPP|LD)FLAGS|LDLIBS|LOCALVERSION|KERNELRELEASE"
    r"|(?:GNU)?MAKEFLAGS|MFLAGS|MAKEFILES|CPATH|C_INCLUDE_PATH|LIBRARY_PATH|GCC_EXEC_PREFIX|COMPILER_PATH"
)
"""What make, kbuild, the selftests' makefiles and compilers obey."""

_GIT = re.compile(
    r"GIT_(?:DIR|WORK_TREE|COMMON_DIR|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|QUARANTINE_PATH|NAMESPACE|CONFIG.*)"
)

_LOADER = re.compile(r"LD_LIBRARY_PATH|LD_PRELOAD")

_log = logging.getLogger("harness.base.environment")


def environment(extra: Mapping[str, str] | None = None, *, terminal: bool = False) -> dict[str, str]:
    """Return the environment of a child process, with *extra* on top.

    *terminal* keeps the caller's locale and terminal, for a child that talks to the user itself.  Raises
    UsageError when VFIO_HARNESS_PASS_ENV names a variable that would change kernels without changing their
    digest.
    """
    passed = set(re.split(r"[\s,]+", os.environ.get(PASS_VARIABLE, "")))
    steering = sorted(name for name in passed if _BUILD.fullmatch(name))
    if steering:
        raise UsageError(f"{PASS_VARIABLE} cannot pass {', '.join(steering)} to builds", hint="leave it out")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in passed or _KEPT.fullmatch(name) or (terminal and _TERMINAL.fullmatch(name))
    }
    return {**kept, **({} if terminal else {"LC_ALL": "C"}), **(extra or {})}


@functools.cache
def warn_ignored(chooser: str) -> None:
    """Log once which variables of the caller do not reach builds, git and QEMU, and what to use instead.

    *chooser* is the option that does what those about the compiler ask for.
    """
    # Within make, make itself sets MAKEFLAGS.
    within = ("MAKEFLAGS", "MFLAGS") if "MAKELEVEL" in os.environ else ()
    names = [name for name, value in sorted(os.environ.items()) if value and name not in within]
    for pattern, instead in (
        (_BUILD, f"{chooser} chooses compiler and linker"),
        (_GIT, "--tree names the repository"),
        (_LOADER, f"pass it on with {PASS_VARIABLE}=NAME"),
    ):
        _warn((name for name in names if pattern.fullmatch(name)), instead)


def _warn(names: Iterable[str], instead: str) -> None:
    listed = ", ".join(names)
    if listed:
        _log.warning("ignoring %s in the environment: %s", listed, instead)

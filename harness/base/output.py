# SPDX-License-Identifier: GPL-2.0-only
"""Print results on stdout and everything else on stderr.

A reader that stops reading (`| head`) or a closed stream (`>&-`) never changes an exit code, and NO_COLOR is
obeyed (no-color.org).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click


def wants_colour() -> bool | None:
    """Return False when NO_COLOR is set, else None: colour on terminals only."""
    return False if os.environ.get("NO_COLOR") else None


def open_standard_streams() -> None:
    """Connect every closed standard stream with /dev/null, so that no file opened later gets its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _discard(number)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def discard_stdout() -> None:
    """Drop what is still to be printed: the interpreter would flush it at exit, and fail again."""
    _discard(1)


def _discard(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


@contextlib.contextmanager
def tolerant_stdout() -> Iterator[None]:
    """Ignore, in the with block, that standard output is closed or has lost its reader."""
    if sys.stdout is None:
        with Path(os.devnull).open("w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink):
            yield
        return
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def emit(text: str) -> None:
    """Print a result on standard output."""
    with tolerant_stdout():
        click.echo(text, color=wants_colour())


def tell(text: str) -> None:
    """Print a line of progress on standard error; what cannot be written there is dropped."""
    if sys.stderr is None:
        return
    try:
        click.echo(text, err=True, color=wants_colour())
    except OSError:
        # Nobody reads it (`2>&1 | head`), or the disk is full.
        _discard(2)


def complain(message: str, hint: str | None = None) -> None:
    """Print an error: what is wrong, then what to do."""
    tell(f"{click.style('error:', fg='red', bold=True)} {message}")
    if hint:
        tell(f"  {hint}")

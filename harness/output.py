# SPDX-License-Identifier: GPL-2.0-only
"""Standard output and error, as every verb uses them: results on stdout, everything else on stderr.

A reader that stopped reading (`| head`) never changes a verdict, and NO_COLOR is obeyed (no-color.org).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click


def wants_colour() -> bool | None:
    """False when NO_COLOR forbids it; None leaves it to whether the stream is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


@contextlib.contextmanager
def tolerant_stdout() -> Iterator[None]:
    """Write to standard output although nobody may be reading it any more, or it may be closed."""
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
    """Print a word of progress on standard error."""
    if sys.stderr is not None:
        click.echo(text, err=True, color=wants_colour())


def complain(message: str, hint: str | None = None) -> None:
    """Print one error the way every error is printed: what is wrong, then what to do."""
    tell(f"{click.style('error:', fg='red', bold=True)} {message}")
    if hint:
        tell(f"  {hint}")

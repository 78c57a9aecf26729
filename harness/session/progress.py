# SPDX-License-Identifier: GPL-2.0-only
"""How a build shows that it goes on: a bar with an ETA on a terminal, a plain line now and then in CI."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TextIO

from harness.kernel.make import BuildProgress, Progress

_PLAIN_SECONDS = 30.0
"""How often a build without a terminal says a word."""


@contextlib.contextmanager
def build_progress(name: str, stream: TextIO) -> Iterator[Progress]:
    """A Progress that shows the build of *name* on *stream*."""
    if stream.isatty():
        with _bar(name) as progress:
            yield progress
    else:
        yield _plain(name, stream)


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=None, eta="")

        def update(state: BuildProgress) -> None:
            bars.update(
                task,
                description=f"{name}: {state.phase}",
                completed=state.done,
                total=state.total,
                eta=_left(state.eta),
            )

        yield update


def _plain(name: str, stream: TextIO) -> Progress:
    last = time.monotonic()

    def update(state: BuildProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PLAIN_SECONDS:
            return
        last = now
        total = f"/{state.total}" if state.total else ""
        steps = f": {state.done}{total}" if state.done or state.total else ""
        print(f"{name}: {state.phase}{steps} {_left(state.eta)}".rstrip(), file=stream, flush=True)

    return update


def _left(eta: float | None) -> str:
    if eta is None:
        return ""
    minutes, seconds = divmod(int(eta), 60)
    return f"about {minutes}:{seconds:02} left"

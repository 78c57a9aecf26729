# SPDX-License-Identifier: GPL-2.0-only
"""Reports as files: which formats there are, and writing one so that a reader never sees half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.errors import InfraError, UsageError, nearest
from harness.report import console, html, json, junit, kcidb, markdown, view
from harness.results import Background, Run

FORMATS: Mapping[str, Callable[[Run, Background], str]] = {
    "text": console.render,
    "junit": junit.render,
    "json": json.render,
    "html": html.render,
    "markdown": markdown.render,
    "kcidb": kcidb.render,
}
"""Format name -> its renderer."""


def write(run: Run, form: str, path: Path, background: Background = view.NOTHING) -> None:
    """Write *run* to *path* in the format *form*, replacing what is there in one step.

    Raises UsageError for an unknown format, InfraError when the file cannot be written.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no report format {form!r}", hint=nearest(form, FORMATS))
    # What a guest printed may not be encodable; a report is never lost for it.
    content = FORMATS[form](run, background).encode("utf-8", "backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except OSError as error:
        raise InfraError(
            f"the {form} report cannot be written to {path}: {error.strerror or error}"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp() makes files only their owner can read; a report is for others.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

# SPDX-License-Identifier: GPL-2.0-only
"""The report formats, and writing one to a file.

A new format is a module with a render() and one line in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from harness.base.errors import InfraError, UsageError, nearest
from harness.base.files import write_atomic
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


def check_place(option: str, path: Path) -> None:
    """Raise UsageError when the directory of *path*, which *option* named, does not exist."""
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option}: there is no directory {path.absolute().parent}")


def write(run: Run, form: str, path: Path, background: Background = view.NOTHING) -> None:
    """Write *run* to *path* in the format *form*, atomically.

    Raises UsageError for an unknown format, InfraError when the file cannot be written.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no report format {form!r}", hint=nearest(form, FORMATS))
    # A guest may print what cannot be encoded; that must not cost the report.
    content = FORMATS[form](run, background).encode("utf-8", "backslashreplace")
    try:
        write_atomic(path, content)
    except OSError as error:
        raise InfraError(
            f"the {form} report cannot be written to {path}: {error.strerror or error}"
        ) from error

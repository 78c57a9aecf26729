# SPDX-License-Identifier: GPL-2.0-only
"""Where a run's reports go: on the screen, beside its results, and where the user wants one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from harness.errors import InfraError, UsageError
from harness.host import free_mib
from harness.output import emit, tolerant_stdout
from harness.results import Background, Run

JUNIT_FILE = "junit.xml"
JSON_FILE = "run.json"
HTML_FILE = "report.html"

_LEAST_FREE_MIB = 64
"""Results, reports and consoles of a nightly take some 40 MiB; of a run of one job, 5."""


def check_outputs(place: Path, junit: Path | None) -> None:
    """Refuse now what could otherwise not be written at the end: runs into *place*, a report to *junit*.

    Raises UsageError for the report, InfraError for the runs.
    """
    if junit is not None and not junit.absolute().parent.is_dir():
        raise UsageError(f"--junit-xml: there is no directory {junit.absolute().parent}")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            room = free_mib(place)
    except OSError as error:
        raise InfraError(
            f"cannot write runs into {place}: {error.strerror}", hint="VFIO_HARNESS_RUNS moves them"
        ) from error
    if room < _LEAST_FREE_MIB:
        raise InfraError(
            f"only {room} MiB are free in {place}, and a run needs {_LEAST_FREE_MIB}",
            hint="VFIO_HARNESS_RUNS moves runs; vfio-harness gc frees room in the cache",
        )


def show_run(run: Run, background: Background, *, as_json: bool) -> None:
    """Print the report on stdout."""
    from harness.report.console import show
    from harness.report.files import FORMATS

    if as_json:
        emit(FORMATS["json"](run, background))
    else:
        with tolerant_stdout():
            show(run, sys.stdout, background)


def write_reports(run: Run, background: Background, junit: Path | None) -> None:
    """Write the reports that every run has into its directory, and one more to *junit*; raises InfraError."""
    from harness.report.files import write

    directory = Path(run.directory)
    write(run, "junit", directory / JUNIT_FILE, background)
    write(run, "json", directory / JSON_FILE, background)
    write(run, "html", directory / HTML_FILE, background)
    if junit is not None:
        write(run, "junit", junit, background)

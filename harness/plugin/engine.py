# SPDX-License-Identifier: GPL-2.0-only
"""The one place that calls pytest."""

from __future__ import annotations

import contextlib
import enum
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness.base import paths


class Ended(enum.Enum):
    """How pytest ended; the outcomes of the cases are in the run's results."""

    RAN = "ran"
    NOTHING_SELECTED = "nothing selected"
    REFUSED = "refused"
    """Its options or an expression are wrong; it has printed why on stderr."""
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class _Session:
    """A plugin that knows whether the run was closed."""

    finished = False

    def pytest_sessionfinish(self) -> None:
        self.finished = True


def run_pytest(words: Sequence[str], plan: Path, workers: int = 0) -> Ended:
    """Run the file *plan* in this process and in *workers* more, with *words* of a verb for pytest.

    Raises KeyboardInterrupt if pytest was interrupted before it could tell its plugins.
    """
    ini = Path(__file__).with_name("pytest.ini")
    root = paths.guest_dir().parent
    own = ["-p", "harness.plugin", f"--plan={plan}", f"--config-file={ini}", f"--rootdir={root}"]
    # Its cache would be one for all runs of this host.
    own += ["-p", "no:cacheprovider", "--tb=no", "-rN", "--no-header"]
    spread = ["-n", str(workers), "--dist", "loadgroup", "--no-loadscope-reorder"]
    session = _Session()
    with _without_callers_settings():
        code = pytest.main([*own, *(spread if workers else ["-p", "no:xdist"]), *words], plugins=[session])
    if code == pytest.ExitCode.INTERRUPTED and not session.finished:
        raise KeyboardInterrupt
    return {
        pytest.ExitCode.OK: Ended.RAN,
        pytest.ExitCode.TESTS_FAILED: Ended.RAN,
        pytest.ExitCode.NO_TESTS_COLLECTED: Ended.NOTHING_SELECTED,
        pytest.ExitCode.USAGE_ERROR: Ended.REFUSED,
        pytest.ExitCode.INTERRUPTED: Ended.INTERRUPTED,
    }.get(pytest.ExitCode(code), Ended.FAILED)


def collect_silently(words: Sequence[str], plan: Path) -> Ended:
    """Return how collecting the file *plan* ends; nothing is run and nothing is printed on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run_pytest(["--collect-only", *words], plan)


@contextlib.contextmanager
def _without_callers_settings() -> Iterator[None]:
    """Remove PYTEST_* from the environment for the block: it configures the caller's own tests."""
    dropped = {name: os.environ.pop(name) for name in tuple(os.environ) if name.startswith("PYTEST_")}
    try:
        yield
    finally:
        os.environ.update(dropped)

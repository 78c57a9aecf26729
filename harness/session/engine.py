# SPDX-License-Identifier: GPL-2.0-only
"""pytest as the engine of a run: its options, and the one place that calls it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

import harness
from harness import paths
from harness.plan import Plan
from harness.session.workers import default_workers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PytestOptions:
    """What of pytest the verb passes on."""

    keyword: str | None = None
    exit_first: bool = False
    last_failed: bool = False
    workers: int | None = None
    """None: as many as suit the plan and the host."""
    collect_only: bool = False
    verbose: bool = False
    extra: tuple[str, ...] = ()

    @property
    def narrowed(self) -> bool:
        """Whether pytest will choose, or behave, in a way that the plan does not tell."""
        return bool(self.keyword or self.exit_first or self.last_failed or self.extra)

    def workers_for(self, plan: Plan) -> int:
        """How many workers *plan* gets; 0: it runs in this process."""
        if self.workers is not None:
            return self.workers
        return 0 if self.narrowed or self.collect_only else default_workers(plan)

    def arguments(self, plan: Plan, path: Path) -> list[str]:
        """pytest's command line for *plan*, which is saved as *path*."""
        ini = Path(harness.__file__).parent / "plugin" / "pytest.ini"
        root = paths.guest_dir().parent
        words = ["-p", "harness.plugin", f"--plan={path}", f"--config-file={ini}", f"--rootdir={root}"]
        words += ["-o", f"cache_dir={paths.cache_dir() / 'pytest'}", "--tb=no", "-rN", "--no-header"]
        words += ["-k", self.keyword] if self.keyword else []
        words += ["-x"] if self.exit_first else []
        words += ["--lf"] if self.last_failed else []
        workers = self.workers_for(plan)
        spread = ["-n", str(workers), "--dist", "loadgroup", "--no-loadscope-reorder"]
        words += spread if workers else ["-p", "no:xdist"]
        words += ["--collect-only", "-q"] if self.collect_only else []
        words += ["-v"] if self.verbose else []
        return [*words, *self.extra]


def run_pytest(arguments: list[str]) -> pytest.ExitCode:
    """Run pytest in this process; its exit code matters only where no results are stored."""
    # The caller's own default options are for the caller's own tests.
    os.environ.pop("PYTEST_ADDOPTS", None)
    return pytest.ExitCode(pytest.main(arguments))

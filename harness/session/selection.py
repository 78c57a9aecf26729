# SPDX-License-Identifier: GPL-2.0-only
"""What the options for pytest select of a plan: collected before anything is built."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import NoCase, UsageError, nearest
from harness.plan import PLAN_FILE, Plan
from harness.plugin.engine import Ended, collect_silently
from harness.session.wishes import PytestOptions
from harness.suites.catalogue import work_of


def check_selection(plan: Plan, options: PytestOptions) -> None:
    """Refuse options with which pytest selects no case, before there is a kernel or a run."""
    if options.collect_only or not (options.keyword or options.extra):
        return
    with saved_elsewhere(plan) as path:
        ended = collect_silently(options.words(), path)
    if ended is Ended.INTERRUPTED:
        raise KeyboardInterrupt
    refuse_unless_selected(ended, plan, options.keyword)


@contextlib.contextmanager
def saved_elsewhere(plan: Plan) -> Iterator[Path]:
    """Save *plan* in a temporary directory, for a collection."""
    with tempfile.TemporaryDirectory(prefix="vfio-harness-") as directory:
        path = Path(directory) / PLAN_FILE
        dataclasses.replace(plan, run_dir=directory).save(path)
        yield path


def refuse_unless_selected(ended: Ended, plan: Plan, keyword: str) -> None:
    """Raise an error if pytest refused its options or selected no case."""
    if ended is Ended.REFUSED:
        raise UsageError("pytest refused its options", hint="see its message above")
    if ended is Ended.NOTHING_SELECTED:
        words = {word for job in plan.jobs for work in work_of(job) for word in work.address.split("/")}
        what = f"-k {keyword!r}" if keyword else "what was asked for"
        hint = nearest(keyword, words, otherwise="see: vfio-harness list cases")
        raise NoCase(f"no case matches {what}", hint=hint)

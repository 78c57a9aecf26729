# SPDX-License-Identifier: GPL-2.0-only
"""Test commits one after the other on this host, or several at once on a fleet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from harness.bisect.state import Step
from harness.bisect.step import Tester

Test = Callable[[], Step]


def in_order(tester: Tester, tests: Sequence[Test]) -> Iterator[Step]:
    """Yield what *tests* return."""
    if not tester.is_elsewhere or not tests:
        yield from (test() for test in tests)
        return
    pool = ThreadPoolExecutor(len(tests), thread_name_prefix="end")
    try:
        for future in [pool.submit(test) for test in tests]:
            yield future.result()
    finally:
        pool.shutdown(wait=False)


def as_they_end(
    tester: Tester, tests: Mapping[str, Test], left: Callable[[], Collection[str]]
) -> Generator[Step]:
    """Yield what *tests*, by commit, return; those of commits that are not *left* any more are dropped."""
    if not tester.is_elsewhere:
        yield from (test() for test in tests.values())
        return
    pool = ThreadPoolExecutor(len(tests), thread_name_prefix="commit")
    running = {pool.submit(test): commit for commit, test in tests.items()}
    try:
        while running:
            done = wait(running, return_when=FIRST_COMPLETED).done
            # One that failed ends the others.
            for future in sorted(done, key=lambda one: one.exception() is not None):
                del running[future]
                yield future.result()
            still = left() if running else ()
            for future, commit in [one for one in running.items() if one[1] not in still]:
                tester.drop(commit)
                del running[future]
    finally:
        for commit in running.values():
            tester.drop(commit)
        pool.shutdown(wait=False)

# SPDX-License-Identifier: GPL-2.0-only
"""Ledger: accounts for all work that was to run, so that none is missing from the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.base.cause import Cause
from harness.base.outcome import Outcome
from harness.lab.spool import Spool
from harness.results.model import Result
from harness.suites.model import Work


class Ledger:
    """Which work of a run still needs a Result, and the unreported Results that processes left."""

    def __init__(self, work: Iterable[Work], run_dir: Path) -> None:
        self._work = {one.key: one for one in work}
        self._spool = Spool(run_dir)
        self._waiting: dict[str, Work] = {}
        self._reported: set[str] = set()
        self._expected = False
        """Whether it is known which work was selected."""

    def leftovers(self) -> tuple[Result, ...]:
        """Return the Results that an earlier part of the run left, if it was killed."""
        return tuple(result for one in self._work.values() for result in self._spool.take(one))

    def expect(self, work: Iterable[Work]) -> None:
        """Wait for *work*, if it was not reported: a worker that replaces a dead one names all work again."""
        self._expected = True
        self._waiting |= {one.key: one for one in work if one.key not in self._reported}

    def reported(self, work: Work) -> None:
        """Note that the Results of *work* are recorded."""
        self._reported.add(work.key)
        self._waiting.pop(work.key, None)
        self._spool.drop(work)

    def keep(self, work: Work, results: Sequence[Result]) -> None:
        """Keep *results* of *work*, which is tried once more, should that end this process."""
        self._spool.keep(work, self.with_kept(work, results))

    def with_kept(self, work: Work, results: Sequence[Result]) -> tuple[Result, ...]:
        """Return *results* of *work* after those that were kept of a worker which died since."""
        return (*(one for one in self._spool.take(work) if one not in results), *results)

    def lost(
        self, work: Work, reason: str, cause: Cause, outcome: Outcome = Outcome.LOST
    ) -> tuple[Result, ...]:
        """Return the Results of *work* whose process failed; none if it was reported before."""
        if self._waiting.pop(work.key, None) is None:
            return ()
        return (*self._spool.take(work), _without_attempt(work, outcome, reason, cause))

    def unreported(self, *, interrupted: bool) -> Iterator[Result]:
        """Yield the Results of all work that was not reported by the end of the run."""
        # An interrupt may come before it is known which work was selected.
        waiting = self._work if interrupted and not self._expected else self._waiting
        for work in waiting.values():
            unknown = _without_attempt(work, Outcome.NOT_RUN, "the run stopped before it", Cause.STOPPED)
            yield from self._spool.take(work) or (unknown,)


def _without_attempt(work: Work, outcome: Outcome, reason: str, cause: Cause) -> Result:
    return Result(address=work.address_of(), job=work.job, outcome=outcome, reason=reason, cause=cause)

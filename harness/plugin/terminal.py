# SPDX-License-Identifier: GPL-2.0-only
"""pytest's terminal output without tracebacks for interrupts and for pytest's internal errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from harness.base.errors import HarnessError

TROUBLE_FILE = "pytest-trouble.txt"
"""File in the run's directory for the traceback of an internal error of pytest."""


class Reporter(TerminalReporter):  # type: ignore[misc]  # final, but nothing else can replace it
    """pytest's reporter that says in one line why a run ended early."""

    def __init__(self, config: pytest.Config, run_dir: Path) -> None:
        super().__init__(config)
        self._run_dir = run_dir
        self._why = "interrupted"

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note the reason; pytest would parse our sources for a traceback, and may fail at that."""
        self._why = str(excinfo.value) or "interrupted"

    def _report_keyboardinterrupt(self) -> None:
        self.write_sep("!", self._why)

    def pytest_internalerror(
        self, excrepr: object, excinfo: pytest.ExceptionInfo[BaseException] | None = None
    ) -> bool:
        """Report the internal error in one line, and keep its traceback in the run's directory."""
        text = str(excrepr)
        said = next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
        if excinfo is not None and isinstance(excinfo.value, HarnessError):
            said = str(excinfo.value)
        path = self._run_dir / TROUBLE_FILE
        try:
            path.write_text(f"{text}\n", encoding="utf-8")
            where = f"; see {path}"
        except OSError:
            where = ""
        self.write_line(f"the tests were stopped: {said.strip()}{where}", red=True)
        return True


def replace(config: pytest.Config, run_dir: Path) -> None:
    """Make a Reporter the reporter of *config*."""
    manager = config.pluginmanager
    before = manager.get_plugin("terminalreporter")
    if before is not None:
        manager.unregister(before)
        reporter = Reporter(config, run_dir)
        reporter.showfspath = before.showfspath
        manager.register(reporter, "terminalreporter")

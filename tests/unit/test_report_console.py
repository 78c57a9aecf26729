# SPDX-License-Identifier: GPL-2.0-only
"""The report on a terminal."""

from __future__ import annotations

import dataclasses
import io

import pytest
from report_sample import EMPTY, GOOD, RESULTS, RUN

from harness.report import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, **environ: str) -> str:
    console.show(RUN, stream, environ=environ)
    return stream.getvalue()


def test_emulation_is_announced_first() -> None:
    """The first line says whether the run was emulated, and by how much timeouts were stretched."""
    assert console.render(RUN).splitlines()[0] == (
        "TCG: emulated without hardware acceleration, timeouts x 10; durations say little"
    )
    assert console.render(GOOD).splitlines()[0] == "accelerated by KVM"
    assert console.render(EMPTY).splitlines()[0] == "accelerator not recorded"


def test_a_failure_has_all_one_needs() -> None:
    """Each failure shows what, where, why, its log and the command to run it again."""
    told = console.render(RUN)
    block = told[told.index("FAIL probes/iommufd") :].split("\n\n")[0].splitlines()
    assert block == [
        "FAIL probes/iommufd/get_pa_unmapped [7.3.4-cdev-edu]",
        "  errno is 22 (EINVAL), want 2 (ENOENT)",
        "  log: runs/20300102-030405-1/vms/0",
        "  rerun: vfio-harness run -k 'get_pa_unmapped and edu'",
    ]


def test_the_worst_comes_first_and_the_verdict_last() -> None:
    """The crash is on top, the table of Jobs follows the failures, and the last line is the verdict."""
    lines = console.render(RUN).splitlines()
    heads = [line.split()[0] for line in lines if "[7.3.4-" in line]
    assert heads == ["CRASH", "TIMEOUT", "FAIL", "FAIL", "ERROR", "XPASS", "LOST", "NOT_RUN"]
    assert lines[-1] == "BAD: 6 cases failed, the worst: CRASH probes/hotplug/unplug_while_open"
    assert "11 cases: 1 CRASH" in lines[-3] + lines[-2]
    assert "the whole run took 1 min 23 s" in lines[-3] + lines[-2]
    assert lines.index(next(line for line in lines if line.startswith("job"))) > 20


def test_a_job_that_could_not_run_is_in_the_table() -> None:
    """A Job without results is not silently absent, and says why."""
    told = console.render(RUN)
    assert "7.3.4-broken-edu" in told
    assert "the build stopped" in told
    assert "no such symbol" in told


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_width_is_kept(width: int) -> None:
    """Nothing is wider than the terminal but paths and commands, which must stay in one piece."""
    for line in console.render(RUN, width=width).splitlines():
        assert len(line) <= width or line.startswith(("  log: ", "  rerun: "))


def test_what_a_guest_prints_is_only_text() -> None:
    """Neither terminal escapes nor rich's markup from a guest take effect."""
    told = console.render(RUN, color=True)
    assert "[red]x[/red]" in told
    assert "\x00" not in told
    assert "\x1b[31ma<b>" not in told


def test_no_color_and_pipes_are_respected() -> None:
    """Colour is for terminals whose user did not refuse it."""
    assert "\x1b[" in shown(Terminal(), TERM="xterm")
    assert "\x1b[" not in shown(Terminal(), TERM="xterm", NO_COLOR="1")
    assert "\x1b[" not in shown(Terminal(), TERM="dumb")
    assert "\x1b[" not in shown(io.StringIO(), TERM="xterm")


def test_no_columns_are_no_width() -> None:
    """A container without a terminal may say so."""
    assert shown(io.StringIO(), COLUMNS="0") == shown(io.StringIO(), COLUMNS="")


def test_an_ascii_stream_gets_ascii() -> None:
    """A console in the C locale gets a readable report, not a UnicodeEncodeError."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console.show(RUN, stream, environ={"COLUMNS": "nonsense"})
    stream.flush()
    assert b"----" in raw.getvalue()


def test_many_failures_are_cut() -> None:
    """A night that went wrong does not fill the screen; the rest is counted."""
    many = tuple(
        dataclasses.replace(
            RESULTS[1], reason=f"{n}", address=dataclasses.replace(RESULTS[1].address, case=f"case{n}")
        )
        for n in range(60)
    )
    told = console.render(dataclasses.replace(RUN, results=many), most=5)
    assert told.count("FAIL probes/") == 5 + 1  # The verdict names one more time.
    assert "... and 55 more, in the other reports" in told


def test_rendering_is_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same Run renders to the same text whatever the environment."""
    before = console.render(RUN)
    for name, value in {"COLUMNS": "20", "NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert console.render(RUN) == before


def test_an_empty_run_says_so() -> None:
    """A run without cases is reported, as what it is."""
    assert console.render(EMPTY).splitlines()[-1] == "INFRASTRUCTURE: nothing was run"

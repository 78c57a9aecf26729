# SPDX-License-Identifier: GPL-2.0-only
"""The KTAP that the guest writes."""

from __future__ import annotations

import io

from guest.ktap import Writer, printable


def test_a_document_has_version_plan_points_and_end() -> None:
    out = io.StringIO()
    writer = Writer(out, plan=4)
    writer.diagnostic("two\nlines")
    writer.ok("a/one")
    writer.ok("a/two", skip="needs edu")
    writer.not_ok("a/three", directive="TIMEOUT after 30s")
    writer.not_ok("a/four")
    writer.end("a/four")
    assert out.getvalue().splitlines() == [
        "KTAP version 1",
        "1..4",
        "# two",
        "# lines",
        "ok 1 a/one",
        "ok 2 a/two # SKIP needs edu",
        "not ok 3 a/three # TIMEOUT after 30s",
        "not ok 4 a/four",
        "# END a/four",
    ]


def test_the_header_goes_out_with_the_first_line() -> None:
    out = io.StringIO()
    writer = Writer(out, plan=1)
    assert out.getvalue() == ""
    writer.ok("a/one")
    assert out.getvalue() == "KTAP version 1\n1..1\nok 1 a/one\n"


def test_an_empty_diagnostic_is_a_bare_hash() -> None:
    out = io.StringIO()
    Writer(out, plan=0).diagnostic("")
    assert out.getvalue().endswith("1..0\n#\n")


def test_control_characters_cannot_forge_a_line() -> None:
    assert printable("a\tb") == "a\tb"
    assert printable("x\rok 1 forged\x1b[2J\x00") == "x\\rok 1 forged\\x1b[2J\\x00"
    out = io.StringIO()
    writer = Writer(out, plan=1)
    writer.ok("a/one", skip="because\nok 2 forged")
    assert out.getvalue().splitlines()[-1] == "ok 1 a/one # SKIP because\\nok 2 forged"

# SPDX-License-Identifier: GPL-2.0-only
"""Fragments are read strictly, merged without a silent winner, and compared with what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import UsageError
from harness.kernel.kconfig import ResolvedConfig, find_fragment, merge, read_fragment, render


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_fragment_values_and_lines(tmp_path: Path) -> None:
    """Every kind of value is read, with its line; comments and blank lines are not settings."""
    lines = ["# words", "", "CONFIG_A=y", "CONFIG_B=m", "# CONFIG_C is not set", "CONFIG_D=0x10"]
    text = "\n".join([*lines, 'CONFIG_E="a b"', "CONFIG_9P=n", ""])
    fragment = read_fragment(write(tmp_path / "x.config", text))
    assert fragment.name == "x"
    assert [(s.symbol, s.value, s.line) for s in fragment.settings] == [
        ("A", "y", 3),
        ("B", "m", 4),
        ("C", "n", 5),
        ("D", "0x10", 6),
        ("E", '"a b"', 7),
        ("9P", "n", 8),
    ]


@pytest.mark.parametrize(
    "line", ["CONFIG_A = y", "A=y", "CONFIG_A=yes", "CONFIG_A=", "# CONFIG_A is unset", "config_a=y"]
)
def test_syntax_error_names_file_and_line(tmp_path: Path, line: str) -> None:
    """A line that is no setting is refused where it stands."""
    path = write(tmp_path / "x.config", f"CONFIG_B=y\n{line}\n")
    with pytest.raises(UsageError, match=r"x\.config:2: ") as caught:
        read_fragment(path)
    assert caught.value.hint


def test_unreadable_fragment_is_a_usage_error(tmp_path: Path) -> None:
    """A fragment that is not there is the user's error, not a traceback."""
    with pytest.raises(UsageError, match="No such file"):
        read_fragment(tmp_path / "none.config")


def test_unknown_shipped_fragment_names_the_nearest(tmp_path: Path) -> None:
    """A misspelt fragment is met with the right spelling."""
    write(tmp_path / "noiommu.config", "")
    with pytest.raises(UsageError) as caught:
        find_fragment(tmp_path, "noiomu")
    assert "noiommu" in (caught.value.hint or "")


def test_conflict_names_both_places(tmp_path: Path) -> None:
    """Two fragments that disagree are an error naming both lines; two that agree are not."""
    one = read_fragment(write(tmp_path / "one.config", "CONFIG_A=y\n"))
    two = read_fragment(write(tmp_path / "two.config", "CONFIG_B=y\n# CONFIG_A is not set\n"))
    assert set(merge([one, one])) == {"A"}
    with pytest.raises(UsageError, match=r"two\.config:2 asks .*one\.config:1 asks"):
        merge([one, two])


def test_render_is_a_fragment_again(tmp_path: Path) -> None:
    """What render writes reads back as the same settings."""
    fragment = read_fragment(write(tmp_path / "x.config", "CONFIG_B=m\n# CONFIG_A is not set\n"))
    text = render(merge([fragment]))
    assert text == "# CONFIG_A is not set\nCONFIG_B=m\n"


@pytest.mark.parametrize(
    ("found", "used"),
    [
        ("CONFIG_RUSTC_VERSION=109500\n", "CONFIG_RUST=y\n"),
        ("CONFIG_PAHOLE_VERSION=125\n", "CONFIG_DEBUG_INFO_BTF=y\n"),
    ],
)
def test_tools_of_the_host_count_where_they_are_used(found: str, used: str) -> None:
    """Else two hosts that differ in nothing that is built could not share a kernel."""
    plain = "CONFIG_VFIO=y\n"
    with_tool, without = ResolvedConfig.parse(plain + found), ResolvedConfig.parse(plain)
    assert (with_tool.digest, with_tool.differing(without)) == (without.digest, frozenset())
    with_tool, without = ResolvedConfig.parse(plain + used + found), ResolvedConfig.parse(plain + used)
    assert with_tool.digest != without.digest
    assert with_tool.differing(without)


def test_resolved_config_digest_ignores_comments() -> None:
    """Only what a .config says counts; off and absent are the same."""
    one = ResolvedConfig.parse("#\n# Linux/x86 7.3.4\n#\nCONFIG_A=y\n# CONFIG_B is not set\n")
    two = ResolvedConfig.parse("CONFIG_A=y\n")
    assert one.digest == two.digest
    assert (one.get("A"), one.get("B"), one.get("C")) == ("y", "n", "n")
    assert not one.modular
    assert ResolvedConfig.parse("CONFIG_A=m\n").modular


def test_difference_counts_symbols() -> None:
    """The nearest build is the one with the fewest differing settings."""
    base = ResolvedConfig.parse("CONFIG_A=y\nCONFIG_B=y\n")
    assert not base.differing(base)
    assert base.differing(ResolvedConfig.parse("CONFIG_A=y\n")) == {"B"}
    assert base.differing(ResolvedConfig.parse("")) == {"A", "B"}

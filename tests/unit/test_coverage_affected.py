# SPDX-License-Identifier: GPL-2.0-only
"""Which cases reach what changed."""

from __future__ import annotations

from harness.results.coverage.affected import Edit, Touched, find_touched, functions_of

BEFORE = "int a;\n\nint f(void)\n{\n\treturn 1;\n}\n\nint g(void)\n{\n\treturn 2;\n}\n"
VFIO = "drivers/vfio/group.c"


def edit(name: str = VFIO, before: str = BEFORE, after: str = BEFORE, lines: tuple[int, ...] = ()) -> Edit:
    return Edit(name=name, texts=(before, after), lines=(lines if before == after else (), lines))


def is_profiled(name: str) -> bool:
    return name.startswith("drivers/vfio/")


def test_a_line_touches_its_function() -> None:
    touched = find_touched([edit(lines=(5,))], is_profiled)
    assert touched.functions == {f"{VFIO}:f"}
    assert touched.reaches([f"{VFIO}:f", "x.c:y"])
    assert not touched.reaches([f"{VFIO}:g"])


def test_what_is_outside_of_functions_touches_the_file() -> None:
    touched = find_touched([edit(lines=(1,))], is_profiled)
    assert touched.reaches([f"{VFIO}:g"])
    assert not touched.reaches(["drivers/vfio/vfio_main.c:g"])


def test_a_comment_or_an_empty_line_outside_of_functions_touches_nothing() -> None:
    after = BEFORE.replace("int a;\n", "int a;\n/* b\n * c\n */\n\n")
    assert functions_of(edit(after=after, lines=(2, 3, 4, 5))) == frozenset()


MACRO = "#define F(size) \\\nint f##size(int *val) \\\n{ \\\n\t*val = size; \\\n\treturn 0; \\\n}\nF(8)\n"


def test_code_that_looks_like_a_comment_touches_the_file() -> None:
    """As VFIO_IOREAD of vfio_pci_rdwr.c has it, and a table with a comment before each value."""
    table = 'int *a[] = {\n/* first */ b,\n"/*", \'"\', // */\n/* second\n */ c,\n};\n'
    for text, line in ((MACRO, 4), (table, 2), (table, 3), (table, 5)):
        assert functions_of(edit(before=text, after=text, lines=(line,))) == {""}
    assert functions_of(edit(before=table, after=table, lines=(4,))) == frozenset()


def test_what_becomes_a_comment_is_touched() -> None:
    lines = BEFORE.splitlines(True)
    hidden = "".join([*lines[:4], "/*\n", lines[4], "*/\n", *lines[5:]])
    assert functions_of(edit(after=hidden, lines=(5, 7))) == {"f"}
    hidden = "".join([*lines[:7], "/*\n", *lines[7:], "*/\n"])
    assert functions_of(edit(after=hidden, lines=(8, 13))) == {"g", ""}


def test_lines_are_those_of_git() -> None:
    """A form feed ends none."""
    assert functions_of(edit(after="/* a */\f/* b */\nint a;\n", lines=(2,))) == {""}


def test_a_function_that_is_gone_is_touched() -> None:
    gone = Edit(name=VFIO, texts=(BEFORE, BEFORE[: BEFORE.index("int g")]), lines=((8, 9, 10, 11), ()))
    assert functions_of(gone) == {"g"}


def test_headers_makefiles_and_uncounted_code_touch_everything() -> None:
    for name in ("drivers/vfio/vfio.h", "drivers/vfio/Kconfig", "Makefile", "kernel/fork.c", "include/x.h"):
        assert name in find_touched([edit(name, lines=(1,))], is_profiled).everything


def test_what_a_build_runs_or_reads_elsewhere_touches_everything() -> None:
    """objtool and resolve_btfids rewrite vmlinux; kernel/bpf includes files of tools/lib/bpf."""
    for name in (
        "tools/objtool/check.c",
        "tools/bpf/resolve_btfids/main.c",
        "tools/bootconfig/main.c",
        "tools/build/Makefile.build",
        "tools/scripts/Makefile.include",
        "tools/Makefile",
        "tools/include/linux/list.h",
        "tools/arch/x86/lib/insn.c",
        "tools/lib/bpf/relo_core.c",
        "arch/x86/lib/x86-opcode-map.txt",
        "scripts/head-object-list.txt",
    ):
        assert name in find_touched([edit(name, lines=(1,))], is_profiled).everything
    unbuilt = [edit(name) for name in ("notes.txt", "tools/perf/Makefile", "drivers/gpu/drm/i915/TODO.txt")]
    assert find_touched(unbuilt, is_profiled) == Touched()


def test_documentation_touches_nothing_and_a_selftest_its_suite() -> None:
    touched = find_touched(
        [
            edit("Documentation/driver-api/vfio.rst"),
            edit("tools/testing/selftests/vfio/a.c"),
            edit(".mailmap"),
        ],
        is_profiled,
    )
    assert (touched.functions, touched.suites, touched.everything) == (frozenset(), frozenset({"vfio"}), "")


def test_what_selftests_share_touches_the_suites_of_all() -> None:
    for name in (
        "tools/testing/selftests/kselftest_harness.h",
        "tools/testing/selftests/lib.mk",
    ):
        touched = find_touched([edit(name, lines=(1,))], is_profiled)
        assert touched.has_suite("vfio"), name
        assert touched.has_suite("iommu"), name
        assert not touched.has_suite(None), name
        assert (touched.functions, touched.everything) == (frozenset(), "")
    other = find_touched([edit("tools/perf/perf.c"), edit("tools/testing/selftests/net/a.c")], is_profiled)
    assert not other.has_suite("vfio")

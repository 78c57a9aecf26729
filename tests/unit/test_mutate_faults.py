# SPDX-License-Identifier: GPL-2.0-only
"""Which faults are found in C, and what they make of it."""

from __future__ import annotations

import pytest

from harness.mutate.faults import Fault, Kind, find_faults


def faults(body: str, kind: Kind | None = None) -> list[str]:
    """Return the body of each faulty version of a function with *body*."""
    source = f"static int work(struct thing *t)\n{{\n{body}\n}}\n"
    found = [fault for fault in find_faults("work.c", source) if kind in (None, fault.kind)]
    return [fault.apply(source).split("{\n", 1)[1].rsplit("\n}", 1)[0] for fault in found]


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (Kind.NEGATED, "if (a == b)\n\tf();", ["if (!(a == b))\n\tf();"]),
        (Kind.NEGATED, "if (!a)\n\tf();", ["if (a)\n\tf();"]),
        (Kind.NEVER, "if (a)\n\tf();", ["if ((a) && 0)\n\tf();"]),
        (Kind.ALWAYS, "return a ? b : c;", ["return (a) || 1 ? b : c;"]),
        (Kind.ALWAYS, "while (a)\n\tf();", []),
        (Kind.UNCHECKED, "if (a)\n\treturn 1;", ["if ((a) && 0)\n\treturn 1;"]),
        (Kind.UNCHECKED, "if (a) {\n\tf();\n\tgoto out;\n}", ["if ((a) && 0) {\n\tf();\n\tgoto out;\n}"]),
        (Kind.UNCHECKED, "x = a || b;", ["x = ((a) && 0) || b;", "x = a || ((b) && 0);"]),
        (Kind.UNCHECKED, "x = a && a->b;", ["x = a && ((a->b) || 1);"]),
        (Kind.ERRNO, "return -EBUSY;", ["return -EINVAL;"]),
        (Kind.ERRNO, "return -EINVAL;", ["return -EIO;"]),
        (Kind.ERRNO, "return -count;", []),
        (Kind.BOUND, "x = a < b;", ["x = a <= b;"]),
        (Kind.BOUND, "x = a + b - 1;", ["x = a + b - 0;"]),
        (Kind.REMOVED, "x = 1;", ["{ }"]),
        (Kind.REMOVED, "if (a)\n\tf(a);", ["if (a)\n\t{ }"]),
        (Kind.REMOVED, "int x = 1;", []),
        (Kind.REMOVED, "lockdep_assert_held(&t->lock);", []),
        (Kind.FLAG, "f(RDWR_FLAG | OTHER_FLAG);", ["f(0 | OTHER_FLAG);", "f(RDWR_FLAG | 0);"]),
        (Kind.FLAG, "x = a | b;", []),
        (Kind.UNLOCKED, "mutex_lock(&l);\nx = 1;\nmutex_unlock(&l);", ["{ }\nx = 1;\n{ }"]),
        (Kind.UNLOCKED, "guard(mutex)(&l);\nx = 1;", ["{ }\nx = 1;"]),
        (Kind.UNLOCKED, "mutex_unlock(&l);", []),
        (
            Kind.NARROWED,
            "mutex_lock(&l);\nx = 1;\ny = 2;\nmutex_unlock(&l);",
            [
                "x = 1;\nmutex_lock(&l);\ny = 2;\nmutex_unlock(&l);",
                "mutex_lock(&l);\nx = 1;\nmutex_unlock(&l);\ny = 2;",
            ],
        ),
    ],
)
def test_fault(kind: Kind, body: str, expected: list[str]) -> None:
    """Each kind, and what is none of it."""
    assert faults(body, kind) == expected


def test_no_fault_is_planted_twice() -> None:
    """A guard() is a lock and a call; what comes after it keeps its number among the same ones."""
    body = "guard(mutex)(&l);\nif (a || b)\n\tf();\nguard(mutex)(&l);"
    every = faults(body)
    assert len(every) == len(set(every))
    assert len(faults(body, Kind.UNLOCKED)) == 2
    assert faults(body, Kind.REMOVED) == [body.replace("f();", "{ }")]


def test_locks_are_never_taken_without_a_release() -> None:
    """A kernel that deadlocks at once says nothing about the cases."""
    body = "mutex_lock(&l);\nx = 1;\nmutex_unlock(&l);"
    assert "\nx = 1;\nmutex_unlock(&l);" not in faults(body, Kind.REMOVED)


SOURCE = """\
int one(void)
{
	return -EBUSY;
}

int *two(int a)
{
	if (a)
		return 0;
	return 1;
}
"""


def found_in(source: str) -> dict[str, Fault]:
    return {fault.id: fault for fault in find_faults("a.c", source)}


def test_ids_outlive_a_change_elsewhere() -> None:
    """A user's file of equivalent faults names them."""
    moved = found_in("/* new */\n" + SOURCE.replace("return -EBUSY;", "return -EPERM;"))
    kept = [fault for fault in found_in(SOURCE).values() if fault.function == "two"]
    assert kept
    assert all(moved[fault.id].line == fault.line + 1 for fault in kept)


def test_the_same_change_twice_in_a_function_has_two_ids() -> None:
    source = "int f(int a)\n{\n\tif (a)\n\t\treturn 1;\n\tif (a)\n\t\treturn 1;\n\treturn 0;\n}\n"
    assert len(found_in(source)) == len(find_faults("a.c", source)) == 4


def test_only_wanted_functions_and_lines() -> None:
    assert {f.function for f in find_faults("a.c", SOURCE, lambda name, _: name == "one")} == {"one"}
    assert {f.line for f in find_faults("a.c", SOURCE, lambda _, line: line == 8)} == {8}


def test_diff_is_a_patch() -> None:
    first = find_faults("dir/a.c", SOURCE)[0]
    lines = first.diff(SOURCE).splitlines()
    assert lines[:2] == ["--- a/dir/a.c", "+++ b/dir/a.c"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-\treturn -EBUSY;", "+\treturn -EINVAL;"]


def test_letters_outside_ascii_move_nothing() -> None:
    """The syntax tree counts bytes, Python letters."""
    source = "/* \u00e4\u20ac */\n" + SOURCE
    assert "-EINVAL" in find_faults("a.c", source)[0].apply(source)


def test_code_that_cannot_be_parsed_is_left_alone() -> None:
    assert find_faults("a.c", "int f(void)\n{\n\tif (a ==== b)\n\t\treturn 1;\n}\n") == []


@pytest.mark.parametrize(
    "macro",
    [
        "minsz = offsetofend(struct vfio_device_bind_iommufd, out_devid);",
        "list_for_each_entry(p, &t->l, next) {\n\tuse(p);\n}",
    ],
)
def test_macro_that_is_no_expression_hides_no_other_code(macro: str) -> None:
    """The grammar has an error there; before and after it faults are found."""
    check = "if (a)\n\treturn -EPERM;"
    assert f"if (a)\n\treturn -EINVAL;\n{macro}\nb();" in faults(f"{check}\n{macro}\nb();")
    assert f"{check}\n{macro}\n{{ }}" in faults(f"{check}\n{macro}\nb();", Kind.REMOVED)
    assert f"{macro}\n{check.replace('a', '(a) && 0', 1)}" in faults(f"{macro}\n{check}", Kind.UNCHECKED)
    assert not [body for body in faults(macro) if "offsetofend" not in body and "list_for" not in body]

# SPDX-License-Identifier: GPL-2.0-only
"""How cases are declared and found, and the checks that a running case has."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from guest import case as case_module
from guest.case import BadCase, Case, Failure, Skip, Test, case, discover
from guest.kmsg import KernelLog

ADDRESS = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    discover()  # modules are imported only once: do it before the registry is replaced
    monkeypatch.setattr(case_module, "_registry", dict(case_module._registry))


@pytest.fixture(name="t")
def _test() -> Test:
    def nothing(_: Test) -> None:
        """Nothing."""

    declared = Case(
        module="m", name="n", needs=(), cites="c", timeout=1, fresh=False, destructive=False,
        promise="p", path=__file__, lineno=1, function=nothing,
    )  # fmt: skip
    return Test(declared, features=frozenset({"edu"}), seed=7, kmsg=KernelLog())


def test_every_shipped_case_is_complete_and_found_in_order() -> None:
    cases = discover()
    assert len(cases) >= 45
    assert [(one.module, one.lineno) for one in cases] == sorted((one.module, one.lineno) for one in cases)
    for one in cases:
        assert ADDRESS.fullmatch(one.address), one.address
        assert one.promise.endswith("."), one.address
        assert Path(one.path).is_file(), one.address
        assert 0 < one.timeout <= 120, one.address
    assert len({one.address for one in cases}) == len(cases)


def test_no_case_needs_a_thing_and_its_absence() -> None:
    for one in discover():
        assert not {need for need in one.needs if f"!{need}" in one.needs}, one.address


def test_the_decorator_keeps_the_function_and_its_metadata() -> None:
    @case(needs=("edu", "!viommu"), cites="drivers/vfio/x.c f()", timeout=5, fresh=True)
    def a_promise(t: Test) -> None:
        """One sentence,
        on two lines.

        And what is not part of it."""

    declared = case_module._registry["test_guest_case/a_promise"]
    assert declared.function is a_promise
    assert declared.promise == "One sentence, on two lines."
    assert (declared.timeout, declared.fresh) == (5, True)
    assert declared.path == __file__
    assert declared.unmet(frozenset({"viommu"})) == ("edu", "!viommu")


def test_fresh_comes_first_and_destructive_last() -> None:
    for turn, arguments in enumerate(({"fresh": True}, {}, {"destructive": True})):
        _declare(**arguments)
        assert case_module._registry["test_guest_case/promised"].turn == turn


def _declare(**arguments: object) -> None:
    def promised(t: Test) -> None:
        """A promise."""

    options: dict[str, object] = {"cites": "a.c f()", **arguments}
    case(**options)(promised)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"needs": ("eduu",)}, "unknown feature 'eduu' .did you mean 'edu'"),
        ({"needs": ("!nothing-like-it",)}, "unknown feature"),
        ({"needs": "edu"}, "a comma is missing"),
        ({"cites": " "}, "cites nothing"),
        ({"timeout": 0}, "positive number of seconds"),
        ({"fresh": True, "destructive": True}, "a destructive case comes last"),
    ],
)
def test_a_wrong_declaration_is_an_error_at_import(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadCase, match=message):
        _declare(**arguments)


def test_a_case_without_a_promise_is_an_error() -> None:
    def silent(t: Test) -> None:
        pass

    with pytest.raises(BadCase, match="no promise"):
        case(cites="a.c f()")(silent)


def test_a_name_can_be_used_once() -> None:
    def twin(t: Test) -> None:
        """First."""

    case(cites="a.c f()")(twin)

    def other(t: Test) -> None:
        """Second."""

    other.__name__ = "twin"
    with pytest.raises(BadCase, match="the name is taken by line"):
        case(cites="a.c f()")(other)


def test_checks_fail_in_one_line(t: Test) -> None:
    t.check(1, "fine")
    t.equal(4096, 4096, "a page")
    with pytest.raises(Failure, match=r"^a page: want 0x1000, got 0x2000$"):
        t.equal(0x2000, 0x1000, "a page")
    with pytest.raises(Failure, match=r"^wrong$"):
        t.check([], "wrong")
    with pytest.raises(Skip, match="not here"):
        t.skip("not here")


def test_errno_wants_the_very_errno(t: Test) -> None:
    t.errno(errno.ENOENT, os.stat, "/does/not/exist")
    t.errno((errno.EPERM, errno.ENOENT), os.stat, "/does/not/exist")
    with pytest.raises(Failure, match=r"stat: want EOPNOTSUPP \(95\), got ENOENT \(2\)"):
        t.errno(errno.EOPNOTSUPP, os.stat, "/does/not/exist")
    with pytest.raises(Failure, match=r"want EPERM \(1\), but it succeeded"):
        t.errno(errno.EPERM, os.getpid)


def test_the_seed_decides_every_random_choice(t: Test) -> None:
    again = Test(t.case, features=t.features, seed=7, kmsg=KernelLog())
    assert [t.random.random() for _ in range(3)] == [again.random.random() for _ in range(3)]


def test_in_child_brings_back_results_and_failures(t: Test) -> None:
    assert t.in_child(lambda: [1, "two"]) == [1, "two"]
    with pytest.raises(Failure, match=r"^x: want 1, got 2$"):
        t.in_child(lambda: t.equal(2, 1, "x"))
    with pytest.raises(Failure, match="ZeroDivisionError"):
        t.in_child(lambda: 1 // 0)
    with pytest.raises(Failure, match="without a result"):
        t.in_child(lambda: os._exit(3))

# SPDX-License-Identifier: GPL-2.0-only
"""Kernels built in the background: who waits gets the kernel, or the reason why there is none."""

from __future__ import annotations

import errno
import queue
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree, needs_build_tools

from harness.base.cause import Cause
from harness.base.errors import (
    BuildError,
    DeadlinePassed,
    HarnessError,
    InfraError,
    KernelError,
    NotApplicable,
    SourceError,
    UsageError,
)
from harness.base.locks import locked
from harness.kernel.pending import note_failure, notes_in, wait_for_kernel
from harness.kernel.plan import KernelPlan, plan_kernel
from harness.kernel.provide import build_kernel
from harness.kernel.store import Built, source_lock
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
from harness.session.builder import building

pytestmark = needs_build_tools

Told = queue.Queue[tuple[str, Built | HarnessError]]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return make_fake_tree(tmp_path / "linux")


def plan(source: Path, name: str = "group-cdev") -> KernelPlan:
    return plan_kernel(open_tree(str(source)), load_catalogue().variant(name))


def builder(told: Told, run_dir: Path, *plans: KernelPlan) -> AbstractContextManager[None]:
    def note(plan: KernelPlan, came_of_it: Built | HarnessError, seconds: float) -> None:
        assert seconds >= 0
        told.put((plan.variant.name, came_of_it))

    return building(plans, run_dir, compilers=1, finished=note)


def test_who_waits_gets_the_kernel(source: Path, tmp_path: Path) -> None:
    """Kernels come one after the other, in the order given."""
    told: Told = queue.Queue()
    plans = plan(source, "group-cdev"), plan(source, "cdev")
    with builder(told, tmp_path, *plans):
        built = [wait_for_kernel(one.key, tmp_path) for one in reversed(plans)]
    assert [one.digest for one in built] == [plans[1].key, plans[0].key]
    assert all(one.vmlinux.is_file() for one in built)
    assert [told.get_nowait()[0] for _ in plans] == ["group-cdev", "cdev"]


def test_failure_reaches_who_waits(source: Path, tmp_path: Path) -> None:
    """A kernel that does not compile is told to all, and the next one is built all the same."""
    told: Told = queue.Queue()
    good = plan(source)
    (source / "init" / "main.c").write_text("void start(void) { wrong }\n", encoding="utf-8")
    bad = plan(source)
    with builder(told, tmp_path, bad):
        for _ in range(2):
            with pytest.raises(BuildError, match="'wrong' undeclared") as caught:
                wait_for_kernel(bad.key, tmp_path)
            assert caught.value.cause is Cause.COMPILER
    assert isinstance(told.get_nowait()[1], BuildError)
    assert good.key != bad.key


def test_a_failure_of_an_earlier_part_of_the_run_is_forgotten(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on builds again what an out-of-memory killer ended, and who waits gets it."""

    def killed(*_: object, **__: object) -> None:
        raise InfraError("the compiler was killed")

    wanted = plan(source)
    with monkeypatch.context() as once:
        once.setattr("harness.session.builder.build_kernel", killed)
        with builder(queue.Queue(), tmp_path, wanted), pytest.raises(InfraError, match="was killed"):
            wait_for_kernel(wanted.key, tmp_path)
    with builder(queue.Queue(), tmp_path, wanted):
        assert wait_for_kernel(wanted.key, tmp_path).digest == wanted.key


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        (BuildError("x", log="whole"), BuildError, Cause.COMPILER),
        (NotApplicable("x"), NotApplicable, Cause.KCONFIG),
        (KernelError("x", hint="h"), KernelError, None),
        (SourceError("x"), SourceError, Cause.SOURCE),
        (InfraError("x", cause=Cause.HOST), InfraError, Cause.HOST),
        (UsageError("x"), InfraError, None),
    ],
)
def test_failure_keeps_its_class_and_cause(
    error: HarnessError, kind: type[HarnessError], cause: Cause | None, tmp_path: Path
) -> None:
    """A waiting process raises what the build raised; anything unexpected is the host's trouble."""
    notes = notes_in(tmp_path)
    notes.mkdir()
    note_failure(notes, "digest", error)
    with pytest.raises(kind) as caught:
        wait_for_kernel("digest", tmp_path)
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint, caught.value.cause) == ("x", error.hint, cause)


def test_a_wait_can_be_given_up(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a kernel past the deadline of the run does not wait for the end of its build."""
    done = threading.Event()
    monkeypatch.setattr("harness.session.builder.build_kernel", lambda *_, **__: done.wait(20))

    def check() -> None:
        raise DeadlinePassed("too late")

    wanted = plan(source)
    with builder(queue.Queue(), tmp_path, wanted):
        with pytest.raises(DeadlinePassed):
            wait_for_kernel(wanted.key, tmp_path, check)
        done.set()


def test_builder_that_cannot_even_note_its_failure_lets_nobody_wait(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk a build fails, and so does saying so."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("harness.session.builder.build_kernel", full)
    monkeypatch.setattr("harness.kernel.pending.note_failure", full)
    with builder(queue.Queue(), tmp_path, plan(source), plan(source, "cdev")):
        for name in ("group-cdev", "cdev"):
            with pytest.raises(InfraError, match="is not being built"):
                wait_for_kernel(plan(source, name).key, tmp_path)


def test_nobody_waits_for_ever(source: Path, tmp_path: Path) -> None:
    """Without a builder at work a kernel that is not there is trouble, and one that is there is had."""
    wanted = plan(source)
    with pytest.raises(InfraError, match="is not being built"):
        wait_for_kernel(wanted.key, tmp_path)
    build_kernel(wanted, compilers=1)
    assert wait_for_kernel(wanted.key, tmp_path).digest == wanted.key


def test_what_another_process_built_costs_nothing(source: Path, tmp_path: Path) -> None:
    """Only who built a kernel is charged for it."""
    told: Told = queue.Queue()
    (source / "hook.mk").write_text(
        "HOOK := i=0; while [ $$i -lt 300000 ]; do i=$$((i+1)); done\n", encoding="utf-8"
    )
    wanted = plan(source)
    for is_new in (True, False):
        with builder(told, tmp_path, wanted):
            _, built = told.get(timeout=30)
        assert isinstance(built, Built)
        assert built.is_new is is_new
        assert built.build_cpu_seconds > 0
        assert built.spent_cpu_seconds == (built.build_cpu_seconds if is_new else 0)


@pytest.mark.parametrize("held", ["kernel", "source"])
def test_end_of_the_block_stops_waiting_for_another_builder(source: Path, tmp_path: Path, held: str) -> None:
    """Another process may be half an hour at the kernel that nobody here waits for any more."""
    wanted = plan(source)
    name = wanted.key if held == "kernel" else source_lock(wanted.tree.path)
    ended = threading.Event()

    def begin_and_end() -> None:
        with builder(queue.Queue(), tmp_path, wanted):
            time.sleep(0.3)
        ended.set()

    with locked(name, "never waits"):
        threading.Thread(target=begin_and_end, daemon=True).start()
        assert ended.wait(10)
    assert not wanted.cached


def test_end_of_the_block_stops_the_build(source: Path, tmp_path: Path) -> None:
    """Nobody waits for a build whose tests are over: make is stopped, and nothing is told of its kernel."""
    told: Told = queue.Queue()
    (source / "hook.mk").write_text("HOOK := sleep 60\n", encoding="utf-8")
    began = time.monotonic()
    with builder(told, tmp_path, plan(source)):
        while not list((tmp_path / "cache").rglob("mark*")) and time.monotonic() < began + 2:
            time.sleep(0.05)
    assert time.monotonic() - began < 20
    assert told.empty()
    assert not [thread for thread in threading.enumerate() if thread.name == "builder"]

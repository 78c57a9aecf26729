# SPDX-License-Identifier: GPL-2.0-only
"""A finished kernel in a run: how it is asked for, repeated, resumed, and refused for a job."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import pytest
import session_values as values
from kernel_fake_ready import good_config, make_build
from test_session_reruns import asked_by

from harness.base import process
from harness.base.errors import GIT_ABORT, ExitCode, KernelError, NotApplicable, UsageError
from harness.kernel.arch import ARCHES, Arch, host_arch
from harness.kernel.store import kernel_entry
from harness.kernel.toolchain import Toolchain, ToolchainIdentity
from harness.kernel.trees import KernelTree, TreeKind
from harness.session import pipeline, planning
from harness.session.jobs import make_job
from harness.session.planning import PlannedKernel, cell_of, plan_wished_kernel, runnable, take_ready
from harness.session.wishes import (
    Conduct,
    JobWish,
    KernelWish,
    MachineWish,
    ReadyWish,
    load_wishes,
    save_wishes,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def taken(path: Path, config: str | None = None) -> KernelWish:
    make_build(path, config)
    return take_ready(KernelWish(variant="", ready=ReadyWish(kernel=str(path))))


def wish_for(kernel: KernelWish, topology: str = "edu-igb") -> JobWish:
    machine = MachineWish(topology=topology, accel="tcg")
    return JobWish(kernel=kernel, machine=machine, suites=("probes",))


def test_it_is_what_it_is(tmp_path: Path) -> None:
    """Variant and add-ons are read from it; a product of variants has it once."""
    kernel = taken(tmp_path / "O")
    assert (kernel.variant, kernel.addons, kernel.tree, kernel.trees) == ("group-cdev", (), None, ())
    assert kernel.of("cdev") == kernel
    assert kernel.line == str(tmp_path / "O")
    planned = plan_wished_kernel(None, kernel, with_selftests=True)
    assert planned.is_built
    assert planned.selftests is None
    record = planned.record("edu", None)
    assert (record.name, record.line) == ("7.3.4-group-cdev-edu", str(tmp_path / "O"))
    assert record.cell == cell_of(wish_for(kernel, "edu"))


def test_a_rerun_names_the_copy_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very kernel is run again, though the file has changed; its results are of the same line."""
    kernel = taken(tmp_path / "O")
    assert kernel.ready is not None
    words = shlex.join(["vfio-harness", "run", *wish_for(kernel).options()])
    make_build(tmp_path / "O", build_id=b"\x34" * 20)
    ((again),) = asked_by(words, monkeypatch)["request"].wishes
    assert again == wish_for(kernel)


def test_a_resumed_run_has_the_copy_in_the_store(tmp_path: Path) -> None:
    """What is saved of a run names the store, and the selftests by their commit."""
    kernel = dataclasses.replace(taken(tmp_path / "O"), selftests="/src@topic")
    save_wishes(tmp_path, [wish_for(kernel)], Conduct())
    ((found,), _) = load_wishes(tmp_path)
    assert found.kernel == kernel
    assert found.kernel.trees == ("/src@topic",)


def test_a_kernel_that_was_pruned(tmp_path: Path) -> None:
    """A resumed run says what is missing."""
    kernel = taken(tmp_path / "O")
    assert kernel.ready is not None
    entry = kernel_entry(kernel.ready.digest)
    entry.rename(entry.with_name("gone"))
    planned = plan_wished_kernel(None, kernel, with_selftests=False)
    assert "is not in the store any more" in str(planned.problem)


TESTS = KernelTree(
    path=Path("/cache/7.4"),
    kind=TreeKind.REF,
    version="7.4.0",
    identity="i",
    config_identity="c",
    selftest_identity="abcdef0123",
    label="topic (abc)",
    repository=Path("/src"),
    commit="fedcba",
)


def test_selftests_of_another_tree(tmp_path: Path) -> None:
    """They have a history of their own by their content, and a rerun names their commit."""
    kernel = KernelWish(tree="debian:7.3", variant="cdev", selftests="/src@topic")
    planned = PlannedKernel(wish=kernel, tree=None, tests=TESTS)
    record = planned.record("edu", None)
    assert record.line == "debian:7.3 with selftests of /src@topic"
    assert record.cell == PlannedKernel(wish=kernel, tree=None).record("edu", None).cell
    assert planned.pinned.selftests == "/src@fedcba"
    assert kernel.options() == [
        *("--tree", "debian:7.3", "--variant", "cdev", "--selftests"),
        "/src@topic",
    ]


def test_a_toolchain_compiles_the_selftests_of_a_finished_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the one of --toolchain, whatever the kernel was built with; a rerun repeats it."""
    asked = []

    def installed(_arch: Arch, toolchain: Toolchain) -> tuple[Toolchain, ToolchainIdentity]:
        asked.append(toolchain.name)
        return toolchain, ToolchainIdentity(compiler=toolchain.name, linker="")

    monkeypatch.setattr("harness.kernel.provide.installed_toolchain", installed)
    kernel = dataclasses.replace(taken(tmp_path / "O"), selftests="/src@topic", toolchain="llvm-19")
    planned = plan_wished_kernel(None, kernel, tests=TESTS, with_selftests=True, build=False)
    assert (planned.problem, planned.uncounted, asked) == (None, True, ["llvm-19"])
    assert kernel.options()[2:] == ["--selftests", "/src@topic", "--toolchain", "llvm-19"]


def test_suites_without_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Upstream's selftests are left out, and that is said; asked for by name they are refused."""
    kernel = taken(tmp_path / "O")
    suites = ("probes", "kselftest:vfio")
    assert runnable(kernel, suites) == ("probes",)
    assert "kselftest:vfio: a finished kernel comes without the source" in capsys.readouterr().err
    assert runnable(dataclasses.replace(kernel, selftests="/src"), suites) == suites
    with pytest.raises(UsageError, match="--selftests TREE"):
        runnable(kernel, suites, strict=True)
    with pytest.raises(UsageError, match="--selftests TREE"):
        runnable(kernel, ("kselftest:vfio",))


def test_memory_that_the_kernel_needs(tmp_path: Path) -> None:
    """A large kernel gets more by default, and --memory below that is refused."""
    make_build(tmp_path / "O", good_config(KASAN="y"), memory=2000 << 20)
    kernel = take_ready(KernelWish(variant="", ready=ReadyWish(kernel=str(tmp_path / "O"))))
    planned = plan_wished_kernel(None, kernel, with_selftests=False)
    topology = values._topology("edu")
    wish = wish_for(kernel, "edu")
    assert make_job(planned, wish, topology).memory_mib > 2000 * 8 // 7
    small = dataclasses.replace(wish, machine=dataclasses.replace(wish.machine, memory=1024))
    with pytest.raises(UsageError, match="--memory 1024: this kernel needs 2"):
        make_job(planned, small, topology)


def plan_of(kernel: KernelWish, run_dir: Path, *topologies: str) -> pipeline.PlannedRun:
    asked = values.request(*(wish_for(kernel, name) for name in topologies))
    return pipeline.plan(values.checked(run_dir, asked), expect=False)


def test_a_topology_out_of_reach_is_recorded_as_not_applicable(tmp_path: Path) -> None:
    """The other topologies run; a run of that one alone is refused."""
    kernel = taken(tmp_path / "O", good_config(AMD_IOMMU="n"))
    planned = plan_of(kernel, tmp_path / "run", "edu", "iommu-amd")
    assert [job.topology.name for job in planned.jobs.values()] == ["edu"]
    (refused,) = planned.refused
    record = planned.record(refused, None)
    assert not record.applicable
    assert "CONFIG_AMD_IOMMU is n" in record.problem
    with pytest.raises(NotApplicable, match="CONFIG_AMD_IOMMU is n"):
        plan_of(kernel, tmp_path / "run", "iommu-amd")


def test_a_kernel_that_no_guest_can_use(tmp_path: Path) -> None:
    """It is untestable, whatever the topology."""
    kernel = taken(tmp_path / "O", good_config(VIRTIO_PCI="n"))
    with pytest.raises(KernelError, match=r"CONFIG_VIRTIO_PCI is n .*base\.config:\d+") as caught:
        plan_of(kernel, tmp_path / "run", "edu", "igb")
    assert not isinstance(caught.value, NotApplicable)


def harness(*words: str) -> process.Completed:
    return process.run([sys.executable, "-m", "harness", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "--kernel", "{0}", "--variant", "cdev"), "which nothing is built for: leave --variant out"),
        (("run", "--kernel", "{0}", "--tree", "."), "leave --tree out"),
        (("run", "--kernel", "{0}", "--with", "debug"), "leave --with out"),
        (("run", "--kernel", "{0}", "--config", "x"), "leave --config out"),
        (("run", "--kernel", "{0}", "--toolchain", "llvm"), "leave --toolchain out"),
        (("run", "--kernel", "{0}", "--series", "x"), "leave --series out"),
        (("shell", "--kernel", "{0}", "--tree", "."), "leave --tree out"),
        (("matrix", "smoke", "--kernel", "{0}", "--tree", "."), "leave --tree out"),
        (("run", "--modules", "."), "there is no --kernel to go with: leave --modules out"),
        (("matrix", "smoke", "--kernel-config", "{0}/.config"), "leave --kernel-config out"),
        (("run", "--kernel", "{0}", "--modules", "/nonexistent"), "there is no directory /nonexistent"),
        (("run", "--kernel", "{0}", "--kernel-config", "/nonexistent"), "cannot read /nonexistent: No such"),
        (("run", "--kernel", "{0}", "--suite", "kselftest:vfio"), "give a source for them: --selftests TREE"),
        (("run", "--kernel", "{0}", "--selftests", "/nonexistent"), "there is no kernel tree '/nonexistent'"),
        (("run", "--kernel", "{0}", "--case", "kselftest:vfio/*"), "no case"),
        (("bisect", "--kernel", "{0}"), "a bisect builds each commit that it tests"),
        (("bisect-step", "--kernel", "{0}"), "a bisect builds each commit that it tests"),
        (("build", "--kernel", "{0}"), "No such option '--kernel'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_words(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """One sentence and exit code 2, or git's."""
    build = make_build(tmp_path / "O")
    done = harness(*(word.format(build) for word in words))
    assert done.status == (GIT_ABORT if words[0] == "bisect-step" else ExitCode.USAGE), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_matrix_has_it_once_on_each_topology(tmp_path: Path) -> None:
    """With the suites that the matrix runs there, for whatever variant."""
    build = make_build(tmp_path / "O")
    done = harness("matrix", "nightly", "--kernel", str(build), "--accel", "tcg", "--plan", "--json")
    assert done.status == 0, done.stderr
    names = [line for line in done.stdout.splitlines() if '"name": "7.3.4-group-cdev-' in line]
    assert len(names) == len(set(names)) == 12
    assert '"fate": "in the store"' in done.stdout
    assert "kselftest:vfio, kselftest:iommu: a finished kernel" in done.stderr


def test_kernels_that_were_handed_in_are_listed(tmp_path: Path) -> None:
    """With where they came from."""
    kernel = taken(tmp_path / "O")
    assert kernel.ready is not None
    (row,) = json.loads(harness("list", "kernels", "--json").stdout)
    assert (row["name"], row["what"]) == (
        kernel.ready.digest,
        f"7.3.4-mine group-cdev from {tmp_path / 'O'}",
    )


def test_what_the_kernel_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cases that look at it may fail for no fault of the kernel."""
    taken(tmp_path / "O", good_config(PROC_PAGE_MONITOR="n"))
    assert "it lacks CONFIG_PROC_PAGE_MONITOR: cases that need them" in capsys.readouterr().err
    assert planning.runnable(KernelWish(variant="cdev"), ("kselftest:vfio",)) == ("kselftest:vfio",)


def test_a_kernel_of_the_other_architecture(tmp_path: Path) -> None:
    """It says what it is for: --arch may be left out, and is refused if it says otherwise."""
    make_build(tmp_path / "O")
    assert taken(tmp_path / "O").arch == host_arch().name
    foreign = next(arch.name for arch in ARCHES.values() if arch.label)
    wish = KernelWish(variant="", ready=ReadyWish(kernel=str(tmp_path / "O"), arch=foreign))
    with pytest.raises(UsageError, match=f"is for {host_arch().name}, not for {foreign} .leave --arch out"):
        take_ready(wish)

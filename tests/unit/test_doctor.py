# SPDX-License-Identifier: GPL-2.0-only
"""What doctor finds missing, which packages mend it, and what it asks apt for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.base import process
from harness.base.errors import InfraError
from harness.base.process import Completed
from harness.cli import doctor
from harness.cli.doctor import Check, CheckState
from harness.kernel import debian, hostneeds
from harness.kernel.arch import ARCHES, host_arch
from harness.kernel.hostneeds import KERNEL_NEEDS, HostNeed, build_needs, require_build_tools
from harness.kernel.toolchain import GCC

OPTIONS = {"-y", "--no-install-recommends", "-q", "env", "DEBIAN_FRONTEND=noninteractive"}


class FakeApt:
    """Stands in for apt: notes what is asked of it, and says which QEMU the release has."""

    def __init__(self, qemu: str = "1:10.0.2+ds-2", status: int = 0) -> None:
        self.qemu, self.status = qemu, status
        self.clang = "1:19.0-63"
        self.asked: list[list[str]] = []

    def run_foreground(self, argv: Sequence[str]) -> int:
        words = list(argv)
        self.asked.append([word for word in words if word not in OPTIONS])
        return self.status

    def run(self, argv: Sequence[str], **_more: object) -> Completed:
        if argv[1:] == ["policy", "clang"]:
            return Completed(tuple(argv), 0, f"clang:\n  Candidate: {self.clang}\n", "")
        if argv[1] == "pkgnames":
            return Completed(tuple(argv), 0, "clang-16\nclang-19-doc\nclang-tidy\nclang-19\nclang-9\n", "")
        return Completed(tuple(argv), 0, f"qemu-system-x86:\n  Candidate: {self.qemu}\n", "")

    @property
    def verbs(self) -> list[str]:
        return [" ".join(word for word in words if "=" not in word and word != "-o") for words in self.asked]


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApt:
    """A Debian host whose user is root."""
    fake = FakeApt()
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(process, "run_foreground", fake.run_foreground)
    monkeypatch.setattr(process, "run", fake.run)
    monkeypatch.setattr(doctor, "find_tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("os.getuid", lambda: 0)
    return fake


def check(state: CheckState, *packages: str) -> Check:
    return Check(name="x", state=state, detail="", packages=packages)


def test_packages_each_once_and_only_for_what_is_wrong() -> None:
    """Two needs of one package install it once; what is there installs nothing."""
    checks = [
        check(CheckState.MISSING, "gcc", "libc6-dev"),
        check(CheckState.WARNING, "git"),
        check(CheckState.OK, "make"),
        check(CheckState.MISSING, "gcc"),
        check(CheckState.WARNING),
    ]
    assert doctor.packages_for(checks) == ("gcc", "libc6-dev", "git")


def test_lists_are_refreshed_before_packages_are_installed(apt: FakeApt) -> None:
    """One update, one install."""
    doctor.fix(["flex", "bison"])
    assert apt.verbs == ["apt-get update", "apt-get install flex bison"]


def test_a_compiler_of_the_release_when_linux_takes_it(apt: FakeApt) -> None:
    doctor.fix(["clang", "libc6-dev", "lld"])
    assert apt.verbs == ["apt-get update", "apt-get install clang libc6-dev lld"]


def test_the_newest_compiler_where_the_releases_is_too_old(apt: FakeApt) -> None:
    """Debian 12 has clang 14 and clang-19: the whole toolchain comes in one version."""
    apt.clang = "1:14.0-55.7~deb12u1"
    doctor.fix(["clang", "libc6-dev"])
    assert apt.verbs == ["apt-get update", "apt-get install clang-19 lld-19 llvm-19 libc6-dev"]


def test_a_toolchain_is_looked_for_besides_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {check.name for check in doctor.examine()}
    found = [check for check in doctor.examine(["gcc", "llvm-99"]) if check.name not in known]
    assert [check.name for check in found] == [
        f"{name} of llvm-99" for name in ("C compiler", "linker", "object tools")
    ]
    assert all("--toolchain llvm-99" in check.cost for check in found)
    assert doctor.packages_for(found) == ("clang-99", "libc6-dev", "lld-99", "llvm-99")


@pytest.mark.parametrize(("name", "packages"), [("llvm", ("clang", "libc6-dev")), ("llvm-14", ())])
def test_a_toolchain_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, name: str, packages: tuple[str, ...]
) -> None:
    """A warning: an older tree may take it.  One that was named with its version is not replaced."""
    monkeypatch.setattr("harness.base.process.find_tool", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(hostneeds, "find_tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("harness.kernel.toolchain._version", lambda _: "Debian clang version 14.0.6")
    compiler, *others = doctor._toolchain(name, host_arch())
    assert (compiler.state, compiler.packages) == (CheckState.WARNING, packages)
    assert "14.0.6" in compiler.detail
    assert "before version 17" in compiler.cost
    assert {check.state for check in others} == {CheckState.OK}


@pytest.mark.parametrize("version", ["1:8.0+dfsg-1", "1:10.0.2+ds-2"])
def test_qemu_of_the_release_when_it_has_igb(apt: FakeApt, version: str) -> None:
    """QEMU 8.0 brought igb."""
    apt.qemu = version
    doctor.fix(["qemu-system-x86", "flex"])
    assert apt.verbs == ["apt-get update", "apt-get install flex", "apt-get install qemu-system-x86"]


def test_qemu_from_backports_when_the_release_is_too_old(
    apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own sources stay as they are: apt is pointed at a list in the cache."""
    apt.qemu = "1:7.2+dfsg-7"
    monkeypatch.setattr(debian, "own_codename", lambda: "bookworm")
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://mirror.example/debian")
    doctor.fix(["qemu-system-x86"])
    assert apt.verbs == [
        "apt-get update",
        "apt-get update",
        "apt-get -t bookworm-backports install qemu-system-x86",
    ]
    sources = tmp_path / "apt" / "backports" / "sources.list"
    assert f"Dir::Etc::sourcelist={sources}" in apt.asked[1]
    assert "http://mirror.example/debian bookworm-backports main" in sources.read_text(encoding="utf-8")


def test_no_backports_elsewhere(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Debian has them."""
    apt.qemu = "1:6.2+dfsg-2ubuntu6"
    monkeypatch.setattr(debian, "own_codename", lambda: "")
    with pytest.raises(InfraError, match="too old"):
        doctor.fix(["qemu-system-x86"])


def test_sudo_asks_on_the_terminal(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not root goes through sudo, in the foreground, where it can ask for a password."""
    monkeypatch.setattr("os.getuid", lambda: 1000)
    doctor.fix(["flex"])
    assert [words[0] for words in apt.asked] == ["/usr/bin/sudo", "/usr/bin/sudo"]


def test_without_root_and_sudo(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command to run as root is told, and nothing is run."""
    monkeypatch.setattr("os.getuid", lambda: 1000)
    monkeypatch.setattr(doctor, "find_tool", lambda name: None if name == "sudo" else name)
    with pytest.raises(InfraError, match="needs root"):
        doctor.fix(["flex"])
    assert apt.asked == []


def test_without_apt(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another distribution's user gets the names to look for."""
    monkeypatch.setattr(doctor, "find_tool", lambda _name: None)
    with pytest.raises(InfraError, match="no apt") as caught:
        doctor.fix(["flex", "bison"])
    assert "flex bison" in (caught.value.hint or "")


def test_apt_that_fails_is_told(apt: FakeApt) -> None:
    """A refresh may fail, an install may not."""
    apt.status = 100
    with pytest.raises(InfraError, match="apt-get install flex failed with status 100"):
        doctor.fix(["flex"])
    assert apt.verbs == ["apt-get update", "apt-get install flex"]


def test_everything_that_is_looked_for() -> None:
    """Each need says what it costs and what mends it; the names are told apart."""
    assert {"git", "linker", "tar", "dpkg-deb", "Debian's keys"} <= {need.name for need in KERNEL_NEEDS}
    assert len({need.name for need in KERNEL_NEEDS}) == len(KERNEL_NEEDS)
    assert all(need.cost and need.packages and need.wanted for need in KERNEL_NEEDS)


@pytest.mark.parametrize(
    ("need", "state"),
    [
        (HostNeed(name="a", programs=("no-such", "sh"), packages=("p",), cost="c"), CheckState.OK),
        (HostNeed(name="a", programs=("no-such",), packages=("p",), cost="c"), CheckState.MISSING),
        (
            HostNeed(name="a", programs=("no-such",), packages=("p",), cost="c", vital=False),
            CheckState.WARNING,
        ),
        (HostNeed(name="a", header="no/such.h", packages=("p",), cost="c"), CheckState.MISSING),
        (HostNeed(name="a", file=Path("/no/such"), packages=("p",), cost="c"), CheckState.MISSING),
        (HostNeed(name="a", file=Path("/proc/version"), packages=("p",), cost="c"), CheckState.OK),
    ],
)
def test_a_need_is_looked_for(need: HostNeed, state: CheckState) -> None:
    """A program, a header or a file; what only some trees need is no more than a warning."""
    found = doctor._look(need)
    assert found.state is state
    assert found.packages == (() if state is CheckState.OK else ("p",))


def test_a_build_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build reads the same table, so it and doctor never disagree."""
    monkeypatch.setattr(hostneeds, "find_tool", lambda name: None if name in ("gcc", "bc") else name)
    with pytest.raises(InfraError, match="a kernel build needs gcc, bc") as caught:
        require_build_tools(GCC)
    assert "install gcc libc6-dev bc," in (caught.value.hint or "")
    assert set(build_needs(GCC)) <= set(KERNEL_NEEDS)


def test_another_architecture_is_looked_for_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler, its QEMU and the user space of its guests."""
    foreign = next(arch for arch in ARCHES.values() if arch.label)
    monkeypatch.setattr(hostneeds, "find_tool", lambda name: None if foreign.triplet in name else name)
    monkeypatch.setattr(doctor, "userspace_entry", lambda _: Path("/no/such/entry"))
    known = {check.name for check in doctor.examine()}
    found = {one.name: one for one in doctor.examine(arches=[foreign.name]) if one.name not in known}
    compiler = found[f"C compiler for {foreign.name}"]
    assert (compiler.state, compiler.cost) == (
        CheckState.MISSING,
        f"no kernel can be built for {foreign.name}",
    )
    assert f"gcc-{foreign.triplet}" in compiler.packages
    assert found[f"user space for {foreign.name} guests"].state is CheckState.WARNING
    assert f"QEMU for {foreign.name} guests" in found

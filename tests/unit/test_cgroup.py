# SPDX-License-Identifier: GPL-2.0-only
"""Limits of cgroups, read from trees as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base import cgroup, host

MIB = 1 << 20
NO_LIMIT_V1 = "9223372036854771712"


class Tree:
    """A /proc/self and the cgroup file systems that it names."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.proc = top / "proc"
        self.proc.mkdir()

    def proc_says(self, cgroups: str, *mounts: tuple[str, str, str, str]) -> None:
        """Write the cgroups of the process, and mounts of them: root, point, type, options."""
        (self.proc / "cgroup").write_text(cgroups, encoding="utf-8")
        lines = [
            f"31 23 0:28 {root} {self.top}{point} rw,relatime shared:9 - {kind} {kind} {options}\n"
            for root, point, kind, options in mounts
        ]
        (self.proc / "mountinfo").write_text("".join(lines), encoding="utf-8")

    def group(self, path: str, **files: str) -> None:
        """Make a cgroup with these files; __ in a name stands for a dot."""
        directory = self.top / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name.replace("__", ".")).write_text(f"{text}\n", encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A host with 8 CPUs and 16 GiB, 12 of them available, and no cgroup yet."""
    made = Tree(tmp_path)
    monkeypatch.setattr(cgroup, "_PROC", made.proc)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {12 << 20} kB\n", encoding="ascii")
    monkeypatch.setattr(host, "_MEMINFO", meminfo)
    return made


def seen() -> tuple[int, int, int]:
    return host.usable_cpus(), host.total_mib(), host.available_mib()


FREE = (8, 16 << 10, 12 << 10)


def test_a_host_without_cgroups(tree: Tree) -> None:
    """Without cgroups only affinity and /proc/meminfo apply."""
    assert seen() == FREE


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        *(("max 100000", 8), ("150000 100000", 2), ("200000 100000", 2), ("5000 100000", 1)),
        *(("1600000 100000", 8), ("", 8), ("100000 0", 8)),
    ],
)
def test_a_quota_of_version_2(tree: Tree, quota: str, cpus: int) -> None:
    """A fraction of a CPU counts as one; affinity still applies; an invalid quota is no limit."""
    tree.proc_says("0::/a.slice/b.scope\n", ("/", "/cg", "cgroup2", "rw"))
    tree.group("/cg/a.slice/b.scope", cpu__max=quota)
    assert host.usable_cpus() == cpus
    assert host.default_compilers() == cpus + 1


def test_the_tightest_of_nested_limits_holds(tree: Tree) -> None:
    """A scope without limits in a slice with some, as systemd makes them."""
    tree.proc_says("0::/a.slice/b.scope\n", ("/", "/cg", "cgroup2", "rw,nsdelegate"))
    tree.group("/cg/a.slice/b.scope", cpu__max="max 100000", memory__max="max", memory__high="max")
    stat = f"anon 1\ninactive_file {256 * MIB}\nactive_file {128 * MIB}\nshmem {99 * MIB}"
    tree.group(
        "/cg/a.slice",
        cpu__max="300000 100000",
        memory__max=f"{4096 * MIB}",
        memory__high=f"{3072 * MIB}",
        memory__current=f"{1024 * MIB}",
        memory__stat=stat,
    )
    assert seen() == (3, 3072, 3072 - (1024 - 256 - 128))


def test_a_container_sees_its_own_cgroup_as_the_root(tree: Tree) -> None:
    tree.proc_says("0::/\n", ("/", "/cg", "cgroup2", "rw"))
    limit = f"{2048 * MIB}"
    tree.group("/cg", cpu__max="200000 100000", memory__max=limit, memory__current=f"{512 * MIB}")
    assert seen() == (2, 2048, 1536)


@pytest.mark.parametrize(
    "cgroups", ["4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n", "4:memory:/../y\n3:cpu,cpuacct:/../y\n"]
)
def test_a_container_of_version_1(tree: Tree, cgroups: str) -> None:
    """Only the container's part of each hierarchy is mounted; paths that lead elsewhere do not matter."""
    tree.proc_says(
        cgroups,
        ("/docker/x", "/cg/memory", "cgroup", "rw,memory"),
        ("/docker/x", "/cg/cpu", "cgroup", "rw,cpu,cpuacct"),
        ("/", "/cg/systemd", "cgroup", "rw,name=systemd"),
    )
    tree.group("/cg/cpu", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    tree.group(
        "/cg/memory",
        memory__limit_in_bytes=f"{1024 * MIB}",
        memory__usage_in_bytes=f"{900 * MIB}",
        memory__stat=f"cache 5\ntotal_inactive_file {300 * MIB}\ntotal_active_file {100 * MIB}",
    )
    assert seen() == (3, 1024, 1024 - 500)


def test_both_versions_side_by_side_without_limits(tree: Tree) -> None:
    tree.proc_says(
        "4:memory:/job\n1:cpu:/\n0::/\n",
        ("/", "/cg/memory", "cgroup", "rw,memory"),
        ("/", "/cg/cpu", "cgroup", "rw,cpu"),
        ("/", "/cg/unified", "cgroup2", "rw"),
    )
    tree.group("/cg/memory/job", memory__limit_in_bytes=NO_LIMIT_V1, memory__usage_in_bytes="4096")
    tree.group("/cg/cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert seen() == FREE


def test_a_full_cgroup_has_nothing_left(tree: Tree) -> None:
    """Available memory is never negative, and caches never raise it above the limit."""
    tree.proc_says("0::/\n", ("/", "/c g", "cgroup2", "rw"))
    (tree.proc / "mountinfo").write_text(
        f"31 23 0:28 / {tree.top}/c\\040g rw - cgroup2 cgroup2 rw\n", encoding="utf-8"
    )
    tree.group("/c g", memory__max=f"{64 * MIB}", memory__current=f"{65 * MIB}")
    assert host.available_mib() == 0
    tree.group("/c g", memory__current=f"{1 * MIB}", memory__stat=f"active_file {9 * MIB}")
    assert host.available_mib() == 64

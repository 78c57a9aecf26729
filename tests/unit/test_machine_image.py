# SPDX-License-Identifier: GPL-2.0-only
"""The disks of the image root, made of a few files instead of this host's."""

from __future__ import annotations

import dataclasses
import marshal
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base import paths, process
from harness.base.cause import Cause
from harness.base.errors import InfraError
from harness.kernel.arch import Arch, host_arch
from harness.machine import image
from harness.machine.hostfiles import Listing
from harness.machine.image import ImageRoot
from harness.machine.rootparts import GUEST_DIR, GUEST_KERNEL_DIR, RootParts

ABSENT = [name for name in ("mkfs.erofs", "gcc") if process.find_tool(name) is None]
needs_tools = pytest.mark.skipif(bool(ABSENT), reason=f"this host lacks {', '.join(ABSENT)}")
needs_gcc = pytest.mark.skipif("gcc" in ABSENT, reason="this host lacks gcc")
needs_fsck = pytest.mark.skipif(
    process.find_tool("fsck.erofs") is None, reason="this host has no fsck.erofs (erofs-utils)"
)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


class Host:
    """A host with one program, a library of one module, a guest package and the output of a kernel build."""

    def __init__(self, installed: Path, work: Path) -> None:
        self.hello = installed / "hello"
        self.guest = work / "guest"
        self.modules = work / "build/lib/modules/7.3.0-rc1"
        self.selftests = work / "build/vfio"
        _write(self.guest / "__init__.py", "")
        _write(self.guest / "probes/first.py", "PROMISE = 'kept'\n")
        shutil.copyfile(paths.guest_dir() / "init.c", self.guest / "init.c")
        _write(self.modules / "modules.dep", "kernel/vfio.ko:\n")
        _write(self.modules / "kernel/vfio.ko", "no module really")
        _write(self.selftests / "vfio_dma_mapping_test", "no program really", 0o755)
        for path in (*self.modules.rglob("*.*"), *self.selftests.iterdir()):
            os.utime(path, (2_000_000, 2_000_000))
        (self.modules / "build").symlink_to(work)
        library = installed / "os.py"
        self.listing = Listing(
            files={"usr/bin/hello": os.fspath(self.hello), "usr/lib/python3/os.py": os.fspath(library)},
            links={"usr/bin/hi": "hello", "usr/bin/python3": sys.executable},
            stamps={sys.executable: "1 1", os.fspath(self.hello): "2 2"},
            found={"hello": os.fspath(self.hello)},
            python=sys.executable,
            stdlib="/usr/lib/python3",
        )

    def restamp(self, path: str) -> None:
        """What a listing says after *path* was written anew."""
        self.listing = dataclasses.replace(self.listing, stamps={**self.listing.stamps, path: "3 3"})

    def parts(self) -> RootParts:
        return ImageRoot().parts(self.guest, self.modules, self.selftests)


@pytest.fixture(scope="module", name="installed")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the host has installed: the same for all tests here."""
    installed = tmp_path_factory.mktemp("installed")
    _write(installed / "hello", "#!/bin/sh\n", 0o755)
    _write(installed / "os.py", "name = 'posix'\n")
    return installed


@pytest.fixture(scope="module", name="warm")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all tests here: what one has made is there for the others, as for users."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(name="host")
def _host(installed: Path, warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(installed, tmp_path)
    monkeypatch.setenv("VFIO_HARNESS_CACHE", os.fspath(warm))
    monkeypatch.setattr(image, "_listing", lambda _arch: host.listing)
    return host


@pytest.fixture(name="cache")
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for one test, with nothing in it; named after the host, it takes the place of the warm one."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"


def _kinds(parts: RootParts) -> list[str]:
    return [path.name.partition("-")[0] for path in parts.files]


def _blockdev(letter: str, path: Path) -> str:
    node = f"driver=raw,node-name=disk-{letter},read-only=on"
    return f"{node},file.driver=file,file.filename={path},file.locking=off"


@needs_tools
def test_three_disks(host: Host, warm: Path) -> None:
    """In the order of their letters: the guest finds a disk by its place."""
    parts = host.parts()
    assert _kinds(parts) == ["root", "guest", "kernel"]
    assert all(path.is_file() and path.parent == warm / "images" for path in parts.files)
    assert parts.options == tuple(
        word
        for letter, path in zip("abc", parts.files, strict=True)
        for word in ("-blockdev", _blockdev(letter, path))
    )
    assert parts.devices == tuple(f"virtio-blk-pci,drive=disk-{letter},num-queues=1" for letter in "abc")
    assert parts.kernel_args[:4] == ("root=/dev/vda", "rootfstype=erofs", "ro", "init=/init")
    assert parts.kernel_args[4:] == ("--", f"vdb={GUEST_DIR}", f"vdc={GUEST_KERNEL_DIR}")


@needs_tools
def test_a_kernel_with_nothing_beside_it_has_no_disk(host: Host) -> None:
    parts = ImageRoot().parts(host.guest, None, None)
    assert _kinds(parts) == ["root", "guest"]
    assert len(parts.devices) == len(parts.options[1::2]) == 2
    assert parts.kernel_args[-2:] == ("--", f"vdb={GUEST_DIR}")


@needs_tools
def test_modules_alone_and_selftests_alone_are_a_disk(host: Host) -> None:
    """And not the same one."""
    modules = ImageRoot().parts(host.guest, host.modules, None)
    selftests = ImageRoot().parts(host.guest, None, host.selftests)
    for parts in (modules, selftests):
        assert _kinds(parts) == ["root", "guest", "kernel"]
        assert parts.kernel_args[-1] == f"vdc={GUEST_KERNEL_DIR}"
    assert len({modules.files[2], selftests.files[2], host.parts().files[2]}) == 3


@needs_tools
def test_a_comma_in_a_path_is_doubled_for_qemu_alone(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "a,b" / "c,,d"
    monkeypatch.setenv("VFIO_HARNESS_CACHE", os.fspath(cache))
    parts = host.parts()
    assert all(path.parent == cache / "images" and path.is_file() for path in parts.files)
    for word, path in zip(parts.options[1::2], parts.files, strict=True):
        assert f",file.filename={tmp_path}/a,,b/c,,,,d/images/{path.name},file.locking=off" in word


@needs_tools
def test_what_is_the_same_is_not_made_again(host: Host) -> None:
    """The second VM starts at once; bytecode beside the guest's sources, and times, do not matter."""
    first = host.parts()
    inodes = [path.stat().st_ino for path in first.files]
    _write(host.guest / "__pycache__/__init__.cpython-311.pyc", "bytecode")
    os.utime(host.modules / "kernel/vfio.ko", (1_000_000, 1_000_000))
    (host.modules / "kernel/vfio.ko").chmod(0o444)
    assert host.parts() == first
    assert [path.stat().st_ino for path in first.files] == inodes


CHANGES: dict[str, tuple[Callable[[Host], object], set[str]]] = {
    "a guest file is edited": (
        lambda host: _write(host.guest / "probes/first.py", "PROMISE = 'lost'\n"),
        {"guest"},
    ),
    "a guest file is added": (lambda host: _write(host.guest / "probes/second.py", ""), {"guest"}),
    "a guest file is renamed": (
        lambda host: (host.guest / "probes/first.py").rename(host.guest / "probes/third.py"),
        {"guest"},
    ),
    "init.c is edited": (
        lambda host: _write(host.guest / "init.c", "int main(void)\n{\n\treturn 0;\n}\n"),
        {"root"},
    ),
    "a program is updated": (lambda host: host.restamp(os.fspath(host.hello)), {"root"}),
    "Python is updated": (lambda host: host.restamp(sys.executable), {"root", "guest"}),
    "a module is rebuilt": (
        lambda host: _write(host.modules / "kernel/vfio.ko", "another one that is no module"),
        {"kernel"},
    ),
    "a selftest becomes a program": (
        lambda host: (host.selftests / "vfio_dma_mapping_test").chmod(0o644),
        {"kernel"},
    ),
    "it is another kernel": (
        lambda host: setattr(host, "modules", host.modules.rename(host.modules.with_name("7.4.0"))),
        {"kernel"},
    ),
}


@needs_tools
@pytest.mark.parametrize(
    ("change", "expected"), CHANGES.values(), ids=[name.replace(" ", "-") for name in CHANGES]
)
def test_a_change_gives_another_disk(
    host: Host, change: Callable[[Host], object], expected: set[str]
) -> None:
    """That one and no other."""
    before = host.parts()
    change(host)
    after = host.parts()
    pairs = zip(_kinds(before), before.files, after.files, strict=True)
    assert {kind for kind, old, new in pairs if old != new} == expected


def _extract(disk: Path, out: Path) -> Path:
    argv = ["fsck.erofs", "--preserve-perms", "--no-preserve-owner", f"--extract={out}", os.fspath(disk)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return out


def _modes(directory: Path) -> dict[str, int]:
    """Every file that is no link, and its permissions."""
    return {
        str(path.relative_to(directory)): path.stat().st_mode & 0o7777
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def _links(directory: Path) -> dict[str, str]:
    links = (path for path in directory.rglob("*") if path.is_symlink())
    return {str(path.relative_to(directory)): os.fspath(path.readlink()) for path in links}


@needs_tools
@needs_fsck
def test_what_is_on_the_root_disk(host: Host, tmp_path: Path) -> None:
    """Programs, their links, /init, and the mount points and texts that no host has for us."""
    root = _extract(host.parts().files[0], tmp_path / "root")
    modes = _modes(root)
    assert modes["usr/bin/hello"] == modes["init"] == 0o755
    assert modes["usr/lib/python3/os.py"] == 0o644
    assert any(name.startswith("usr/lib/python3/__pycache__/os.") for name in modes)
    links = _links(root)
    assert (links["bin"], links["lib"], links["sbin"]) == ("usr/bin", "usr/lib", "usr/sbin")
    assert (links["usr/bin/hi"], links["usr/bin/python3"]) == ("hello", sys.executable)
    assert links["usr/lib/modules"] == f"{GUEST_KERNEL_DIR}/modules"
    for name in ("dev", "mnt", "proc", "run", "sys", "tmp"):
        assert (root / name).is_dir()
        assert not any((root / name).iterdir())
    # The SSH server takes no key from a directory that others may write to.
    assert (root / "root/.ssh").stat().st_mode & 0o7777 == 0o700
    assert (root / "etc/passwd").read_text(encoding="utf-8").startswith("root:x:0:0:root:/root:/bin/bash\n")


@needs_tools
@needs_fsck
def test_init_needs_no_library(host: Host, tmp_path: Path) -> None:
    root = _extract(host.parts().files[0], tmp_path / "root")
    assert (root / "init").read_bytes()[:4] == b"\x7fELF"
    done = subprocess.run(
        ["ldd", os.fspath(root / "init")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0 or "statically linked" in done.stdout


@needs_tools
@needs_fsck
def test_what_is_on_the_guest_disk(host: Host, tmp_path: Path) -> None:
    """The package, and bytecode that names the path which the guest has it at."""
    guest = _extract(host.parts().files[1], tmp_path / "out")
    sources = {"__init__.py", "probes/first.py"}
    assert {name for name in _modes(guest) if not name.endswith(".pyc")} == sources
    compiled = {marshal.loads(path.read_bytes()[16:]).co_filename for path in guest.rglob("*.pyc")}
    assert compiled == {f"{GUEST_DIR}/{name}" for name in sources}


@needs_tools
@needs_fsck
def test_what_is_on_the_kernel_disk(host: Host, tmp_path: Path) -> None:
    """Modules where modprobe looks for them; not the source that they were built from."""
    assert _modes(_extract(host.parts().files[2], tmp_path / "out")) == {
        "modules/7.3.0-rc1/modules.dep": 0o644,
        "modules/7.3.0-rc1/kernel/vfio.ko": 0o644,
        "selftests/vfio_dma_mapping_test": 0o755,
    }


@needs_gcc
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_init_compiles_without_a_warning(tmp_path: Path, level: str) -> None:
    warnings = ("-Wall", "-Wextra", "-Werror")
    argv = ["gcc", level, "-static", *warnings, "-o", f"{tmp_path}/init", f"{paths.guest_dir()}/init.c"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@needs_tools
def test_disks_that_a_job_names(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken from the store; what this host would make the same it makes; no other one is taken."""
    named = ImageRoot().disks(host.guest)
    assert set(named) == {"root", "guest"}
    made = ImageRoot(wanted=named).parts(host.guest, None, None)
    assert made == ImageRoot().parts(host.guest, None, None)
    _write(host.guest / "probes/first.py", "PROMISE = 'lost'\n")
    host.restamp(os.fspath(host.hello))
    assert ImageRoot(wanted=named).parts(host.guest, None, None) == made
    for kind, path in zip(("root", "guest"), made.files, strict=True):
        path.rename(path.with_suffix(".away"))
        with pytest.raises(
            InfraError, match=f"the {kind} disk {named[kind]} of the image root is not"
        ) as error:
            ImageRoot(wanted=named).parts(host.guest, None, None)
        assert error.value.cause is Cause.ROOT_MISSING
        path.with_suffix(".away").rename(path)


@needs_tools
def test_an_init_that_does_not_compile(host: Host, cache: Path) -> None:
    _write(host.guest / "init.c", "int main(void) { return nothing; }\n")
    with pytest.raises(InfraError, match=r"^compiling guest/init\.c: gcc .* exited with 1: "):
        host.parts()
    assert not list((cache / "images").glob("*"))


@needs_tools
def test_gcc_is_missing(host: Host, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only thing that is made here and not taken from the host: said with two ways out."""
    mkfs = process.find_tool("mkfs.erofs")
    assert mkfs is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mkfs.erofs").symlink_to(mkfs)
    monkeypatch.setenv("PATH", os.fspath(tmp_path / "bin"))
    if process.find_tool("gcc") is not None:
        pytest.skip("this host has gcc in an sbin, which is searched whatever PATH says")
    with pytest.raises(InfraError, match=r"^gcc is missing") as caught:
        host.parts()
    assert caught.value.hint == "run `vfio-harness doctor --fix`, or use --root virtme"
    assert not list((cache / "images").iterdir())


class Collector:
    """Stands for a look at the whole host, and counts how often there was one."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.calls = 0

    def __call__(self, _arch: Arch) -> Listing:
        self.calls += 1
        return self.listing


@pytest.fixture(name="collector")
def _collector(installed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collector:
    listing = Host(installed, tmp_path).listing
    collector = Collector(dataclasses.replace(listing, stamps={"/no/such/file": "gone"}, found={}))
    monkeypatch.setattr(image, "collect", collector)
    return collector


def _next_process() -> Listing:
    """What a process that has not asked yet is told."""
    return image._listing.__wrapped__(host_arch())


def test_the_host_is_looked_at_once(collector: Collector, cache: Path) -> None:
    assert _next_process() == _next_process() == collector.listing
    assert collector.calls == 1
    assert [path.name for path in (cache / "images").iterdir()] == ["root.json"]


def test_a_host_that_changed_is_looked_at_again(collector: Collector, tmp_path: Path) -> None:
    """For example when a file has appeared since."""
    collector.listing = dataclasses.replace(collector.listing, stamps={os.fspath(tmp_path): "gone"})
    _next_process()
    collector.listing = dataclasses.replace(collector.listing, stamps={"/no/such/file": "gone"})
    assert _next_process() == _next_process() == collector.listing
    assert collector.calls == 2


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff\xfe", b'{"files": {}'])
def test_a_memo_that_is_rubbish_is_replaced(collector: Collector, cache: Path, text: bytes) -> None:
    _next_process()
    (cache / "images/root.json").write_bytes(text)
    assert _next_process() == _next_process() == collector.listing
    assert collector.calls == 2


def test_a_cache_that_cannot_be_written_costs_time_only(collector: Collector, cache: Path) -> None:
    cache.write_text("a file", encoding="utf-8")
    assert _next_process() == _next_process() == collector.listing
    assert collector.calls == 2

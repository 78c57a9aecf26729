# SPDX-License-Identifier: GPL-2.0-only
"""Read-only disks: made once, the same for the same contents, whole or not there."""

from __future__ import annotations

import fcntl
import marshal
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType

import pytest

from harness.base import process
from harness.base.errors import InfraError
from harness.base.locks import try_locked
from harness.machine import disks

needs_mkfs = pytest.mark.skipif(
    process.find_tool("mkfs.erofs") is None, reason="this host has no mkfs.erofs (erofs-utils)"
)
needs_fsck = pytest.mark.skipif(
    process.find_tool("fsck.erofs") is None, reason="this host has no fsck.erofs (erofs-utils)"
)


@pytest.fixture(autouse=True, name="cache")
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; what is made for the moment goes beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path / "tmp"))
    monkeypatch.setenv("VFIO_HARNESS_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"


class Filler:
    """Fills a disk with small files and counts how often it had to."""

    def __init__(self, names: Iterable[str] = ("a", "b/c", "b/d")) -> None:
        self.names = tuple(names)
        self.calls = 0

    def __call__(self, stage: Path) -> None:
        self.calls += 1
        for name in self.names:
            (stage / name).parent.mkdir(exist_ok=True)
            (stage / name).write_text(f"this is {name}\n" * 400, encoding="utf-8")


class Unfillable(Exception):
    """Something that no caller expects."""


def _files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _never(stage: Path) -> None:
    pytest.fail(f"nothing may be put into {stage}")


def test_who_waits_for_a_disk_does_not_wait_for_the_vms_that_use_it() -> None:
    """The VM of the process that made it holds it for as long as it runs."""
    image = disks.disk_path("kernel", "d1")
    found: list[Path] = []
    with disks.held(image):
        waiter = threading.Thread(
            target=lambda: found.append(disks.provide_disk("kernel", "d1", Filler())), daemon=True
        )
        waiter.start()
        waiter.join(0.2)
        assert not found
        image.parent.mkdir(parents=True)
        image.touch()
        waiter.join(10)
        assert found == [image]


@needs_mkfs
def test_a_disk_is_made_once(cache: Path) -> None:
    """Its name has its kind and its digest; another digest is another disk."""
    fill = Filler()
    image = disks.provide_disk("guest", "0123", fill)
    assert image == cache / "images/guest-0123.erofs"
    assert image.read_bytes()[1024:1028] == bytes.fromhex("e2e1f5e0"), "EROFS_SUPER_MAGIC_V1"
    made = image.stat()
    assert disks.provide_disk("guest", "0123", _never) == image
    assert (image.stat().st_ino, fill.calls) == (made.st_ino, 1)
    assert disks.provide_disk("guest", "4567", fill) != image
    assert fill.calls == 2
    assert _files(cache / "images") == ["guest-0123.erofs", "guest-4567.erofs"]


@needs_mkfs
def test_using_a_disk_makes_it_young() -> None:
    """What is used stays when the cache is pruned."""
    image = disks.provide_disk("guest", "0123", Filler())
    os.utime(image, (1_000_000, 1_000_000))
    disks.provide_disk("guest", "0123", _never)
    assert image.stat().st_mtime > 1_000_000


@needs_mkfs
def test_two_at_once_make_one_disk() -> None:
    """The second one waits for the first one's."""
    together = threading.Barrier(2)
    fill = Filler()

    def provide() -> Path:
        together.wait(timeout=20)
        return disks.provide_disk("guest", "0123", fill)

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(provide) for _ in range(2))
        assert first.result(timeout=60) == second.result(timeout=60)
    assert fill.calls == 1


@needs_mkfs
def test_equal_contents_are_equal_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whenever, wherever, and in whatever order they were put there."""
    sources = tmp_path / "sources"
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        (sources / name).parent.mkdir(exist_ok=True)
        (sources / name).write_text(name * 1000, encoding="utf-8")

    def fill(stage: Path) -> None:
        for name in names:
            disks.put(sources / name, stage / f"below/{name}")

    first = disks.provide_disk("guest", "0123", fill)
    monkeypatch.setenv("VFIO_HARNESS_CACHE", os.fspath(tmp_path / "another cache"))
    names.reverse()
    for name in names:
        (sources / name).chmod(0o600)
        os.utime(sources / name, (1_000_000, 1_000_000))
    second = disks.provide_disk("guest", "0123", fill)
    assert first != second
    assert first.read_bytes() == second.read_bytes()
    (sources / "07").chmod(0o700)
    assert disks.provide_disk("guest", "4567", fill).read_bytes() != first.read_bytes(), "one is a program"


@needs_mkfs
@needs_fsck
def test_a_disk_holds_what_was_put_there(tmp_path: Path) -> None:
    """Contents, links, and of the modes whether a file is a program."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name, mode in (("program", 0o4710), ("secret", 0o600)):
        (sources / name).write_text(f"this is the {name}\n" * 1000, encoding="utf-8")
        (sources / name).chmod(mode)

    def fill(stage: Path) -> None:
        disks.put(sources / "program", stage / "usr/bin/program")
        disks.put(os.fspath(sources / "secret"), stage / "secret")
        (stage / "bin").symlink_to("usr/bin")

    image = disks.provide_disk("root", "0123", fill)
    out = tmp_path / "out"
    argv = ["fsck.erofs", "--preserve-perms", "--no-preserve-owner", f"--extract={out}", os.fspath(image)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    assert _files(out) == ["secret", "usr/bin/program"]
    assert (out / "bin").readlink() == Path("usr/bin")
    for name, mode in (("usr/bin/program", 0o755), ("secret", 0o644)):
        assert (out / name).read_bytes() == (sources / Path(name).name).read_bytes()
        assert (out / name).stat().st_mode & 0o7777 == mode


@needs_mkfs
@pytest.mark.skipif(
    process.find_tool("dump.erofs") is None, reason="this host has no dump.erofs (erofs-utils)"
)
def test_everything_on_a_disk_is_roots() -> None:
    """The guest's SSH server takes no keys from anybody else's directory."""
    fill = Filler()

    def fill_for_another(stage: Path) -> None:
        fill(stage)
        if os.geteuid() == 0:
            os.chown(stage / "b", 65534, 65534)

    image = disks.provide_disk("guest", "0123", fill_for_another)
    argv = ["dump.erofs", "--path=/b", os.fspath(image)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    assert re.findall(r"\b(Uid|Gid): *(\d+)", done.stdout) == [("Uid", "0"), ("Gid", "0")]


@needs_mkfs
@pytest.mark.parametrize("error", [Unfillable("why not"), InfraError("no such file"), KeyboardInterrupt()])
def test_a_fill_that_fails_leaves_nothing(cache: Path, tmp_path: Path, error: BaseException) -> None:
    """Nothing that looks like a disk, nothing half made; the next one makes it anew."""
    fill = Filler()

    def fail(stage: Path) -> None:
        fill(stage)
        raise error

    with pytest.raises(type(error)):
        disks.provide_disk("guest", "0123", fail)
    assert _files(cache / "images") == _files(tmp_path / "tmp") == []
    assert disks.provide_disk("guest", "0123", fill).is_file()
    assert _files(cache / "images") == ["guest-0123.erofs"]
    assert _files(tmp_path / "tmp") == []


@needs_mkfs
def test_a_file_that_cannot_be_copied_is_named(cache: Path) -> None:
    """A host's file that is gone is an error of the host, in one sentence."""
    with pytest.raises(InfraError, match=r"guest-0123\.erofs: /no/such/file: No such file or directory"):
        disks.provide_disk("guest", "0123", lambda stage: disks.put("/no/such/file", stage / "file"))
    assert _files(cache / "images") == []


@needs_mkfs
def test_what_mkfs_refuses_is_no_disk(cache: Path) -> None:
    """Its own last words are in the message."""
    with pytest.raises(InfraError, match=r"making guest-0123\.erofs: mkfs\.erofs .* exited with \d+: \S"):
        disks.provide_disk("guest", "0123", Path.rmdir)
    assert "guest-0123.erofs" not in _files(cache / "images")


@needs_mkfs
def test_half_a_disk_of_someone_who_was_killed_is_replaced(cache: Path) -> None:
    (cache / "images").mkdir(parents=True)
    (cache / "images/.guest-0123.erofs.partial").write_bytes(b"half" * 1_000_000)
    image = disks.provide_disk("guest", "0123", Filler())
    assert _files(cache / "images") == ["guest-0123.erofs"]
    other = disks.provide_disk("guest", "4567", Filler())
    assert image.read_bytes() == other.read_bytes()


def test_mkfs_is_missing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is copied, and with two ways out."""
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    if process.find_tool("mkfs.erofs") is not None:
        pytest.skip("this host has mkfs.erofs in an sbin, which is searched whatever PATH says")
    with pytest.raises(InfraError, match=r"^mkfs\.erofs is missing") as caught:
        disks.provide_disk("guest", "0123", _never)
    assert caught.value.hint is not None
    assert "erofs-utils" in caught.value.hint
    assert "--root virtme" in caught.value.hint
    assert _files(cache / "images") == []


@needs_mkfs
def test_a_disk_that_is_there_needs_no_mkfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = disks.provide_disk("guest", "0123", Filler())
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert disks.provide_disk("guest", "0123", _never) == image


def _make_unwritable(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o555)
    if os.access(directory, os.W_OK):
        pytest.skip("nothing is unwritable for us (root?)")


def test_an_unwritable_cache(cache: Path) -> None:
    _make_unwritable(cache)
    with pytest.raises(InfraError, match=r"^cannot write to the cache: .*: Permission denied"):
        disks.provide_disk("guest", "0123", _never)


@needs_mkfs
def test_an_unwritable_directory_of_images(cache: Path) -> None:
    """Another user's, perhaps, who made the locks for everybody."""
    _make_unwritable(cache / "images")
    with pytest.raises(InfraError, match=r"guest-0123\.erofs"):
        disks.provide_disk("guest", "0123", Filler())


def test_a_cache_that_is_no_directory(cache: Path) -> None:
    """What even root cannot write to."""
    cache.write_text("a file", encoding="utf-8")
    with pytest.raises(InfraError, match=r"^cannot write to the cache: "):
        disks.provide_disk("guest", "0123", _never)


@needs_mkfs
def test_a_directory_of_images_that_is_none(cache: Path) -> None:
    cache.mkdir()
    (cache / "images").write_text("a file", encoding="utf-8")
    with pytest.raises(InfraError, match=r"^cannot make the disk guest-0123\.erofs: .*/images: File exists"):
        disks.provide_disk("guest", "0123", _never)


@needs_mkfs
def test_a_disk_that_is_there_needs_no_lock(cache: Path) -> None:
    """Whoever may only read the cache can use it."""
    image = disks.provide_disk("guest", "0123", Filler())
    shutil.rmtree(cache / "locks")
    (cache / "locks").write_text("a file", encoding="utf-8")
    assert disks.provide_disk("guest", "0123", _never) == image


@needs_mkfs
def test_a_disk_in_use_is_kept_from_being_pruned(cache: Path) -> None:
    """By any number of VMs at a time."""
    image = disks.provide_disk("guest", "0123", Filler())
    with disks.held(image):
        with try_locked(image.name) as ours:
            assert not ours
        with (cache / f"locks/{image.name}.lock").open("rb") as another:
            fcntl.flock(another, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with try_locked(image.name) as ours:
        assert ours


def test_a_disk_ends_with_a_page_of_any_kernel() -> None:
    """One with pages of 64 KiB cannot read the last page of a device that ends in it."""
    size = disks.provide_disk("guest", "d4", Filler()).stat().st_size
    assert (size > 0, size % 65536) == (True, 0)


def test_a_digest_tells_contents_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one part ends too, and which recipe makes the disk; names that are no text are no problem."""
    digest = disks.digest_of(("ab", "c"))
    assert disks.digest_of(iter(["ab", "c"])) == digest
    others = {disks.digest_of(parts) for parts in (("a", "bc"), ("abc",), ("c", "ab"), ("ab", "c", ""), ())}
    others.add(disks.digest_of([os.fsdecode(b"caf\xe9")]))
    monkeypatch.setattr(disks, "RECIPE", disks.RECIPE + 1)
    others.add(disks.digest_of(("ab", "c")))
    assert len(others - {digest}) == 7
    assert not set(digest) - set("0123456789abcdef"), "it is part of a file's name"


SOURCE = """
def value():
    return "before"
"""


@pytest.mark.parametrize(
    ("seen_at", "directory", "path"),
    [("/run/guest", ".", "/run/guest/deep/down.py"), ("/", "deep", "/deep/down.py")],
)
def test_bytecode_knows_the_guests_path(tmp_path: Path, seen_at: str, directory: str, path: str) -> None:
    """And is loaded whatever time or text the source has: the image's files have no times."""
    source = tmp_path / "deep/down.py"
    source.parent.mkdir()
    source.write_text(SOURCE, encoding="utf-8")
    disks.compile_python(sys.executable, tmp_path, tmp_path / directory, seen_at=seen_at)
    (compiled,) = tmp_path.rglob("*.pyc")
    # Sixteen bytes of header (PEP 552); importing would put the path of today in the place of the one there.
    code = marshal.loads(compiled.read_bytes()[16:])
    assert code.co_filename == path
    assert [inner.co_filename for inner in code.co_consts if isinstance(inner, CodeType)] == [path]
    source.write_text(SOURCE.replace("before", "after, and longer"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-B", "-c", "from deep import down; print(down.value(), down.__cached__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["before", os.fspath(compiled)]


def test_python_that_does_not_compile(tmp_path: Path) -> None:
    """A package for guests with a mistake in it is told before a VM boots."""
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(InfraError, match=r"^compiling Python for the guest: "):
        disks.compile_python(sys.executable, tmp_path, tmp_path, seen_at="/")

# SPDX-License-Identifier: GPL-2.0-only
"""What the image root takes from this host, and how it notices that the host has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.base.errors import InfraError, UsageError
from harness.kernel.arch import ARCHES, host_arch
from harness.machine import hostfiles
from harness.machine.hostfiles import GUEST_PATH, NEEDED, Listing

LACKING = [name for name in NEEDED if shutil.which(name, path=GUEST_PATH) is None]
whole_host = pytest.mark.skipif(bool(LACKING), reason=f"this host lacks {', '.join(LACKING)}")


def _listing(top: Path, found: dict[str, str] | None = None) -> Listing:
    """A Listing of everything below *top*."""
    collection = hostfiles._Collection()
    collection.add_tree(os.fspath(top), skip=("__pycache__",))
    return Listing(
        files=collection.files,
        links={"usr/bin/python3": "/usr/bin/python3.13"},
        stamps=collection.stamps,
        found=found or {},
        python="/usr/bin/python3.13",
        stdlib=os.fspath(top),
    )


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Path:
    """A little library: a module, and a package that was compiled."""
    tree = tmp_path / "library"
    for name in ("module.py", "package/__init__.py", "package/__pycache__/__init__.pyc"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("12345678", encoding="utf-8")
    return tree


def _touch(path: Path) -> None:
    """Give *path* another time, and nothing else."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000_000))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file grows": lambda tree: (tree / "module.py").write_text("123456789", encoding="utf-8"),
    "a file gets a new time": lambda tree: _touch(tree / "module.py"),
    "a file goes": lambda tree: (tree / "package/__init__.py").unlink(),
    "a file is added at the top": lambda tree: (tree / "other.py").touch(),
    "a file is added further down": lambda tree: (tree / "package/other.py").touch(),
    "a directory is added": lambda tree: (tree / "package/below").mkdir(),
    "everything goes": shutil.rmtree,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=[name.replace(" ", "-") for name in CHANGES])
def test_a_changed_file_makes_a_listing_stale(tree: Path, change: Callable[[Path], object]) -> None:
    listing = _listing(tree)
    assert listing.fresh
    change(tree)
    assert not listing.fresh


def test_what_is_left_out_makes_nothing_stale(tree: Path) -> None:
    """Bytecode that the host writes for itself is not in the image."""
    listing = _listing(tree)
    assert [Path(path).name for path in listing.files] == ["module.py", "__init__.py"]
    (tree / "package/__pycache__/other.pyc").touch()
    assert listing.fresh


def _program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _is_fresh(listing: Listing) -> bool:
    """Ask again: a type checker believes that a property stays what it was."""
    return listing.fresh


def test_programs_that_come_and_go_make_a_listing_stale(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one that is found in an earlier directory than before."""
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(hostfiles, "GUEST_PATH", f"{first}:{second}")
    strace = _program(second / "strace")
    listing = _listing(tree, found={"strace": os.fspath(strace), "lspci": ""})
    assert _is_fresh(listing)
    lspci = _program(first / "lspci")
    assert not _is_fresh(listing), "a program appeared"
    lspci.unlink()
    assert _is_fresh(listing)
    earlier = _program(first / "strace")
    assert not _is_fresh(listing), "another program of the name comes first"
    earlier.unlink()
    assert _is_fresh(listing)
    strace.chmod(0o644)
    assert not _is_fresh(listing), "it may not be executed any more"
    strace.unlink()
    assert not _is_fresh(listing), "it is gone"


def test_a_listing_is_the_same_after_json(tree: Path) -> None:
    """Names that are no text too: a host may have any."""
    (tree / os.fsdecode(b"caf\xe9.py")).touch()
    listing = _listing(tree, found={"ls": "/usr/bin/ls", "vi": ""})
    again = Listing.from_json(listing.to_json())
    assert again == listing
    assert any(os.fsencode(path).endswith(b"caf\xe9.py") for path in again.files)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "3", '"files"', "[]", "{}", '{"files": {}}', '{"files": {}, "surprise": {}}']
)
def test_json_that_is_no_listing(text: str) -> None:
    with pytest.raises((ValueError, UsageError)):
        Listing.from_json(text)


def test_a_listing_with_one_key_too_many_is_none(tree: Path) -> None:
    """One that a newer harness wrote is not taken for ours."""
    text = _listing(tree).to_json()
    with pytest.raises(UsageError, match="unknown key 'surprise'"):
        Listing.from_json(text.removesuffix("}") + ', "surprise": {}}')


@pytest.fixture(scope="module", name="host")
def _host() -> Listing:
    return hostfiles.collect(host_arch())


@whole_host
def test_this_hosts_programs_are_found(host: Listing) -> None:
    """Each under its name in usr/bin, as a copy of the file that the name leads to."""
    assert host.fresh
    assert host.links["usr/bin/python3"] == host.python
    assert host.files[host.python.lstrip("/")] == host.python
    for name in ("dropbear", "sh", "bash", "mount", "tar"):
        path = shutil.which(name, path=GUEST_PATH)
        assert path is not None
        assert host.found[name] == path
        place = f"usr/bin/{name}"
        place = f"usr/bin/{host.links[place]}" if place in host.links else place
        assert host.files[place] == os.path.realpath(path)
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in host.files.values())


def _loaded(paths: Sequence[str]) -> set[str]:
    """The paths of the libraries, and of the loader, that the files *paths* start with."""
    done = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False, timeout=60)
    words = {word for line in done.stdout.splitlines() if " (0x" in line for word in line.split()}
    assert words, done.stderr
    return {word for word in words if word.startswith("/")}


@whole_host
def test_programs_come_with_their_libraries(host: Listing) -> None:
    """python3's modules in C as well; each library where the loader of the guest looks for it."""
    programs = [os.path.realpath(host.found[name]) for name in ("python3", "dropbear", "sh")]
    modules = [path for path in host.files.values() if "/lib-dynload/" in path]
    assert modules, "Python has modules in C"
    loaded = _loaded([*programs, *modules])
    assert {"libc.so.6"} < {Path(path).name for path in loaded}, "a loader, libc and more"
    for path in loaded:
        place = f"usr{path}" if path.startswith(("/lib/", "/lib64/")) else path.lstrip("/")
        assert host.files[place] == os.path.realpath(path)
        assert path in host.stamps


@whole_host
def test_pythons_library_is_whole_but_for_what_no_guest_needs(host: Listing) -> None:
    library = host.stdlib.lstrip("/")
    inside = {path.removeprefix(f"{library}/") for path in host.files if path.startswith(f"{library}/")}
    assert {"os.py", "json/decoder.py", "argparse.py", "multiprocessing/__init__.py"} <= inside
    parts = {part for path in inside for part in Path(path).parent.parts}
    assert not parts & {"test", "tests", "idlelib", "__pycache__", "dist-packages", "site-packages"}


@whole_host
def test_everything_is_below_usr(host: Listing) -> None:
    """bin, lib, lib64 and sbin are links in the image: a file below one would stand in the link's place."""
    places = (*host.files, *host.links)
    assert not [place for place in places if place.startswith(("/", "bin/", "lib/", "lib64/", "sbin/"))]
    loaders = [place for place in host.files if Path(place).name.startswith("ld-")]
    assert loaders
    assert all(place.startswith(("usr/lib/", "usr/lib64/")) for place in loaders)


def _bring(directory: Path, names: Sequence[str]) -> None:
    """Make *directory* with links in it to this host's programs of these names."""
    directory.mkdir(exist_ok=True)
    for name in names:
        path = shutil.which(name, path=GUEST_PATH)
        assert path is not None
        (directory / name).symlink_to(path)


@whole_host
@pytest.mark.parametrize("missing", [("dropbear",), ("python3",), ("modprobe", "tar")])
def test_a_missing_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    """What is missing, all of it and nothing else, and how to get it."""
    _bring(tmp_path / "bin", [name for name in NEEDED if name not in missing])
    monkeypatch.setattr(hostfiles, "GUEST_PATH", os.fspath(tmp_path / "bin"))
    with pytest.raises(InfraError) as caught:
        hostfiles.collect(host_arch())
    assert caught.value.message == f"the image root needs {', '.join(missing)} of this host"
    assert caught.value.hint == "run `vfio-harness doctor --fix`"


@whole_host
def test_all_names_of_one_program_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program like busybox or kmod is copied once; what is merely wanted may be missing."""
    _bring(tmp_path / "bin", NEEDED)
    true = shutil.which("true")
    assert true is not None
    shutil.copy(true, tmp_path / "manifold")
    for name in ("cat", "ls", "vi"):
        (tmp_path / "bin" / name).symlink_to(tmp_path / "manifold")
    shutil.copy(true, tmp_path / "bin" / "id")
    monkeypatch.setattr(hostfiles, "GUEST_PATH", os.fspath(tmp_path / "bin"))
    listing = hostfiles.collect(host_arch())
    manifold = os.path.realpath(tmp_path / "manifold")
    assert [place for place, path in listing.files.items() if path == manifold] == ["usr/bin/cat"]
    assert listing.links["usr/bin/ls"] == listing.links["usr/bin/vi"] == "cat"
    assert "usr/bin/cat" not in listing.links
    assert listing.files["usr/bin/id"] == os.path.realpath(tmp_path / "bin/id"), "the same, but its own file"
    assert listing.found["strace"] == ""
    assert "usr/bin/strace" not in {*listing.files, *listing.links}
    assert listing.fresh


def test_a_foreign_user_space_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its programs, Python and libraries by the names that guests use; nothing of this host."""
    foreign = next(arch for arch in ARCHES.values() if arch.label)
    top = tmp_path / "root"
    for name in ("bin/python3.11", "bin/kmod", "bin/mawk", f"lib/{foreign.triplet}/libc.so.6", "lib/ld.so.1"):
        _program(top / "usr" / name)
    (top / "usr/lib/python3.11/os.py").parent.mkdir(parents=True)
    (top / "usr/lib/python3.11/os.py").touch()
    (top / "usr/bin/python3").symlink_to("python3.11")
    (top / "usr/bin/modprobe").symlink_to("kmod")
    (tmp_path / "packages").write_text("kmod 1", encoding="utf-8")
    monkeypatch.setattr(hostfiles, "provide_userspace", lambda _: tmp_path)
    listing = hostfiles.collect(foreign)
    assert (listing.python, listing.stdlib) == ("/usr/bin/python3.11", "/usr/lib/python3.11")
    assert listing.files["usr/bin/modprobe"] == os.fspath(top / "usr/bin/kmod")
    assert listing.files["usr/bin/awk"] == os.fspath(top / "usr/bin/mawk")
    assert {f"usr/lib/{foreign.triplet}/libc.so.6", "usr/lib/ld.so.1", "usr/lib/python3.11/os.py"} <= set(
        listing.files
    )
    assert all(path.startswith(os.fspath(top)) for path in listing.files.values())
    assert listing.fresh
    assert os.fspath(tmp_path) not in listing.identity

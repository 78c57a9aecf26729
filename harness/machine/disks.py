# SPDX-License-Identifier: GPL-2.0-only
"""Read-only disks for guests: erofs images, each made once from files of this host and named by its content.

erofs, uncompressed: it is read-only by nature, its image is the files end to end (60 MB take 0.2 s to make),
and an emulated processor has nothing to unpack.  Equal contents give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.errors import HostError
from harness.base.locks import making, shared

RECIPE = 2
"""Raise it when the same contents give another image."""

_BLOCK = 4 << 10
"""Bytes: the smallest page of a guest.  mkfs.erofs takes it by itself on a host with such pages; old
versions have no -b."""

_LARGEST_PAGE = 65536
"""Bytes (arch/arm64/Kconfig ARM64_64K_PAGES)."""

_UUID = "76f10000-0000-4000-8000-000000000000"
"""Any value that is always the same."""

_MAKE_SECONDS = 300.0


def digest_of(parts: Iterable[str]) -> str:
    """Return the digest that names a disk made from *parts*."""
    return hashlib.sha256("\0".join((str(RECIPE), *parts)).encode(errors="surrogateescape")).hexdigest()[:24]


def images_dir() -> Path:
    """Return the directory of all disks in the store."""
    return paths.cache_dir() / "images"


def disk_path(kind: str, digest: str) -> Path:
    """Return where the store has, or would have, the image of *kind* that *digest* names."""
    return images_dir() / f"{kind}-{digest}.erofs"


def find_disk(kind: str, digest: str) -> Path | None:
    """Return the image of *kind* that *digest* names; None when it is not in the store."""
    image = disk_path(kind, digest)
    if not image.is_file():
        return None
    with contextlib.suppress(OSError):
        os.utime(image)
    return image


def provide_disk(kind: str, digest: str, fill: Callable[[Path], None]) -> Path:
    """Return the image of *kind* that *digest* names; if it is not in the store, *fill* writes its files.

    Made beside and renamed, so that an image that exists is whole.  Raises HostError when it cannot be made.
    """
    image = disk_path(kind, digest)
    if find_disk(kind, digest) is None:
        busy = f"another process is making the {kind} disk"
        with making(image.name, busy, image.is_file) as is_ours:
            if is_ours:
                _make(image, fill)
    return image


def held(image: Path) -> contextlib.AbstractContextManager[None]:
    """Keep *image* from being pruned."""
    return shared(image.name, f"another process is making {image}")


def _make(image: Path, fill: Callable[[Path], None]) -> None:
    if process.find_tool("mkfs.erofs") is None:
        raise HostError("mkfs.erofs is missing", hint="install erofs-utils, or use --root virtme")
    try:
        image.parent.mkdir(parents=True, exist_ok=True)
        # Outside the cache, so that a killed process leaves no files of half a disk there.
        with tempfile.TemporaryDirectory(prefix="vfio-harness-disk-") as directory:
            stage = Path(directory) / "stage"
            stage.mkdir()
            stage.chmod(0o755)
            with _plain_modes():
                fill(stage)
            partial = image.with_name(f".{image.name}.partial")
            partial.unlink(missing_ok=True)
            # By default a block is a page of this host, and guests may have smaller pages.
            block = () if os.sysconf("SC_PAGE_SIZE") == _BLOCK else (f"-b{_BLOCK}",)
            options = ("--quiet", "-x-1", "-T0", f"-U{_UUID}", "--all-root", *block)
            argv = ["mkfs.erofs", *options, os.fspath(partial), os.fspath(stage)]
            process.run(argv, deadline=Deadline.after(_MAKE_SECONDS)).check(f"making {image.name}")
            # A kernel with pages of 64 KiB cannot read the last one of a disk that ends within it.
            os.truncate(partial, -(-partial.stat().st_size // _LARGEST_PAGE) * _LARGEST_PAGE)
            partial.replace(image)
    except OSError as error:
        where = error.filename or image
        raise HostError(f"cannot make the disk {image.name}: {where}: {error.strerror}") from error


@contextlib.contextmanager
def _plain_modes() -> Iterator[None]:
    """Keep the user's umask out of the disk."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def put(source: Path | str, target: Path) -> None:
    """Copy a file; of its mode only whether it is executable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def compile_python(python: str, stage: Path, directory: Path, *, seen_at: str) -> None:
    """Compile everything below *directory*, which guests see at the path *seen_at*, to bytecode.

    Unchecked: the image never changes, and its files have no times to compare with.
    """
    mode = ("--invalidation-mode", "unchecked-hash")
    argv = [python, "-I", "-m", "compileall", "-q", "-j0", *mode]
    argv += ["-s", os.fspath(stage), "-p", seen_at, os.fspath(directory)]
    process.run(argv, deadline=Deadline.after(_MAKE_SECONDS)).check("compiling Python for the guest")

# SPDX-License-Identifier: GPL-2.0-only
"""The `image` root: a small user space on read-only disks, made from this host's own programs.

Three disks, by how often they change: `root` (programs, libraries, Python, guest/init.c), `guest` (the
package guest) and `kernel` (one kernel's modules and selftests).  guest/init.c lays a tmpfs over the root, so
that guests may write anywhere and nothing they write stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from harness import paths, process
from harness.deadline import Deadline
from harness.errors import InfraError
from harness.machine import disks
from harness.machine.hostfiles import Listing, collect
from harness.machine.roots import GUEST_DIR, GUEST_KERNEL_DIR, RootParts

_COMPILE_SECONDS = 60.0

_DIRECTORIES = ("dev", "etc", "mnt", "proc", "root/.ssh", "run", "sys", "tmp", "usr/sbin", "var/tmp")
_LINKS = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "sbin": "usr/sbin",
    "etc/mtab": "/proc/mounts",
    "usr/lib/modules": f"{GUEST_KERNEL_DIR}/modules",
    # Straight to QEMU's own copy, which differs from VM to VM.
    "root/.ssh/authorized_keys": "/sys/firmware/qemu_fw_cfg/by_name/opt/vfio-harness/authorized_keys/raw",
}
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shells": "/bin/sh\n/bin/bash\n",
    "etc/hostname": "vfio-harness\n",
}


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRoot:
    """Nothing of the live host in the guest, and half the boot time of the `virtme` root."""

    @property
    def name(self) -> str:
        return "image"

    @property
    def frozen(self) -> bool:
        return True

    def identity(self, guest_dir: Path) -> str:
        return _root_digest(_listing(), guest_dir)

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        listing = _listing()
        images = {"root": _root_disk(listing, guest_dir), GUEST_DIR: _guest_disk(listing, guest_dir)}
        if modules_dir is not None or selftests_dir is not None:
            images[GUEST_KERNEL_DIR] = _kernel_disk(modules_dir, selftests_dir)
        options: list[str] = []
        devices: list[str] = []
        mounts: list[str] = []
        for letter, (point, image) in zip("abc", images.items(), strict=False):
            # Nobody writes: QEMU's lock on the file would only be in the way of other VMs.
            node = f"driver=raw,node-name=disk-{letter},read-only=on"
            file = f"file.driver=file,file.filename={_escaped(image)},file.locking=off"
            options += ["-blockdev", f"{node},{file}"]
            devices.append(f"virtio-blk-pci,drive=disk-{letter},num-queues=1")
            mounts += [f"vd{letter}={point}"] if point != "root" else []
        return RootParts(
            options=tuple(options),
            devices=tuple(devices),
            kernel_args=("root=/dev/vda", "rootfstype=erofs", "ro", "init=/init", "--", *mounts),
            files=tuple(images.values()),
        )


def _escaped(path: Path) -> str:
    """*path* as the value of a QEMU option, where a comma is written twice."""
    return os.fspath(path).replace(",", ",,")


@functools.cache
def _listing() -> Listing:
    """What of this host goes into the root disk, remembered for as long as it is the same."""
    memo = paths.cache_dir() / "images" / "root.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = Listing.from_json(memo.read_text(encoding="utf-8"))
        if known.fresh:
            return known
    listing = collect()
    # A cache that cannot be written costs time only.
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        partial = memo.with_name(f".root.json.{os.getpid()}")
        partial.write_text(listing.to_json(), encoding="utf-8")
        partial.replace(memo)
    return listing


def _root_digest(listing: Listing, guest_dir: Path) -> str:
    fixed = (*_DIRECTORIES, *map(str, _LINKS.items()), *map(str, _TEXTS.items()))
    init = (guest_dir / "init.c").read_text(encoding="utf-8")
    return disks.digest_of((listing.to_json(), init, *fixed))


def _root_disk(listing: Listing, guest_dir: Path) -> Path:
    init = guest_dir / "init.c"

    def fill(stage: Path) -> None:
        for directory in _DIRECTORIES:
            (stage / directory).mkdir(parents=True, exist_ok=True)
        for private in ("root", "root/.ssh"):
            (stage / private).chmod(0o700)
        for shared in ("tmp", "var/tmp"):
            (stage / shared).chmod(0o1777)
        for target, source in listing.files.items():
            disks.put(source, stage / target)
        for target, said in {**_LINKS, **listing.links}.items():
            _link(stage / target, said)
        for target, text in _TEXTS.items():
            (stage / target).write_text(text, encoding="utf-8")
        _compile_init(init, stage / "init")
        disks.compile_python(listing.python, stage, stage / listing.stdlib.lstrip("/"), seen_at="/")

    return disks.provide_disk("root", _root_digest(listing, guest_dir), fill)


def _link(target: Path, said: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink() and not target.exists():
        target.symlink_to(said)


def _compile_init(source: Path, target: Path) -> None:
    """Compile guest/init.c, without libraries: they would have to be loaded at every boot."""
    if process.find_tool("gcc") is None:
        raise InfraError("gcc is missing", hint="run `vfio-harness doctor --fix`, or use --root virtme")
    argv = ["gcc", "-O2", "-static", "-o", os.fspath(target), os.fspath(source)]
    process.run(argv, deadline=Deadline.after(_COMPILE_SECONDS)).check("compiling guest/init.c")


def _guest_disk(listing: Listing, guest_dir: Path) -> Path:
    files = {path.relative_to(guest_dir): path for path in sorted(guest_dir.rglob("*.py"))}
    contents = (f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in files.items())
    digest = disks.digest_of((listing.python, listing.stamps[listing.python], *contents))

    def fill(stage: Path) -> None:
        for name, path in files.items():
            disks.put(path, stage / name)
        disks.compile_python(listing.python, stage, stage, seen_at=GUEST_DIR)

    return disks.provide_disk("guest", digest, fill)


def _kernel_disk(modules_dir: Path | None, selftests_dir: Path | None) -> Path:
    trees = {f"modules/{modules_dir.name}": modules_dir} if modules_dir else {}
    trees |= {"selftests": selftests_dir} if selftests_dir else {}
    files = {f"{top}/{name}": path for top, tree in trees.items() for name, path in _walk(tree)}
    digest = disks.digest_of(f"{name} {_stamp(path)}" for name, path in files.items())

    def fill(stage: Path) -> None:
        (stage / "modules").mkdir()
        for name, path in files.items():
            disks.put(path, stage / name)

    return disks.provide_disk("kernel", digest, fill)


def _walk(tree: Path) -> Iterator[tuple[str, Path]]:
    """Every file below *tree*, links followed, with its path relative to it."""
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(tree)), path


def _stamp(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_mode:o}"

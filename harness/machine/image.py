# SPDX-License-Identifier: GPL-2.0-only
"""The `image` root: a small user space on read-only disks, made from the programs of this host, or for guests
of another architecture from Debian's packages.

Three disks, by how often they change: `root` (programs, libraries, Python, guest/init.c), `guest` (the
package guest) and `kernel` (one kernel's modules and selftests).  guest/init.c mounts a tmpfs over the root,
so that guests may write anywhere and nothing is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.base import process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import HostError, InfraError, UsageError
from harness.base.files import write_atomic
from harness.kernel.arch import Arch, host_arch
from harness.kernel.toolchain import GCC
from harness.machine import disks
from harness.machine.hostfiles import Listing, collect, merged
from harness.machine.rootparts import GUEST_DIR, GUEST_KERNEL_DIR, RootParts

_COMPILE_SECONDS = 60.0

_DIRECTORIES = ("dev", "etc", "mnt", "proc", "root/.ssh", "run", "sys", "tmp", "usr/sbin", "var/tmp")
_LINKS = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "sbin": "usr/sbin",
    "etc/mtab": "/proc/mounts",
    "usr/lib/modules": f"{GUEST_KERNEL_DIR}/modules",
    # This goes straight to QEMU's own copy, which differs from VM to VM.
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
    """A root without the live host, which boots in half the time of the `virtme` root."""

    arch: Arch = dataclasses.field(default_factory=host_arch)
    wanted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Kind of disk -> digest of the disk to use; this host makes its own disks of other kinds."""

    @property
    def name(self) -> str:
        return "image"

    @property
    def frozen(self) -> bool:
        return True

    def disks(self, guest_dir: Path) -> dict[str, str]:
        listing = _listing(self.arch)
        return {"root": _root_digest(listing, guest_dir), "guest": _guest_digest(listing, guest_dir)}

    def has(self, path: str) -> bool:
        listing, place = _listing(self.arch), merged(path)
        return place in listing.files or place in listing.links

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        images = {"root": self._disk("root", guest_dir), GUEST_DIR: self._disk("guest", guest_dir)}
        if modules_dir is not None or selftests_dir is not None:
            images[GUEST_KERNEL_DIR] = _kernel_disk(modules_dir, selftests_dir)
        options: list[str] = []
        devices: list[str] = []
        mounts: list[str] = []
        for letter, (point, image) in zip("abc", images.items(), strict=False):
            # Nothing writes to it, and QEMU's lock on the file would keep other VMs out.
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

    def _disk(self, kind: str, guest_dir: Path) -> Path:
        """Return the disk of *kind* that is wanted, or the one that this host makes.

        Raises InfraError when the wanted one is not in the store and this host would make another.
        """
        wanted = self.wanted.get(kind)
        found = disks.find_disk(kind, wanted) if wanted is not None else None
        if found is not None:
            return found
        own = self.disks(guest_dir)[kind]
        if wanted not in (None, own):
            raise InfraError(
                f"the {kind} disk {wanted} of the image root is not in the store, and this host makes {own}",
                hint=f"copy {disks.disk_path(kind, str(wanted)).name} into {disks.images_dir()}",
                cause=Cause.ROOT_MISSING,
            )
        listing = _listing(self.arch)
        if kind == "root":
            return _root_disk(listing, guest_dir, own, self.arch)
        return _guest_disk(listing, guest_dir, own)


def _escaped(path: Path) -> str:
    """Return *path* as the value of a QEMU option, where a comma is doubled."""
    return os.fspath(path).replace(",", ",,")


@functools.cache
def _listing(arch: Arch) -> Listing:
    """Return the files that go into the root disk of *arch*; cached until one changes."""
    memo = disks.images_dir() / ("root.json" if arch.is_host else f"root-{arch.name}.json")
    with contextlib.suppress(OSError, ValueError, UsageError):
        known = Listing.from_json(memo.read_text(encoding="utf-8"))
        if known.fresh:
            return known
    listing = collect(arch)
    # In a read-only cache it is collected every time.
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memo, listing.to_json())
    return listing


def _root_digest(listing: Listing, guest_dir: Path) -> str:
    fixed = (*_DIRECTORIES, *map(str, _LINKS.items()), *map(str, _TEXTS.items()))
    init = (guest_dir / "init.c").read_text(encoding="utf-8")
    return disks.digest_of((listing.identity, init, *fixed, *_compiled_by(listing)))


def _compiled_by(listing: Listing) -> tuple[str, ...]:
    """Return part of the digest of a disk without bytecode, because this host has not the Python for it."""
    return () if listing.compiler else ("no bytecode",)


def _root_disk(listing: Listing, guest_dir: Path, digest: str, arch: Arch) -> Path:
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
        _compile_init(init, stage / "init", arch)
        if listing.compiler:
            library = stage / listing.stdlib.lstrip("/")
            disks.compile_python(listing.compiler, stage, library, seen_at="/")

    return disks.provide_disk("root", digest, fill)


def _link(target: Path, said: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink() and not target.exists():
        target.symlink_to(said)


def _compile_init(source: Path, target: Path, arch: Arch) -> None:
    """Compile guest/init.c statically: libraries would have to be loaded at every boot."""
    compiler = f"{arch.cross_compile}{GCC.compiler}"
    if process.find_tool(compiler) is None:
        otherwise = ", or use --root virtme" if arch.is_host else ""
        raise HostError(f"{compiler} is missing", hint=f"run `{arch.doctor}`{otherwise}")
    argv = [compiler, "-O2", "-static", "-o", os.fspath(target), os.fspath(source)]
    process.run(argv, deadline=Deadline.after(_COMPILE_SECONDS)).check("compiling guest/init.c")


def _guest_digest(listing: Listing, guest_dir: Path) -> str:
    contents = (
        f"{path.relative_to(guest_dir)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(guest_dir.rglob("*.py"))
    )
    python = listing.packages or listing.stamps[listing.python]
    return disks.digest_of((listing.python, python, *contents, *_compiled_by(listing)))


def _guest_disk(listing: Listing, guest_dir: Path, digest: str) -> Path:
    def fill(stage: Path) -> None:
        for path in guest_dir.rglob("*.py"):
            disks.put(path, stage / path.relative_to(guest_dir))
        if listing.compiler:
            disks.compile_python(listing.compiler, stage, stage, seen_at=GUEST_DIR)

    return disks.provide_disk("guest", digest, fill)


def _kernel_disk(modules_dir: Path | None, selftests_dir: Path | None) -> Path:
    trees = {f"modules/{modules_dir.name}": modules_dir} if modules_dir else {}
    trees |= {"selftests": selftests_dir} if selftests_dir else {}
    files = {f"{top}/{name}": path for top, tree in trees.items() for name, path in _walk(tree)}
    digest = disks.digest_of(f"{name} {_content(path)}" for name, path in files.items())

    def fill(stage: Path) -> None:
        (stage / "modules").mkdir()
        for name, path in files.items():
            disks.put(path, stage / name)

    return disks.provide_disk("kernel", digest, fill)


def _walk(tree: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file below *tree*, following links, with its path relative to *tree*."""
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(tree)), path


def _content(path: Path) -> str:
    """Return the part of *path* that goes into a disk; owner, times and modes differ in copied stores."""
    kind = "program" if path.stat().st_mode & 0o111 else "file"
    return f"{kind} {hashlib.sha256(path.read_bytes()).hexdigest()}"

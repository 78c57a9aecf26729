# SPDX-License-Identifier: GPL-2.0-only
"""Copy a finished kernel, built elsewhere, into the store under the digest of its content.

From then on it is a Kernel like any other: a file that changes afterwards makes another kernel.  What it
can do is read from its configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from harness.base import paths, process
from harness.base.errors import InfraError, UsageError
from harness.kernel.arch import ARCHES, Arch
from harness.kernel.elf import Elf, read_elf
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.proof import Inside, difference, look_inside
from harness.kernel.store import (
    Built,
    digest_of,
    find_built,
    is_whole,
    kernel_entry,
    list_kernels,
    provide_entry,
    read_facts,
    write_facts,
)
from harness.kernel.toolchain import ToolchainIdentity
from harness.kernel.variants import Catalogue, features_of, load_catalogue

UNNAMED = "ready"
"""The variant of a kernel that is configured like none of variants.yaml."""

_DIGEST = re.compile(r"[0-9a-f]{8,32}")
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?(?:-rc\d+)?")
_HEADING = re.compile(r"^# Linux/\S+ (\S+) Kernel Configuration", re.MULTILINE)
_VERMAGIC = re.compile(rb"vermagic=([\w.+~-]+) ")
_LINKED = ("vmlinux.o", "vmlinux.a", "built-in.a")
"""What make links vmlinux from, at the top of its directory."""

_MIB = 1 << 20
_USERLAND_MIB = 240
"""Memory for a guest's programs beside its kernel: 256 MiB, the least that --memory takes, are enough for the
probes on a kernel of 11 MiB (7.3.4)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadyKernel:
    """A kernel of the store that is used as it is: it stands for a KernelPlan and for its tree."""

    built: Built
    label: str
    """Where it came from, for people."""
    config: ResolvedConfig
    variant: str
    """The variant that is configured like it, or UNNAMED."""
    addons: tuple[str, ...]
    features: frozenset[str]
    """The features of guest/needs.py that hold in it."""
    memory_mib: int
    """The least guest memory that it can be tested with."""

    cached = True
    exact = ""

    @property
    def key(self) -> str:
        return self.built.digest

    @property
    def identity(self) -> str:
        return self.built.digest

    @property
    def version(self) -> str:
        """What its tree's Makefile said, as far as its release tells."""
        found = _VERSION.match(self.built.release)
        return found[0] if found else self.built.release

    @property
    def arch(self) -> Arch:
        return self.built.arch

    @property
    def image(self) -> Path:
        return self.built.image

    @property
    def built_with(self) -> ToolchainIdentity:
        compiler, _, linker = self.built.toolchain.partition("; ")
        return ToolchainIdentity(compiler=compiler, linker=linker)

    @property
    def has_one_processor(self) -> bool:
        return self.config.get("SMP") != "y"


def open_ready(digest: str, label: str = "") -> ReadyKernel:
    """Return the kernel *digest* of the store, called *label*.  Raises InfraError when it is not there."""
    built = find_built(digest)
    if built is None:
        raise InfraError(
            f"the kernel {digest[:12]}, which was handed in, is not in the store any more",
            hint="hand it in again with --kernel",
        )
    config = ResolvedConfig.parse(built.config.read_text(encoding="utf-8"))
    catalogue = load_catalogue()
    features = features_of(catalogue, config)
    loaded = read_elf(built.vmlinux).loaded // _MIB + _USERLAND_MIB
    return ReadyKernel(
        built=built,
        label=label or str(read_facts(kernel_entry(digest))["tree_label"]),
        config=config,
        variant=_variant_of(catalogue, features),
        addons=tuple(name for name in catalogue.addons if name in features),
        features=features,
        # KASAN takes an eighth of all memory for its shadow (Documentation/dev-tools/kasan.rst).
        memory_mib=loaded * 8 // 7 if config.get("KASAN") == "y" else loaded,
    )


def _variant_of(catalogue: Catalogue, features: frozenset[str]) -> str:
    own = features - set(catalogue.addons)
    same = (v.name for v in catalogue.variants.values() if not v.blocked and v.features == own)
    return next(same, UNNAMED)


def hand_in(spec: str, modules: Path | None = None, config: Path | None = None) -> str:
    """Take the kernel *spec* into the store unless it is there; return its digest.

    *spec* is a build directory, a vmlinux, or the digest of a kernel of the store or the start of one.
    *modules* is its lib/modules/RELEASE, or a directory that has it; *config* its .config.
    Raises UsageError for what cannot be a kernel to test, InfraError for host trouble.
    """
    path = paths.expanded(spec)
    if not path.exists():
        return _find_digest(spec, given=modules or config)
    try:
        handed = _inspect(path.absolute(), modules, config)
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    entry = kernel_entry(handed.digest)
    provide_entry(entry, f"another process is copying {path}", handed.copy, is_there=is_whole)
    return handed.digest


def _find_digest(spec: str, *, given: Path | None) -> str:
    if not _DIGEST.fullmatch(spec):
        raise UsageError(
            f"there is no kernel {spec!r}",
            hint="give a build directory (O=), a vmlinux, or a digest of: vfio-harness list kernels",
        )
    found = [str(facts["digest"]) for facts in list_kernels() if str(facts["digest"]).startswith(spec)]
    if len(found) != 1:
        what = f"{len(found)} kernels of the store begin with" if found else "the store has no kernel"
        raise UsageError(f"{what} {spec}", hint="see: vfio-harness list kernels")
    if given is not None:
        raise UsageError(f"the kernel {spec} of the store has its own modules and .config: leave {given} out")
    return found[0]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Handed:
    """A kernel as it was handed in, all of it checked."""

    path: Path
    arch: Arch
    files: Mapping[str, Path]
    """Name in the store -> its file, for vmlinux and the boot image."""
    modules: Mapping[str, Path]
    """Path below lib/modules/RELEASE -> its file."""
    elf: Elf
    inside: Inside
    config: ResolvedConfig
    digest: str

    def copy(self, partial: Path) -> None:
        """Copy it into *partial*.  Raises InfraError when it changed meanwhile."""
        release = self.inside.release
        files = _copied(self.files, partial, self.path)
        modules = _copied(self.modules, partial / "lib" / "modules" / release, self.path)
        if _digest(files, modules, self.config) != self.digest:
            raise _under_way(self.path)
        if modules and "modules.dep" not in modules:
            process.run(["depmod", "--basedir", partial, release]).check("depmod")
        (partial / "config").write_text(self.config.text, encoding="utf-8")
        write_facts(partial, self._facts())

    def _facts(self) -> dict[str, object]:
        catalogue = load_catalogue()
        features = features_of(catalogue, self.config)
        tools = ToolchainIdentity(compiler=self.inside.compiler, linker=self.inside.linker)
        return {
            "digest": self.digest,
            "arch": self.arch.name,
            "release": self.inside.release,
            "build_id": self.elf.build_id,
            "variant": _variant_of(catalogue, features),
            "features": sorted(features),
            "tree_label": os.fspath(self.path),
            "toolchain": str(tools),
            "handed_in": True,
            "build_seconds": 0.0,
            "cpu_seconds": 0.0,
        }


def _inspect(path: Path, modules: Path | None, config: Path | None) -> _Handed:
    """Check the kernel at *path*, and whether its parts belong together."""
    directory = path if path.is_dir() else None
    vmlinux = _vmlinux_of(path) if directory else path
    arch, elf = _check_elf(vmlinux)
    inside = look_inside(vmlinux)
    if not inside.release:
        raise UsageError(f"{vmlinux} is no Linux kernel: it has no 'Linux version' banner")
    if not elf.build_id:
        raise UsageError(
            f"{vmlinux} has no GNU build-id, which proves that a guest runs this kernel",
            hint="take the vmlinux that make left, not one without its section .notes",
        )
    resolved = _config_of(vmlinux, inside, config, is_build=directory is not None)
    files = {"vmlinux": vmlinux}
    if arch.image_name != "vmlinux":
        files[arch.image_name] = vmlinux.parent / arch.image
        _check_image(files[arch.image_name], vmlinux, arch, elf)
    release = inside.release
    found = _modules_in(modules, release) if modules else _built_modules(directory, resolved, release)
    digest = _digest(files, found, resolved)
    return _Handed(
        path=path,
        arch=arch,
        files=files,
        modules=found,
        elf=elf,
        inside=inside,
        config=resolved,
        digest=digest,
    )


def _check_image(image: Path, vmlinux: Path, arch: Arch, elf: Elf) -> None:
    """Refuse a boot *image* without the build-id of *vmlinux*, which its guest would have to show."""
    if not image.is_file():
        raise UsageError(f"{vmlinux} has no {arch.image} beside it, which {arch.name} machines boot")
    if bytes.fromhex(elf.build_id) not in image.read_bytes():
        raise UsageError(
            f"{image} is not the boot image of {vmlinux}: it does not contain its build-id {elf.build_id}",
            hint=f"run make {arch.image_name} in {vmlinux.parent}",
        )


def _copied(files: Mapping[str, Path], target: Path, origin: Path) -> dict[str, Path]:
    """Copy *files*, which are of *origin*, into *target* under their names; return the copies."""
    copies = {name: target / name for name in files}
    for name, source in files.items():
        copies[name].parent.mkdir(parents=True, exist_ok=True)
        if not source.is_file():
            raise _under_way(origin)
        shutil.copy2(source, copies[name])
    return copies


def _digest(files: Mapping[str, Path], modules: Mapping[str, Path], config: ResolvedConfig) -> str:
    def lines(named: Mapping[str, Path]) -> list[str]:
        return [f"{name} {_sha256(path)}" for name, path in sorted(named.items())]

    return digest_of("ready", config.digest, *lines(files), *lines(modules))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _under_way(directory: Path) -> InfraError:
    return InfraError(
        f"{directory} is being built: make is at work there", hint="run it again when make has ended"
    )


def _vmlinux_of(directory: Path) -> Path:
    """Return the vmlinux of a build directory; refuse one whose build is under way or did not end."""
    if not (directory / ".config").is_file():
        hint = "give the O= directory of a kernel build, or a vmlinux"
        if (directory / "vmlinux").is_file():
            hint = f"give {directory / 'vmlinux'}"
        elif (directory / "Kconfig").is_file():
            hint = f"it is a source that was not built: --tree {directory} builds it"
        raise UsageError(f"{directory} is no build directory: it has no .config", hint=hint)
    for process_dir in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (process_dir / "comm").read_text(encoding="utf-8").strip()
            if name in ("make", "gmake") and (process_dir / "cwd").readlink() == directory.resolve():
                raise _under_way(directory)
    vmlinux = directory / "vmlinux"
    if not vmlinux.is_file():
        raise UsageError(
            f"{directory} has no vmlinux: its build did not end", hint=f"run make in {directory}"
        )
    linked = vmlinux.stat().st_mtime_ns
    for name in _LINKED:
        with contextlib.suppress(OSError):
            if (directory / name).stat().st_mtime_ns > linked:
                raise UsageError(
                    f"the last build in {directory} did not end: {name} is newer than vmlinux",
                    hint=f"run make there, or give {vmlinux} to test the kernel of the build before",
                )
    return vmlinux


def _check_elf(vmlinux: Path) -> tuple[Arch, Elf]:
    if not vmlinux.is_file():
        raise UsageError(f"{vmlinux} is no file")
    try:
        with vmlinux.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise UsageError(f"cannot read {vmlinux}: {error.strerror}") from error
    if not head:
        raise UsageError(f"{vmlinux} is empty", hint="build it again")
    for arch in ARCHES.values():
        offset, magic, what = arch.packed_image
        if head[offset : offset + len(magic)] == magic:
            raise UsageError(f"{vmlinux} is a {what}, and vmlinux is wanted", hint=_unpacked_hint(vmlinux))
    try:
        elf = read_elf(vmlinux)
    except InfraError as error:
        raise UsageError(error.message, hint="give the vmlinux at the top of a build directory") from error
    for arch in ARCHES.values():
        if arch.elf_machine == elf.machine:
            return arch, elf
    raise UsageError(
        f"{vmlinux} is for another architecture (ELF machine {elf.machine})",
        hint=f"known: {', '.join(ARCHES)}",
    )


def _unpacked_hint(image: Path) -> str:
    """Return where the vmlinux of a compressed *image* probably is."""
    release = image.name.partition("-")[2]
    places = [parent / "vmlinux" for parent in image.parents[:4]]
    places += [
        Path("/usr/lib/debug/boot", f"vmlinux-{release}"),
        Path("/lib/modules", release, "build/vmlinux"),
    ]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return f"give {found}"
    return "give the vmlinux at the top of its build directory, or what scripts/extract-vmlinux prints"


def _config_of(vmlinux: Path, inside: Inside, given: Path | None, *, is_build: bool) -> ResolvedConfig:
    """Return the configuration of *vmlinux*: *given*, the one it contains, or the one beside it.

    That of a build directory must be the one that it was built with.
    """
    if inside.config is not None and given is None and not is_build:
        return inside.config
    beside = (vmlinux.parent / name for name in (".config", f"config-{inside.release}", "config"))
    found = given or next((path for path in beside if path.is_file()), None)
    if found is None:
        raise UsageError(
            f"{vmlinux} has no .config beside it and contains none (CONFIG_IKCONFIG=y)",
            hint="give it with --kernel-config FILE",
        )
    try:
        text = found.read_text(encoding="utf-8")
        newer = found.stat().st_mtime_ns > vmlinux.stat().st_mtime_ns
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"cannot read {found}: {reason}") from error
    config = ResolvedConfig.parse(text)
    if not config.values:
        raise UsageError(f"{found} is no .config: it sets no CONFIG_ symbol")
    reason = ""
    heading = _HEADING.search(text)
    if heading is not None and not inside.release.startswith(heading[1]):
        reason = f"it is of {heading[1]}, and vmlinux of {inside.release}"
    elif inside.config is not None or config.get("IKCONFIG") == "y":
        reason = (
            ", ".join(difference(inside.config, config)[:3]) if inside.config else "vmlinux contains none"
        )
    elif newer and given is None and found.name == ".config":
        reason = "it is newer"
    if reason:
        hint = "give the .config that it was built with"
        if given is None:
            hint = f"run make in {vmlinux.parent}, or {hint} with --kernel-config"
        raise UsageError(f"{found} is not the configuration of {vmlinux}: {reason}", hint=hint)
    return config


def _built_modules(directory: Path | None, config: ResolvedConfig, release: str) -> dict[str, Path]:
    """Return the modules of a build *directory* as modules_install would; none if they were not built."""
    if directory is None or not config.modular:
        return {}
    found = {}
    lines = []
    with contextlib.suppress(FileNotFoundError):
        lines = (directory / "modules.order").read_text(encoding="utf-8").split()
    for line in lines:
        # "kernel/x.ko" before 5.12, then "x.ko", since 6.4 "x.o" (scripts/Makefile.build).
        name = f"{line.removeprefix('kernel/').rpartition('.')[0]}.ko"
        if not (directory / name).is_file():
            return {}
        found[f"kernel/{name}"] = directory / name
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        if found and (directory / name).is_file():
            found[name] = directory / name
    _check_vermagic(found, release)
    return found


def _modules_in(given: Path, release: str) -> dict[str, Path]:
    """Return the modules of *release* that *given* has, as lib/modules/RELEASE or below such a directory."""
    given = paths.expanded(given).absolute()
    if not given.is_dir():
        raise UsageError(f"there is no directory {given} with modules")
    places = [given / "lib/modules" / release, given / "usr/lib/modules" / release, given / release, given]
    place = next((place for place in places if (place / "modules.dep").is_file()), None)
    if place is None:
        others = sorted(path.parent.name for path in given.glob("lib/modules/*/modules.dep"))
        hint = (
            f"it has those of {', '.join(others)}" if others else "make modules_install INSTALL_MOD_PATH=DIR"
        )
        raise UsageError(
            f"{given} has no modules of {release}: no lib/modules/{release}/modules.dep", hint=hint
        )
    found = {}
    for folder, _names, files in os.walk(place):
        for name in files:
            path = Path(folder, name)
            if path.is_file():
                found[os.fspath(path.relative_to(place))] = path
    _check_vermagic(found, release)
    return found


def _check_vermagic(modules: Mapping[str, Path], release: str) -> None:
    """Refuse modules of another release than the kernel's; of compressed ones it is unknown."""
    path = next((path for path in modules.values() if path.suffix == ".ko"), None)
    found = _VERMAGIC.search(path.read_bytes()) if path is not None else None
    if found is not None and found[1].decode() != release:
        raise UsageError(f"{path} is a module of {found[1].decode()}, and the kernel is {release}")

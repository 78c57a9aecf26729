# SPDX-License-Identifier: GPL-2.0-only
"""A finished kernel that is handed in becomes a kernel of the store, or is refused in one sentence."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest
from kernel_fake_ready import AARCH64, RELEASE, RISCV, good_config, make_build, make_module, make_vmlinux

from guest import agent
from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.errors import InfraError, KernelError, NotApplicable, UsageError
from harness.kernel.arch import ARCHES, find_arch, host_arch
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.provide import seconds_lately
from harness.kernel.ready import UNNAMED, hand_in, open_ready
from harness.kernel.required import _required, _settings, require_small_blocks, require_symbols, unwatched
from harness.kernel.store import find_built, kernel_entry, list_kernels
from harness.kernel.variants import features_of, load_catalogue

CATALOGUE = load_catalogue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_a_kernel_like_any_other(tmp_path: Path) -> None:
    """The store has it under the digest of its content, with what its banner and headers say."""
    digest = hand_in(str(make_build(tmp_path / "O")))
    assert hand_in(str(tmp_path / "O")) == hand_in(str(tmp_path / "O" / "vmlinux")) == digest
    built = find_built(digest)
    assert built is not None
    assert (built.release, built.build_id, built.modules_dir) == (RELEASE, "12" * 20, None)
    assert built.toolchain.startswith("gcc (Debian 12.2.0-14) 12.2.0; GNU ld")
    found = open_ready(digest)
    assert found.label == str(tmp_path / "O")
    assert (found.version, found.variant, found.addons) == ("7.3.4", "group-cdev", ())
    assert found.features == CATALOGUE.variant("group-cdev").features
    assert not found.has_one_processor
    assert [facts["digest"] for facts in list_kernels()] == [digest]


def test_a_changed_file_is_another_kernel(tmp_path: Path) -> None:
    """The first one stays in the store, unchanged, and can be named by the start of its digest."""
    first = hand_in(str(make_build(tmp_path / "O")))
    second = hand_in(str(make_build(tmp_path / "O", build_id=b"\x34" * 20)))
    assert first != second
    assert open_ready(first).built.build_id == "12" * 20
    shutil.rmtree(tmp_path / "O")
    assert hand_in(first[:10]) == first


def test_a_vmlinux_alone_is_configured_as_it_says(tmp_path: Path) -> None:
    """IKCONFIG, --kernel-config or a file beside it give the same kernel, but only IKCONFIG is sure."""
    off = good_config(IKCONFIG="n", VFIO_GROUP="n", VFIO_CONTAINER="n")
    alone = make_vmlinux(tmp_path / "a" / "vmlinux", good_config())
    assert open_ready(hand_in(str(alone))).variant == "group-cdev"
    silent = make_vmlinux(tmp_path / "b" / "vmlinux")
    given = tmp_path / "config"
    given.write_text(off, encoding="utf-8")
    digest = hand_in(str(silent), config=given)
    assert open_ready(digest).variant == "cdev"
    shutil.copy(given, silent.parent / f"config-{RELEASE}")
    assert hand_in(str(silent)) == digest


def test_what_is_configured_like_no_variant(tmp_path: Path) -> None:
    """It is tested all the same, by the features that it has."""
    config = good_config(IOMMUFD_VFIO_CONTAINER="y", KASAN="y", SMP="n")
    found = open_ready(hand_in(str(make_build(tmp_path / "O", config))))
    assert (found.variant, found.addons) == (UNNAMED, ("debug",))
    assert {"container", "compat", "debug"} <= found.features
    assert found.has_one_processor


def test_kasan_needs_an_eighth_more(tmp_path: Path) -> None:
    """The kernel's own size counts, and KASAN's shadow of all memory."""
    plain = open_ready(hand_in(str(make_build(tmp_path / "a", memory=700 << 20))))
    kasan = open_ready(hand_in(str(make_build(tmp_path / "b", good_config(KASAN="y"), memory=700 << 20))))
    assert plain.memory_mib > 700
    assert kasan.memory_mib == plain.memory_mib * 8 // 7


@pytest.mark.parametrize("variant", [v.name for v in CATALOGUE.variants.values() if not v.blocked])
def test_features_are_those_of_the_variant(variant: str) -> None:
    """Read from a .config they are what the variant promises."""
    wants = CATALOGUE.variant(variant).wants
    changed = {symbol: "y" for symbol in CATALOGUE.variant(variant).y}
    changed |= {symbol: "m" for symbol in CATALOGUE.variant(variant).m}
    changed |= {symbol: "n" for symbol in CATALOGUE.variant(variant).absent}
    merged = wants.noiommu and wants.noiommu_only is None
    changed["VFIO_NOIOMMU"] = "y" if merged else "n"
    changed["IOMMUFD_NOIOMMU"] = "y" if wants.noiommu_cdev else "n"
    changed["VFIO_GROUP_NOIOMMU"] = "y" if wants.noiommu_only and wants.noiommu_group else "n"
    changed["VFIO_CDEV_NOIOMMU"] = "y" if wants.noiommu_only and wants.noiommu_cdev else "n"
    config = ResolvedConfig.parse(good_config(variant, **changed))
    assert features_of(CATALOGUE, config) == CATALOGUE.variant(variant).features


def test_modules_of_a_build(tmp_path: Path) -> None:
    """They go into the store as modules_install has them, however modules.order names them."""
    build = make_build(tmp_path / "O", good_config(VFIO="m", VFIO_PCI="m", IOMMUFD="m"))
    for name in ("drivers/vfio/vfio.ko", "drivers/vfio/pci/vfio-pci.ko"):
        make_module(build / name)
    (build / "modules.order").write_text("drivers/vfio/vfio.o\nkernel/drivers/vfio/pci/vfio-pci.ko\n")
    found = open_ready(hand_in(str(build)))
    assert found.built.modules_dir is not None
    kept = {str(path.relative_to(found.built.modules_dir)) for path in found.built.modules_dir.rglob("*.ko")}
    assert kept == {"kernel/drivers/vfio/vfio.ko", "kernel/drivers/vfio/pci/vfio-pci.ko"}
    assert (found.built.modules_dir / "modules.dep").is_file()
    assert found.variant == "modules"
    make_module(build / "drivers/vfio/vfio.ko").touch()
    assert hand_in(str(build)) == found.key


@pytest.mark.parametrize("inner", ["", "lib/modules/{}", "usr/lib/modules/{}"])
def test_installed_modules(inner: str, tmp_path: Path) -> None:
    """--modules takes lib/modules/RELEASE itself or what has it."""
    place = tmp_path / "mods" / inner.format(RELEASE)
    make_module(place / "kernel" / "x.ko")
    (place / "modules.dep").touch()
    (place / "build").symlink_to("/nowhere")
    found = open_ready(hand_in(str(make_build(tmp_path / "O")), tmp_path / "mods"))
    assert found.built.modules_dir == kernel_entry(found.key) / "lib/modules" / RELEASE
    names = {path.name for path in found.built.modules_dir.iterdir()}
    assert names == {"kernel", "modules.dep"}


def refused(path: Path | str, kind: type[Exception] = UsageError, **parts: Path) -> str:
    with pytest.raises(kind) as caught:
        hand_in(str(path), **parts)
    assert type(caught.value) is kind
    assert not list_kernels()
    return str(caught.value)


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    """One sentence that says what is wrong with the file, and what to do."""
    assert "there is no kernel" in refused(tmp_path / "x")
    assert "the store has no kernel deadbeef" in refused("deadbeef")
    empty = tmp_path / "empty" / "vmlinux"
    empty.parent.mkdir()
    empty.touch()
    assert f"{empty} is empty" in refused(empty)
    packed = tmp_path / "packed" / "arch/x/boot" / ARCHES["x86_64"].packed_image[2]
    packed.parent.mkdir(parents=True)
    packed.write_bytes(bytes(0x202) + b"HdrS" + bytes(600))
    assert re.search("is a bzImage, and vmlinux is wanted .*extract-vmlinux", refused(packed))
    make_vmlinux(tmp_path / "packed" / "vmlinux")
    assert f"give {tmp_path}/packed/vmlinux" in refused(packed)
    cut = make_vmlinux(tmp_path / "cut" / "vmlinux", good_config())
    cut.write_bytes(cut.read_bytes()[:190])
    assert "is cut off at 190 bytes" in refused(cut)
    text = tmp_path / "text"
    text.write_text("x" * 2000)
    assert "is not a 64-bit little-endian ELF file (give the vmlinux at the top" in refused(text)
    assert "no 'Linux version' banner" in refused(make_vmlinux(tmp_path / "program", release=""))
    other = make_vmlinux(tmp_path / "arm", good_config(), machine=RISCV)
    assert "is for another architecture (ELF machine 243)" in refused(other)
    bare = make_vmlinux(tmp_path / "bare", good_config(), build_id=b"")
    assert "has no GNU build-id" in refused(bare)
    with_fifo = tmp_path / "fifo"
    os.mkfifo(with_fifo)
    assert "is no file" in refused(with_fifo)


def test_a_configuration_that_is_not_its_own_is_refused(tmp_path: Path) -> None:
    """A wrong .config would let cases run that cannot pass, or hide them."""
    silent = make_vmlinux(tmp_path / "vmlinux")
    assert "has no .config beside it and contains none" in refused(silent)
    given = tmp_path / "given"
    given.write_text(good_config(IKCONFIG="n").replace("x86 7.3.4", "x86 6.12.1"))
    assert "it is of 6.12.1, and vmlinux of 7.3.4-mine" in refused(silent, config=given)
    given.write_text(good_config())
    assert "vmlinux contains none" in refused(silent, config=given)
    given.write_text("hello\n")
    assert "is no .config: it sets no CONFIG_ symbol" in refused(silent, config=given)
    given.write_bytes(b"\xff\xfe")
    assert "not UTF-8 text" in refused(silent, config=given)
    speaking = make_vmlinux(tmp_path / "b" / "vmlinux", good_config())
    given.write_text(good_config(VFIO_GROUP="n"))
    assert "CONFIG_VFIO_GROUP=n instead of y" in refused(speaking, config=given)


def test_a_build_that_did_not_end_is_refused(tmp_path: Path) -> None:
    """Its vmlinux is that of an earlier build, if there is one."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is no build directory: it has no .config (give the O= directory" in refused(empty)
    (empty / "Kconfig").touch()
    assert f"it is a source that was not built: --tree {empty} builds it" in refused(empty)
    bare = make_vmlinux(tmp_path / "bare" / "vmlinux").parent
    assert f"has no .config (give {bare}/vmlinux)" in refused(bare)
    (empty / ".config").write_text(good_config())
    assert "has no vmlinux: its build did not end" in refused(empty)
    build = make_build(tmp_path / "O")
    (build / ".config").write_text(good_config(VFIO_GROUP="n"))
    assert "CONFIG_VFIO_GROUP=n instead of y (run make in" in refused(build)
    silent = make_build(tmp_path / "silent", good_config(IKCONFIG="n"))
    make_vmlinux(silent / "vmlinux")
    later = (silent / "vmlinux").stat().st_mtime + 10
    os.utime(silent / ".config", (later, later))
    assert "it is newer" in refused(silent)
    linked = make_build(tmp_path / "linked")
    (linked / "vmlinux.o").touch()
    os.utime(linked / "vmlinux.o", (later, later))
    assert "vmlinux.o is newer than vmlinux" in refused(linked)


def test_a_boot_image_of_another_vmlinux_is_refused(tmp_path: Path) -> None:
    """After `make vmlinux` alone the guest would boot the kernel of the build before."""
    build = make_build(tmp_path / "O", machine=AARCH64)
    image = build / find_arch("arm64").image
    image.parent.mkdir(parents=True)
    for stale in (b"", b"Linux" + b"\x34" * 20):
        image.write_bytes(stale)
        assert f"{image} is not the boot image of {build}/vmlinux" in refused(build)
    image.write_bytes(b"Linux" + b"\x12" * 20)
    assert hand_in(str(build))


def test_a_build_under_way_is_waited_for_by_its_user(tmp_path: Path) -> None:
    """A make that is at work in the directory says nothing about the kernel: infrastructure."""
    build = make_build(tmp_path / "O")
    (tmp_path / "Makefile").write_text("all:\n\t@echo begun; sleep 60\n")
    argv = ["make", "-f", str(tmp_path / "Makefile")]
    with process.spawn(argv, cwd=build, stdout=process.PIPE, whole_group=True) as make:
        assert make.stdout.readline() == b"begun\n"
        assert "is being built: make is at work there" in refused(build, InfraError)
        make.stop(Deadline.after(0))
    assert hand_in(str(build))


def test_a_file_that_changes_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has no mixture of two kernels."""
    build = make_build(tmp_path / "O")
    copy = shutil.copy2

    def late(source: Path, target: Path) -> None:
        copy(source, target)
        with target.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr("harness.kernel.ready.shutil.copy2", late)
    assert "is being built" in refused(build, InfraError)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk error is a sentence with the name of the file."""
    build = make_build(tmp_path / "O")

    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("harness.kernel.ready._sha256", broken)
    assert f"cannot read {build}/vmlinux: Input/output error" in refused(build)


def test_its_build_took_no_time(tmp_path: Path) -> None:
    """A kernel that nobody built here says nothing about how long builds take."""
    found = open_ready(hand_in(str(make_build(tmp_path / "O"))))
    assert seconds_lately(found) is None  # type: ignore[arg-type]


def test_modules_of_another_release_are_refused(tmp_path: Path) -> None:
    """By the directory's name, or by what the modules say of themselves."""
    build = make_build(tmp_path / "O")
    place = tmp_path / "mods" / "lib/modules" / "6.12.1"
    make_module(place / "kernel/x.ko", "6.12.1")
    (place / "modules.dep").touch()
    said = refused(build, modules=tmp_path / "mods")
    assert f"has no modules of {RELEASE}" in said
    assert "it has those of 6.12.1" in said
    assert f"is a module of 6.12.1, and the kernel is {RELEASE}" in refused(build, modules=place)
    stale = make_build(tmp_path / "stale", good_config(VFIO="m"))
    make_module(stale / "x.ko", "7.3.3")
    (stale / "modules.order").write_text("x.o\n")
    assert "is a module of 7.3.3" in refused(stale)


def test_every_required_symbol_has_a_line() -> None:
    """What a kernel may lack is in some shipped fragment as y, which the message names."""
    lists = [names for group in _required().values() for names in group.values()]
    for arch in ARCHES.values():
        own = [arch.required, *(iommu.symbols for iommu in arch.iommus.values())]
        for symbol in (symbol for names in (*lists, *own) for symbol in names):
            assert _settings(arch)[symbol].value == "y", symbol


def needs(config: str, *, has_modules: bool = False, root: str = "image", **topology: object) -> None:
    arguments = {"has_modules": has_modules, "root": root, **topology}
    require_symbols(ResolvedConfig.parse(config), host_arch(), **arguments)  # type: ignore[arg-type]


def test_what_no_guest_can_do_without_is_named_with_its_line() -> None:
    """The message has the line of the fragment that gives it."""
    needs(good_config())
    needs(good_config(), root="virtme")
    with pytest.raises(KernelError) as caught:
        needs(good_config(VIRTIO_BLK="n", EROFS_FS="m"))
    assert re.search(
        r"CONFIG_VIRTIO_BLK is n, CONFIG_EROFS_FS is m \(build it with CONFIG_VIRTIO_BLK=y "
        r"\(base\.config:\d+\), CONFIG_EROFS_FS=y \(base\.config:\d+\)",
        str(caught.value),
    )
    needs(good_config(VIRTIO_BLK="n"), root="virtme")


@pytest.mark.parametrize(
    ("size", "version", "root", "reads"),
    [
        (64, "6.1.170", "image", False),
        (16, "6.3.0-rc7", "image", False),
        (64, "6.4.0", "image", True),
        (64, "7.3.4", "image", True),
        (4, "6.1.170", "image", True),
        (64, "6.1.170", "virtme", True),
    ],
)
def test_old_erofs_needs_small_pages(size: int, version: str, root: str, reads: bool) -> None:
    """It would be a guest that dies at boot, of which the kernel is not to blame."""
    config = ResolvedConfig.parse(f"CONFIG_ARM64_{size}K_PAGES=y\n")
    with contextlib.nullcontext() if reads else pytest.raises(NotApplicable, match=f"CONFIG_ARM64_{size}K_"):
        require_small_blocks(config, find_arch("arm64"), version, root)


def test_what_can_be_loaded_may_be_a_module() -> None:
    """The network and VFIO come after the root is mounted."""
    config = good_config(VIRTIO_NET="m", VFIO="m", VFIO_PCI="m")
    needs(config, has_modules=True)
    with pytest.raises(KernelError, match="CONFIG_VIRTIO_NET is m"):
        needs(config)


def test_what_may_be_a_module_is_loaded() -> None:
    """Process 1 of either root loads the module of each `loadable` symbol; of VFIO the agent loads it too."""
    guest = paths.guest_dir()
    init = re.search(r'"modprobe", "-a", "-q",([^}]*), NULL', (guest / "init.c").read_text(encoding="utf-8"))
    script = re.search(r"\tmodprobe -a -q (.*) 2>", (guest / "init.sh").read_text(encoding="utf-8"))
    assert init
    assert script
    loaded = re.findall(r'"(\S+)"', init[1])
    assert script[1].split() == loaded
    named = {"FW_CFG_SYSFS": "qemu_fw_cfg", "VFIO": "vfio-pci", "VFIO_PCI": "vfio-pci"}  # vfio-pci needs vfio
    needed = {named.get(symbol, symbol.lower()) for symbol in _required()["guest"]["loadable"]}
    # A kernel may lack the type1 container.
    assert set(loaded) == {*needed, "vfio_iommu_type1"}
    assert {name for name in loaded if name.startswith("vfio")} < set(agent.MODULES)


def test_a_topology_may_be_out_of_reach() -> None:
    """That is an answer about the topology: not applicable."""
    for features, iommu, symbol in (
        (("hotplug",), None, "HOTPLUG_PCI_PCIE"),
        (("sriov",), None, "PCI_IOV"),
        ((), "amd-iommu", "AMD_IOMMU"),
    ):
        needs(good_config(), features=features, iommu=iommu)
        with pytest.raises(NotApplicable, match=f"CONFIG_{symbol} is n"):
            needs(good_config(**{symbol: "n"}), features=features, iommu=iommu)


def test_what_cases_look_at() -> None:
    """Symbols of the base that a kernel lacks are known, whatever its other symbols are."""
    assert unwatched(ResolvedConfig.parse(good_config()), host_arch()) == ()
    changed = {"PROC_PAGE_MONITOR": "n", "VFIO_GROUP": "n", "EROFS_FS": "n", "AMD_IOMMU": "n"}
    lacking = ResolvedConfig.parse(good_config(**changed))
    assert unwatched(lacking, host_arch()) == ("PROC_PAGE_MONITOR",)

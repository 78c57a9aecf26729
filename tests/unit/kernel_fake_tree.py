# SPDX-License-Identifier: GPL-2.0-only
"""A source tree that looks like Linux to the harness and builds in milliseconds, with real make and real gcc."""

from __future__ import annotations

from pathlib import Path

from harness import paths
from harness.kernel.kconfig import read_fragment

_MAKEFILE = """\
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 0
EXTRAVERSION = -rc1

S := $(CURDIR)

tinyconfig:
	@echo 'CONFIG_TINY=y' > $(O)/.config

olddefconfig:
	@grep -v 'CONFIG_IOMMUFD_NOIOMMU=' $(O)/.config > $(O)/.new || true
	@if grep -q CONFIG_VFIO_NOIOMMU=y $(O)/.new && grep -q CONFIG_VFIO_DEVICE_CDEV=y $(O)/.new; \\
	 then echo 'CONFIG_IOMMUFD_NOIOMMU=y' >> $(O)/.new; fi
	@mv $(O)/.new $(O)/.config

vmlinux: $(O)/vmlinux
	@mkdir -p $(O)/include/config && echo 7.3.0-rc1 > $(O)/include/config/kernel.release

modules:

$(O)/main.o: $(S)/init/main.c
	@echo '  CC      init/main.o'
	@gcc -c -o $@ $<
	@echo 'deps := $(S)/init/main.c' > $(O)/.main.o.cmd

$(O)/config.o: $(O)/.config
	@echo '  CC      config.o'
	@(printf 'const char config[] = "'; md5sum < $(O)/.config | cut -c1-32 | tr -d '\\n'; echo '";') > $(O)/config.c
	@gcc -c -o $@ $(O)/config.c

$(O)/vmlinux: $(O)/main.o $(O)/config.o
	@echo '  LD      vmlinux'
	@gcc -nostdlib -static -Wl,--build-id=sha1 -Wl,-e,start -o $@ $^
"""


def make_fake_tree(path: Path) -> Path:
    """Write the tree to *path*; it defines every symbol that the shipped fragments ask for, in 7.3's dialect."""
    for name in ("drivers/vfio", "scripts", "init"):
        (path / name).mkdir(parents=True)
    for name in ("Kbuild", "MAINTAINERS", "drivers/Kconfig", "scripts/Makefile"):
        (path / name).touch()
    (path / "Makefile").write_text(_MAKEFILE, encoding="utf-8")
    (path / "init" / "main.c").write_text("void start(void) {}\n", encoding="utf-8")
    asked = {s.symbol for file in paths.kconfigs_dir().glob("*.config") for s in read_fragment(file).settings}
    lines = [f'config {symbol}\n\ttristate "x"\n' for symbol in sorted(asked) if "NOIOMMU" not in symbol]
    lines.append('config VFIO_NOIOMMU\n\tbool "x"\n\tselect IOMMUFD_NOIOMMU if VFIO_DEVICE_CDEV\n')
    lines.append("config IOMMUFD_NOIOMMU\n\tbool\n")
    (path / "Kconfig").write_text("".join(lines), encoding="utf-8")
    return path

# SPDX-License-Identifier: GPL-2.0-only
"""A source tree that looks like Linux to the harness and builds in milliseconds, with real make and gcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.base import paths
from harness.kernel.kconfig import read_fragment

needs_build_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("make", "gcc", "ld", "flex", "bison", "bc", "git")),
    reason="the tools of a kernel build are missing",
)


def git(directory: Path, *arguments: str) -> str:
    """Return what git prints in *directory*."""
    argv = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


# Recipe lines begin with '>' here and with a tab in the file.
_MAKEFILE = """\
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 0
EXTRAVERSION = -rc1

S := $(CURDIR)
CC := $(CROSS_COMPILE)gcc

tinyconfig:
>@echo 'CONFIG_TINY=y' > $(O)/.config
>@echo "CONFIG_CC_VERSION_TEXT=\\"$$($(CC) --version | head -n 1)\\"" >> $(O)/.config

olddefconfig:
>@grep -v 'CONFIG_IOMMUFD_NOIOMMU=' $(O)/.config > $(O)/.new || true
>@if grep -q CONFIG_VFIO_NOIOMMU=y $(O)/.new && grep -q CONFIG_VFIO_DEVICE_CDEV=y $(O)/.new; \\
> then echo 'CONFIG_IOMMUFD_NOIOMMU=y' >> $(O)/.new; fi
>@mv $(O)/.new $(O)/.config

vmlinux: $(O)/vmlinux
>@mkdir -p $(O)/include/config && echo 7.3.0-rc1 > $(O)/include/config/kernel.release

modules:

modules_install:
>@mkdir -p $(INSTALL_MOD_PATH)/lib/modules/7.3.0-rc1

$(O)/main.o: $(S)/init/main.c
>@echo '  CC      init/main.o'
>@$(HOOK)
>@$(CC) -c -o $@ $<
>@echo 'deps := $(S)/init/main.c' > $(O)/.main.o.cmd

$(O)/config.o: $(O)/.config
>@echo '  CC      config.o'
>@gzip -n < $(O)/.config > $(O)/config.gz
>@printf '.section .rodata\\n.ascii "Linux version 7.3.0-rc1 (vfio)"\\n.ascii "IKCFG_ST"\\n' > $(O)/config.S
>@printf '.incbin "$(O)/config.gz"\\n.ascii "IKCFG_ED"\\n' >> $(O)/config.S
>@$(CC) -c -o $@ $(O)/config.S

$(O)/vmlinux: $(O)/main.o $(O)/config.o
>@echo '  LD      vmlinux'
>@$(CC) -nostdlib -static -Wl,--build-id=sha1 -Wl,-e,start -o $@ $^

HOOK := true
-include $(S)/hook.mk
"""

_TRISTATE = 'config {}\n    tristate "x"\n'
_NOIOMMU = """\
config VFIO_NOIOMMU
    bool "x"
    select IOMMUFD_NOIOMMU if VFIO_DEVICE_CDEV
config IOMMUFD_NOIOMMU
    bool
"""


def make_fake_tree(path: Path) -> Path:
    """Write the tree to *path*; it defines every symbol that the shipped fragments ask for, in 7.3's dialect.

    A `hook.mk` in it may set HOOK to a shell command that runs while main.o is being made.
    """
    for name in ("drivers/vfio", "scripts", "init"):
        (path / name).mkdir(parents=True)
    for name in ("Kbuild", "MAINTAINERS", "drivers/Kconfig", "scripts/Makefile"):
        (path / name).touch()
    (path / "Makefile").write_text(_MAKEFILE.replace("\n>", "\n\t"), encoding="utf-8")
    (path / "init" / "main.c").write_text("void start(void) {}\n", encoding="utf-8")
    files = paths.kconfigs_dir().glob("*.config")
    asked = {setting.symbol for file in files for setting in read_fragment(file).settings}
    symbols = [_TRISTATE.format(symbol) for symbol in sorted(asked) if "NOIOMMU" not in symbol]
    (path / "Kconfig").write_text("".join(symbols) + _NOIOMMU, encoding="utf-8")
    return path

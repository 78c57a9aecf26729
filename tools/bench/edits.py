# SPDX-License-Identifier: GPL-2.0-only
"""A private copy of a source tree in which one file is edited again and again, to measure what that costs."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from harness.base import paths, process
from harness.base.host import default_compilers
from harness.base.locks import locked
from harness.kernel.arch import host_arch
from harness.kernel.build import find_build_trees
from harness.kernel.make import Make
from harness.kernel.provide import provide_kernel
from harness.kernel.toolchain import GCC
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

_EDITED = "drivers/vfio/vfio_main.c"


class EditedTree:
    """The copy, and the objects that the store keeps of it."""

    def __init__(self, path: Path, variant: str) -> None:
        self.path = path
        self._variant = variant

    @classmethod
    @contextlib.contextmanager
    def provide(cls, spec: str, variant: str) -> Iterator[Self]:
        """Return a copy of the tree *spec* with its kernel built: ten minutes the first time."""
        source = open_tree(spec)
        path = paths.cache_dir() / "bench" / f"linux-{source.identity[:12]}"
        with locked(path.name, "another process is measuring edits"):
            if not path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                with source.held():
                    process.run(["cp", "-a", "--reflink=auto", source.path, partial]).check("copying")
                partial.rename(path)
            tree = cls(path, variant)
            tree._build()
            yield tree

    def edit(self, place: Path | None = None) -> None:
        """Change a line of one file, in *place* or in the copy, so that its object and the kernel change."""
        file = (place or self.path) / _EDITED
        lines = file.read_text(encoding="utf-8").splitlines()
        if lines[-1].startswith("static const char vfio_bench"):
            lines.pop()
        lines.append(f'static const char vfio_bench[] __used = "{time.time_ns()}";')
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def make(self) -> float:
        """Edit, and return the seconds that `make vmlinux` takes in the objects of the last build."""
        self._build()
        tree = open_tree(os.fspath(self.path))
        with tree.held():
            newest = max(find_build_trees(tree.path), key=lambda objects: objects.facts.began)
            self.edit(tree.path)
            words = [f"O={newest.path}", "LOCALVERSION=", "vmlinux"]
            make = Make(
                tree=tree.path,
                log=newest.path.with_suffix(".log"),
                arch=host_arch(),
                toolchain=GCC,
                compilers=default_compilers(),
            )
            return make.run(words, what="make vmlinux").seconds

    def _build(self) -> None:
        tree = open_tree(os.fspath(self.path))
        provide_kernel(tree, load_catalogue().variant(self._variant), compilers=default_compilers())

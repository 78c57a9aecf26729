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

from harness import paths, process
from harness.host import default_compilers
from harness.kernel.build import at_build_path, find_build_trees
from harness.kernel.make import run_make
from harness.kernel.store import build_place, provide_kernel
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
from harness.locks import locked

_EDITED = "drivers/vfio/vfio_main.c"


class EditedTree:
    """The copy, and the objects that the store keeps of it."""

    def __init__(self, path: Path, variant: str) -> None:
        self.path = path
        self._variant = variant

    @classmethod
    @contextlib.contextmanager
    def provide(cls, spec: str, variant: str) -> Iterator[Self]:
        """A copy of the tree *spec*, its kernel built once: ten minutes the first time."""
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

    def edit(self) -> None:
        """Change a line of one file, so that its object and the kernel become other ones."""
        file = self.path / _EDITED
        lines = file.read_text(encoding="utf-8").splitlines()
        if lines[-1].startswith("static const char vfio_bench"):
            lines.pop()
        lines.append(f'static const char vfio_bench[] __used = "{time.time_ns()}";')
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def make(self) -> float:
        """Edit, and return what `make vmlinux` takes for that in the objects of the last build."""
        self._build()
        tree = open_tree(os.fspath(self.path))
        place = build_place(tree)
        newest = max(find_build_trees(place), key=lambda objects: objects.built_since)
        self.edit()
        busy = f"another process is building from {self.path}"
        with locked(place.name, busy), at_build_path(place, newest.path.name) as objects:
            words = [f"O={objects.path}", f"-j{default_compilers()}", "LOCALVERSION=", "vmlinux"]
            return run_make(self.path, words, place / "bench.log", what="make vmlinux").seconds

    def _build(self) -> None:
        tree = open_tree(os.fspath(self.path))
        provide_kernel(tree, load_catalogue().variant(self._variant), jobs=default_compilers())

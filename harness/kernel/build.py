# SPDX-License-Identifier: GPL-2.0-only
"""Configure and build one kernel in one build tree (an O= directory).  Independent of keys and the store."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.base.errors import HostError
from harness.base.files import write_atomic
from harness.kernel import kconfig
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.make import Make, MakeResult
from harness.kernel.store import OURS
from harness.kernel.variants import ConfigPlan

_CONFIG = ".config"
_UNDER_WAY = ".vfio-harness-under-way"
_FACTS = ".vfio-harness-facts"
_MARGIN_SECONDS = 5.0
"""Files made up to this many seconds before a killed build are deleted too: file times are coarse."""


def resolve_config(make: Make, plan: ConfigPlan, output: Path) -> ResolvedConfig:
    """Return what olddefconfig makes of *plan* on top of the tree's tinyconfig.

    *output* is an O= directory for kconfig only.  Nothing is proved here: see harness.kernel.variants.prove.
    """
    output.mkdir(parents=True, exist_ok=True)
    make.run([f"O={output}", "tinyconfig"], what="tinyconfig")
    with (output / _CONFIG).open("a", encoding="utf-8") as file:
        file.write(kconfig.render(plan.settings))
    make.run([f"O={output}", "olddefconfig"], what="olddefconfig")
    return ResolvedConfig.parse((output / _CONFIG).read_text(encoding="utf-8"))


def profile_arguments(directories: Iterable[str]) -> tuple[str, ...]:
    """Return the make variable that compiles every C file below *directories* with coverage counters.

    scripts/Makefile.lib reads GCOV_PROFILE for each directory; make's command line overrides the makefiles,
    so the tree is not edited, and the value names the directory that make is in when it is expanded.
    """
    patterns = " ".join(f"{directory}/%" for directory in sorted(directories))
    return (f"GCOV_PROFILE=$(if $(filter {patterns},$(obj)/),y)",) if patterns else ()


def build_tree_of(source: Path, config: ResolvedConfig) -> BuildTree:
    """Return the build tree of *config* in *source*, there or not.

    It is a direct child of the source: then kbuild uses no absolute path (srcroot in the top Makefile), and
    its objects are good at another place, too.
    """
    return BuildTree(source / f"{OURS}{config.digest[:16]}")


def find_build_trees(source: Path) -> tuple[BuildTree, ...]:
    """Return the build trees in *source* in which something was built."""
    return tuple(BuildTree(path.parent) for path in sorted(source.glob(f"{OURS}*/{_FACTS}")))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildFacts:
    """What is known about a build tree's objects."""

    began: float = 0.0  # when the last build began, in seconds of the epoch
    full_steps: int = 0  # of the first build, which is always a full one
    finished: bool = False  # whether a build ever finished: only then is it worth copying


@dataclasses.dataclass(frozen=True, slots=True)
class BuildTree:
    """An O= directory with the objects of one configuration."""

    path: Path

    @property
    def config(self) -> ResolvedConfig | None:
        """The configuration it was last built for; None before the first build."""
        try:
            return ResolvedConfig.parse((self.path / _CONFIG).read_text(encoding="utf-8"))
        except OSError:
            return None

    @property
    def facts(self) -> BuildFacts:
        """Return the recorded facts; empty if the record is missing or damaged."""
        try:
            return BuildFacts(**json.loads((self.path / _FACTS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return BuildFacts()

    @property
    def is_under_way(self) -> bool:
        """Whether a build changes it, or was killed."""
        return (self.path / _UNDER_WAY).exists()

    def note_begun(self, began: float) -> None:
        """Note that objects are about to change."""
        self._note(dataclasses.replace(self.facts, began=began))

    def note_finished(self, steps: int) -> None:
        """Note that its objects are whole; *steps* counts when it is the first time."""
        facts = self.facts
        self._note(dataclasses.replace(facts, full_steps=facts.full_steps or steps, finished=True))

    def disown(self) -> None:
        """Have nobody start from it: it is a copy that will be changed."""
        (self.path / _FACTS).unlink(missing_ok=True)

    def _note(self, facts: BuildFacts) -> None:
        write_atomic(self.path / _FACTS, json.dumps(dataclasses.asdict(facts)))

    def set_config(self, config: ResolvedConfig) -> None:
        """Make *config* its configuration; an unchanged file is not touched, or make would sync."""
        path = self.path / _CONFIG
        if path.is_file() and path.read_text(encoding="utf-8") == config.text:
            return
        path.write_text(config.text, encoding="utf-8")

    def recover(self) -> None:
        """Delete what a build that was killed outright may have left half-written."""
        mark = self.path / _UNDER_WAY
        if mark.exists():
            self.sweep(mark.stat().st_mtime - _MARGIN_SECONDS)
            mark.unlink(missing_ok=True)

    def sweep(self, since: float) -> None:
        """Delete every file written after *since* (seconds of the epoch).

        Not include/config, whose files are empty stamps and lists that are renamed into place, nor .config.
        """
        keep = self.path / "include" / "config"
        for directory, _names, files in os.walk(self.path):
            here = Path(directory)
            if here == keep or keep in here.parents:
                continue
            for name in files:
                path = here / name
                if name not in (_CONFIG, _FACTS) and path.lstat().st_mtime >= since:
                    path.unlink()

    def clear(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path)
        self.path.mkdir()

    def build(
        self,
        make: Make,
        config: ResolvedConfig,
        *,
        arguments: Iterable[str] = (),
        expected_steps: int | None = None,
    ) -> MakeResult:
        """Build the boot image, and the modules when the configuration has any.  Raises BuildError.

        An earlier vmlinux is removed first, so that one that is there was linked by this make.
        """
        self.set_config(config)
        for file in {"vmlinux", make.arch.image}:
            (self.path / file).unlink(missing_ok=True)
        targets = [make.arch.image_name, "modules"] if config.modular else [make.arch.image_name]
        return make.run(
            [f"O={self.path}", "LOCALVERSION=", *arguments, *targets],
            what="building the kernel",
            expected_steps=expected_steps,
            mark=self.path / _UNDER_WAY,
        )

    def install(self, make: Make, config: ResolvedConfig, target: Path) -> None:
        """Copy vmlinux, the boot image, the configuration and the modules into *target*."""
        for file in {"vmlinux", make.arch.image}:
            shutil.copy2(self.path / file, target)
        (target / "config").write_text(config.text, encoding="utf-8")
        if not config.modular:
            return
        arguments = [f"O={self.path}", "LOCALVERSION=", f"INSTALL_MOD_PATH={target}", "INSTALL_MOD_STRIP=1"]
        make.run([*arguments, "modules_install"], what="modules_install")
        if not (target / "lib" / "modules" / self.release).is_dir():
            raise HostError(
                f"make succeeded, but installed no modules of {self.release}", hint="run it again"
            )
        for link in (target / "lib" / "modules").glob("*/build"):
            link.unlink()

    def keep_notes(self, source: Path, directories: Iterable[str], target: Path) -> None:
        """Copy what gcov needs of the profiled *directories*, and their C files and headers, to *target*."""
        for root, pattern in ((self.path, "*.gcno"), (source, "*.[ch]")):
            for path in (one for name in directories for one in (root / name).rglob(pattern)):
                copy = target / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)

    @property
    def release(self) -> str:
        """What `uname -r` will say."""
        try:
            return (self.path / "include" / "config" / "kernel.release").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise HostError(f"the build in {self.path} left no kernel.release: {error.strerror}") from error

# SPDX-License-Identifier: GPL-2.0-only
"""Configure and build one kernel in one build tree (an O= directory).  Knows no keys and no store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from harness.errors import InfraError
from harness.kernel import kconfig
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.make import MakeResult, Progress, ignore_progress, run_make
from harness.kernel.variants import ConfigPlan

_CONFIG = ".config"
_UNDER_WAY = ".vfio-harness-under-way"
_FACTS = ".vfio-harness-facts"
_NAME = ".vfio-harness-name"
_BUILD_PATH = "build"
_MARGIN_SECONDS = 5.0
"""Files this much older than the start of a killed build go too: file times are coarser than clocks."""

_CODE = (".c", ".h", ".S")


def resolve_config(tree: Path, plan: ConfigPlan, output: Path, log: Path) -> ResolvedConfig:
    """What olddefconfig makes of *plan* on top of the tree's tinyconfig.

    *output* is an O= directory for kconfig only.  Nothing is proved here: see harness.kernel.variants.prove.
    """
    output.mkdir(parents=True, exist_ok=True)
    run_make(tree, [f"O={output}", "tinyconfig"], log, what="tinyconfig")
    with (output / _CONFIG).open("a", encoding="utf-8") as file:
        file.write(kconfig.render(plan.settings))
    run_make(tree, [f"O={output}", "olddefconfig"], log, what="olddefconfig")
    return ResolvedConfig.parse((output / _CONFIG).read_text(encoding="utf-8"))


def profile_arguments(tree: Path, directories: Iterable[str]) -> tuple[str, ...]:
    """The make variables that compile every C file below *directories* with coverage counters.

    scripts/Makefile.lib looks for GCOV_PROFILE_<stem>.o; set on the command line it needs no edit of
    the tree.  Equal stems elsewhere get counters too, which costs a little and hurts nothing.
    """
    stems = {path.stem for directory in directories for path in (tree / directory).rglob("*.c")}
    return tuple(f"GCOV_PROFILE_{stem}.o=y" for stem in sorted(stems))


def find_build_trees(place: Path) -> tuple[BuildTree, ...]:
    """The build trees kept in *place*, none of them being built."""
    return tuple(BuildTree(path) for path in sorted(place.glob("*/")) if (path / _NAME).is_file())


@contextlib.contextmanager
def at_build_path(place: Path, name: str) -> Iterator[BuildTree]:
    """Move the build tree *name* of *place* to the one path where builds happen, and back afterwards.

    Some of kbuild's commands carry the absolute output path (objtool's, on which every object depends), so a
    copy that is built elsewhere than its original would be built from scratch.  The caller holds the place's
    lock.
    """
    stable = place / _BUILD_PATH
    clear_build_path(place)
    if not (place / name).is_dir():
        (place / name).mkdir(parents=True)
    (place / name / _NAME).write_text(name, encoding="utf-8")
    (place / name).rename(stable)
    try:
        yield BuildTree(stable)
    finally:
        clear_build_path(place)


def clear_build_path(place: Path) -> None:
    """Put back the build tree that a killed process may have left there."""
    stable = place / _BUILD_PATH
    if not stable.is_dir():
        return
    try:
        home = place / (stable / _NAME).read_text(encoding="utf-8").strip()
        stable.rename(home)
    except OSError:
        shutil.rmtree(stable)


@dataclasses.dataclass(frozen=True, slots=True)
class BuildTree:
    """An O= directory with the objects of one configuration."""

    path: Path

    @property
    def config(self) -> ResolvedConfig | None:
        """The configuration it was last built for; None when it has none."""
        try:
            return ResolvedConfig.parse((self.path / _CONFIG).read_text(encoding="utf-8"))
        except OSError:
            return None

    @property
    def _facts(self) -> dict[str, int | float | str | bool]:
        try:
            facts = json.loads((self.path / _FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    @property
    def finished(self) -> bool:
        """Whether a build ever came to its end in it: worth a copy then."""
        return bool(self._facts.get("finished", False))

    @property
    def built_from(self) -> str:
        """The identity of the source its objects were built from; empty after a build that did not end."""
        return str(self._facts.get("identity", ""))

    @property
    def built_since(self) -> float:
        """When its last build began, in seconds of the epoch; 0 when it had none."""
        return float(self._facts.get("began", 0.0))

    @property
    def full_steps(self) -> int | None:
        """How many steps its first, whole build took; None when nobody counted."""
        return int(self._facts.get("full_steps", 0)) or None

    def note_begun(self, began: float) -> None:
        """Note that objects are about to change: until `note_finished`, nobody knows what they are from."""
        begun_before = self.built_since if not self.built_from else 0.0
        self._note({**self._facts, "identity": "", "began": begun_before or began})

    def note_finished(self, *, identity: str, began: float, steps: int) -> None:
        """Note that its objects are whole, and of which source; *steps* counts when it is the first time."""
        facts = {
            "identity": identity,
            "began": began,
            "full_steps": self.full_steps or steps,
            "finished": True,
        }
        self._note(facts)

    def _note(self, facts: Mapping[str, object]) -> None:
        partial = self.path / f"{_FACTS}.new"
        partial.write_text(json.dumps(facts), encoding="utf-8")
        partial.replace(self.path / _FACTS)

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
                if name not in (_CONFIG, _FACTS, _NAME) and path.lstat().st_mtime >= since:
                    path.unlink()

    def forget(self, sources: Iterable[Path]) -> None:
        """Delete the objects made from *sources*, whose times make would misread.

        Anything but code (a makefile, a script, a Kconfig file) reaches too far: then all objects go.
        """
        names = [os.fspath(path).encode() for path in sources]
        if not all(name.endswith(tuple(suffix.encode() for suffix in _CODE)) for name in names):
            self.clear()
            return
        for command in self.path.rglob(".*.cmd"):
            text = command.read_bytes()
            if any(name in text for name in names):
                command.with_name(command.name[1:].removesuffix(".cmd")).unlink(missing_ok=True)
                command.unlink()

    def clear(self) -> None:
        """Delete all but its name."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _NAME:
                path.unlink()

    def build(
        self,
        tree: Path,
        config: ResolvedConfig,
        log: Path,
        *,
        jobs: int,
        arguments: Iterable[str] = (),
        progress: Progress = ignore_progress,
        expected_steps: int | None = None,
    ) -> MakeResult:
        """Build vmlinux, and the modules when the configuration has any.  Raises BuildError."""
        self.set_config(config)
        targets = ["vmlinux", "modules"] if config.modular else ["vmlinux"]
        return run_make(
            tree,
            [f"O={self.path}", f"-j{jobs}", "LOCALVERSION=", *arguments, *targets],
            log,
            what="the kernel",
            progress=progress,
            expected_steps=expected_steps,
            mark=self.path / _UNDER_WAY,
        )

    def install(self, tree: Path, config: ResolvedConfig, target: Path, log: Path) -> None:
        """Copy vmlinux, its configuration and its modules into *target*."""
        shutil.copy2(self.path / "vmlinux", target / "vmlinux")
        (target / "config").write_text(config.text, encoding="utf-8")
        if not config.modular:
            return
        arguments = [f"O={self.path}", "LOCALVERSION=", f"INSTALL_MOD_PATH={target}", "INSTALL_MOD_STRIP=1"]
        run_make(tree, [*arguments, "modules_install"], log, what="modules_install")
        for link in (target / "lib" / "modules").glob("*/build"):
            link.unlink()

    @property
    def release(self) -> str:
        """What `uname -r` will say."""
        try:
            return (self.path / "include" / "config" / "kernel.release").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InfraError(f"the build in {self.path} left no kernel.release: {error.strerror}") from error

# SPDX-License-Identifier: GPL-2.0-only
"""What a verb was asked for, as values: kernels, machines, jobs; and the options that say it again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.admission import CPUS
from harness.errors import UsageError
from harness.host import default_compilers
from harness.kernel.trees import DEFAULT_SPEC, is_linux
from harness.machine.qemu import find_qemu
from harness.machine.roots import DEFAULT_ROOT
from harness.plan import Isolation

DEFAULT_CPUS = CPUS
"""Races need two; more make an emulated guest slower."""

DEFAULT_SUITES = ("probes", "kselftest:vfio")

DEFAULT_SEED = 1


def default_tree() -> str:
    """What `--tree` would have had to say for the tree that is taken without it."""
    return os.fspath(Path.cwd()) if is_linux(Path.cwd()) else DEFAULT_SPEC


def line_of(spec: str | None) -> str:
    """The line of development that `--tree SPEC` names, from wherever: a directory by its absolute path."""
    spec = spec or default_tree()
    path = Path(spec).expanduser()
    if spec.startswith("debian:"):
        return spec
    if path.exists():
        return os.fspath(path.absolute())
    directory, at, ref = spec.rpartition("@")
    repository = Path(directory).expanduser()
    return f"{repository.absolute()}@{ref}" if at and repository.is_dir() else spec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelWish:
    """Which kernel a verb was asked for."""

    tree: str | None
    variant: str
    addons: tuple[str, ...] = ()
    configs: tuple[Path, ...] = ()
    jobs: int | None = None

    @property
    def name(self) -> str:
        """The variant with its add-ons."""
        return "-".join([self.variant, *self.addons])

    @property
    def compilers(self) -> int:
        """How many compilers to run at once."""
        return self.jobs or default_compilers()

    def options(self) -> list[str]:
        """The options that say it again."""
        wish = self.from_anywhere()
        words = ["--tree", str(wish.tree), "--variant", wish.variant]
        words += [word for addon in wish.addons for word in ("--with", addon)]
        words += [word for config in wish.configs for word in ("--config", os.fspath(config))]
        return words

    def from_anywhere(self) -> KernelWish:
        """The same, whatever the current directory is."""
        configs = tuple(config.absolute() for config in self.configs)
        return dataclasses.replace(self, tree=line_of(self.tree), configs=configs)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineWish:
    """Which machine a verb was asked for."""

    topology: str
    accel: str = "auto"
    root: str = DEFAULT_ROOT
    cpus: int = DEFAULT_CPUS
    memory: int | None = None
    qemu: str | None = None
    snapshots: bool = True

    @property
    def kind(self) -> str:
        """What decides which cases apply, beside the topology and the root."""
        return f"{self.cpus} processors, {self.memory or 'default'} MiB"

    def on(self, topology: str) -> MachineWish:
        """The same with another topology."""
        return dataclasses.replace(self, topology=topology)

    def options(self) -> list[str]:
        """The options that say it again, defaults left out."""
        words = ["--topology", self.from_anywhere().topology]
        if self.accel != "auto":
            words += ["--accel", self.accel]
        if self.root != DEFAULT_ROOT:
            words += ["--root", self.root]
        if self.cpus != DEFAULT_CPUS:
            words += ["--cpus", str(self.cpus)]
        if self.memory is not None:
            words += ["--memory", str(self.memory)]
        if not self.snapshots:
            words.append("--no-snapshots")
        if self.qemu is not None:
            words += ["--qemu", os.fspath(find_qemu(self.qemu).path)]
        return words

    def from_anywhere(self) -> MachineWish:
        """The same, whatever the current directory is."""
        is_file = "/" in self.topology or self.topology.endswith((".yaml", ".yml"))
        return self.on(os.fspath(Path(self.topology).absolute())) if is_file else self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobWish:
    """Which job a verb was asked for."""

    kernel: KernelWish
    machine: MachineWish
    suites: tuple[str, ...] = ()
    seed: int = DEFAULT_SEED

    def options(self) -> list[str]:
        """The options of `run` that say it again, defaults left out."""
        words = [*self.kernel.options(), *self.machine.options()]
        if self.suites != DEFAULT_SUITES:
            words += [word for suite in self.suites for word in ("--suite", suite)]
        words += ["--seed", str(self.seed)] if self.seed != DEFAULT_SEED else []
        return words

    def from_anywhere(self) -> JobWish:
        """The same, whatever the current directory is."""
        kernel, machine = self.kernel.from_anywhere(), self.machine.from_anywhere()
        return dataclasses.replace(self, kernel=kernel, machine=machine)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a run is carried out, beside what jobs it has."""

    cases: tuple[str, ...] = ()
    """Address patterns; only matching cases run.  Empty: all."""
    seed: int = DEFAULT_SEED
    isolation: Isolation = Isolation.VM
    confirm: bool = False
    """Whether what fails is tried once more in a fresh VM."""
    until: float | None = None
    """Seconds since the epoch after which no case begins and no build goes on."""
    compare: bool = True
    """Whether earlier runs of the same line count in the verdict."""
    known_issues: Path | None = None
    """The user's own list of what is known; the run keeps a copy, which is what counts once it has begun."""
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    """More that is worth recording: the matrix, the shard."""
    elsewhere: tuple[str, ...] = ()
    """Seats of the jobs that other shards of the matrix have."""

    def ending(self, until: float | None) -> Conduct:
        """The same with another deadline."""
        return dataclasses.replace(self, until=until)


WISHES_FILE = "wishes.json"

_FORMAT = 1


def save_wishes(directory: Path, wishes: Sequence[JobWish], conduct: Conduct) -> None:
    """Keep in a run's *directory* what was asked for, for who goes on with the run, from wherever.

    Of the user's known issues the run has a copy, so that they are not in it.
    """
    plain = {
        "format": _FORMAT,
        "wishes": [dataclasses.asdict(wish.from_anywhere()) for wish in wishes],
        "conduct": dataclasses.asdict(dataclasses.replace(conduct, known_issues=None)),
    }
    text = json.dumps(plain, indent=2, default=os.fspath)
    (directory / WISHES_FILE).write_text(f"{text}\n", encoding="utf-8")


def load_wishes(directory: Path) -> tuple[tuple[JobWish, ...], Conduct]:
    """What save_wishes() kept; UsageError when it is not there or of another version."""
    path = directory / WISHES_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != _FORMAT:
            raise ValueError(f"its format is {plain['format']}, not {_FORMAT}")
        wishes = tuple(_job_wish(one) for one in plain["wishes"])
        conduct = plain["conduct"]
        isolation = Isolation(conduct["isolation"])
        lists = {name: tuple(conduct.get(name, ())) for name in ("cases", "elsewhere")}
        return wishes, Conduct(**{**conduct, **lists, "isolation": isolation})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{directory} does not tell what was asked for: {error}") from error


def _job_wish(plain: dict[str, Any]) -> JobWish:
    kernel = plain["kernel"]
    configs = tuple(Path(config) for config in kernel["configs"])
    return JobWish(
        kernel=KernelWish(**{**kernel, "addons": tuple(kernel["addons"]), "configs": configs}),
        machine=MachineWish(**plain["machine"]),
        suites=tuple(plain["suites"]),
        seed=plain["seed"],
    )

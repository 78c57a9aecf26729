# SPDX-License-Identifier: GPL-2.0-only
"""What a verb asks for, as values: kernels, machines, jobs; and the options that repeat it."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.base import paths, values
from harness.base.errors import UsageError
from harness.base.host import default_compilers
from harness.kernel.arch import find_arch, host_arch
from harness.kernel.toolchain import DEFAULT, find_toolchain
from harness.kernel.trees import DEFAULT_SPEC, is_linux
from harness.lab.admission import CPUS
from harness.machine.qemu import qemu_path
from harness.machine.roots import DEFAULT_ROOT
from harness.plan import Isolation as Isolation
from harness.suites.own import SUITE as OWN_SUITE

DEFAULT_CPUS = CPUS
"""Race conditions need two; more make an emulated guest slower."""

DEFAULT_SUITES = ("probes", "kselftest:vfio")

DEFAULT_SEED = 1


def default_suites(own: OwnWish) -> tuple[str, ...]:
    """Return the suites of `run` when none is given: the user's own programs alone, if there are any."""
    return (OWN_SUITE,) if own.programs else DEFAULT_SUITES


def default_tree() -> str:
    """Return the `--tree` that is used when none is given."""
    return os.fspath(Path.cwd()) if is_linux(Path.cwd()) else DEFAULT_SPEC


def line_of(spec: str | None) -> str:
    """Return the line of development that `--tree SPEC` names, with the absolute path of a directory."""
    spec = spec or default_tree()
    path = paths.expanded(spec)
    if spec.startswith("debian:"):
        return spec
    if path.exists():
        return os.fspath(path.absolute())
    directory, at, ref = spec.rpartition("@")
    repository = paths.expanded(directory)
    return f"{repository.absolute()}@{ref}" if at and repository.is_dir() else spec


SELFTESTS_OF = " with selftests of "
"""Between the trees of a kernel and of its selftests in a line of development."""

DEFAULT_TOOLCHAIN = DEFAULT
"""What `--toolchain` is by default."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadyWish:
    """A finished kernel that is handed in; see harness.session.planning.take_ready()."""

    kernel: str
    """What `--kernel` names; once it is in the store, where it came from: its line of development."""
    modules: Path | None = None
    config: Path | None = None
    arch: str = ""
    """The architecture that it must have; empty: any."""
    digest: str = ""
    """Its key in the store; empty until it is there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelWish:
    """The kernel that a verb asks for."""

    tree: str | None = None
    variant: str
    addons: tuple[str, ...] = ()
    configs: tuple[Path, ...] = ()
    toolchain: str = DEFAULT_TOOLCHAIN
    arch: str = dataclasses.field(default_factory=lambda: host_arch().name)
    """The name of a harness.kernel.arch row."""
    compilers: int = dataclasses.field(default_factory=default_compilers)
    """How many run at once."""
    ready: ReadyWish | None = None
    """A finished kernel in place of a tree; variant and add-ons then say what it is."""
    selftests: str | None = None
    """The tree whose selftests are run in place of those of the kernel's own."""

    @property
    def line(self) -> str:
        """The line of development that the kernel belongs to."""
        own = self.ready.kernel if self.ready is not None else line_of(self.tree)
        return own if self.selftests is None else f"{own}{SELFTESTS_OF}{line_of(self.selftests)}"

    @property
    def trees(self) -> tuple[str | None, ...]:
        """The trees that it needs, as `--tree` names them."""
        own = (self.tree,) if self.ready is None else ()
        return (*own, self.selftests) if self.selftests is not None else own

    @property
    def name(self) -> str:
        """The variant with its add-ons, and toolchain and architecture when they are not the default ones."""
        return "-".join(self.words)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its name."""
        others = (find_toolchain(self.toolchain).label, find_arch(self.arch).label)
        return (self.variant, *self.addons, *filter(None, others))

    def of(self, variant: str) -> KernelWish:
        """Return the same with another variant; a finished kernel has only its own."""
        return dataclasses.replace(self, variant=variant) if self.ready is None else self

    def options(self) -> list[str]:
        """Return the options that repeat it."""
        wish = self.absolute()
        if wish.ready is None:
            return ["--tree", str(wish.tree), *wish.options_without_tree()]
        return ["--kernel", wish.ready.digest, *wish._options_of_any_kernel()]

    def options_without_tree(self) -> list[str]:
        """Return the options that repeat it, which is built, for another tree."""
        wish = self.absolute()
        words = ["--variant", wish.variant]
        words += [word for addon in wish.addons for word in ("--with", addon)]
        words += [word for config in wish.configs for word in ("--config", os.fspath(config))]
        words += ["--arch", wish.arch] if find_arch(wish.arch).label else []
        return words + wish._options_of_any_kernel()

    def _options_of_any_kernel(self) -> list[str]:
        words = ["--selftests", self.selftests] if self.selftests is not None else []
        return words + (["--toolchain", self.toolchain] if self.toolchain != DEFAULT_TOOLCHAIN else [])

    def of_tree(self, tree: str | None) -> KernelWish:
        """Return the same of another tree."""
        return dataclasses.replace(self, tree=tree)

    def absolute(self) -> KernelWish:
        """Return the same with absolute paths."""
        configs = tuple(config.absolute() for config in self.configs)
        tree = line_of(self.tree) if self.ready is None else None
        selftests = line_of(self.selftests) if self.selftests is not None else None
        return dataclasses.replace(self, tree=tree, configs=configs, selftests=selftests)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineWish:
    """The machine that a verb asks for."""

    topology: str
    accel: str = "auto"
    root: str = DEFAULT_ROOT
    cpus: int = DEFAULT_CPUS
    memory: int | None = None
    qemu: str | None = None
    snapshots: bool = True

    @property
    def kind(self) -> str:
        """What decides which cases apply, besides topology and root."""
        return f"{self.cpus} processors, {self.memory or 'default'} MiB"

    def on(self, topology: str) -> MachineWish:
        """Return the same with another topology."""
        return dataclasses.replace(self, topology=topology)

    def options(self) -> list[str]:
        """Return the options that repeat it, without defaults."""
        words = ["--topology", self.absolute().topology]
        for option, value, default in (
            ("--accel", self.accel, "auto"),
            ("--root", self.root, DEFAULT_ROOT),
            ("--cpus", self.cpus, DEFAULT_CPUS),
            ("--memory", self.memory, None),
            ("--qemu", self.qemu and qemu_path(self.qemu), None),
        ):
            words += [option, str(value)] if value != default else []
        return words if self.snapshots else [*words, "--no-snapshots"]

    def absolute(self) -> MachineWish:
        """Return the same with absolute paths."""
        is_file = "/" in self.topology or self.topology.endswith((".yaml", ".yml"))
        return self.on(os.fspath(Path(self.topology).absolute())) if is_file else self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnWish:
    """The user's own programs and probes that a verb asks for."""

    programs: tuple[str, ...] = ()
    """Each a path, and arguments as a shell reads them."""
    needs: tuple[str, ...] = ()
    """Features without which the programs do not apply."""
    probes: Path | None = None
    """A directory of probe modules."""

    def added_to(self, suites: Iterable[str]) -> tuple[str, ...]:
        """Return *suites*, with the suite of the programs if there are any."""
        return tuple(dict.fromkeys((*suites, *((OWN_SUITE,) if self.programs else ()))))

    def options(self) -> list[str]:
        """Return the options that repeat it."""
        words = [word for program in self.programs for word in ("--program", program)]
        words += ["--needs", ",".join(self.needs)] if self.needs else []
        return words + (["--probes", os.fspath(self.probes)] if self.probes is not None else [])

    def absolute(self) -> OwnWish:
        """Return the same with absolute paths."""
        found = []
        for path, arguments in map(split_program, self.programs):
            found.append(shlex.join([os.fspath(path.absolute()), *arguments]))
        probes = self.probes.absolute() if self.probes is not None else None
        return dataclasses.replace(self, programs=tuple(found), probes=probes)


def split_program(text: str) -> tuple[Path, list[str]]:
    """Return path and arguments in the value of --program.  Raises UsageError for open quotes."""
    # Path.exists() raises OSError for a text that is longer than a name may be.
    if text and os.path.exists(text):  # noqa: PTH110
        return Path(text), []
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--program {text}: {error}") from error
    if not words:
        raise UsageError("--program: the path is empty")
    return paths.expanded(words[0]), words[1:]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobWish:
    """The job that a verb asks for."""

    kernel: KernelWish
    machine: MachineWish
    suites: tuple[str, ...] = ()
    seed: int = DEFAULT_SEED
    own: OwnWish = OwnWish()

    def options(self) -> list[str]:
        """Return the options of `run` that repeat it, without defaults."""
        words = [*self.kernel.options(), *self.machine.options(), *self.own.options()]
        if self.suites != default_suites(self.own):
            words += [word for suite in self.suites for word in ("--suite", suite)]
        words += ["--seed", str(self.seed)] if self.seed != DEFAULT_SEED else []
        return words

    def absolute(self) -> JobWish:
        """Return the same with absolute paths."""
        kernel, machine, own = self.kernel.absolute(), self.machine.absolute(), self.own.absolute()
        return dataclasses.replace(self, kernel=kernel, machine=machine, own=own)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a run is carried out."""

    cases: tuple[str, ...] = ()
    """Patterns of case addresses; empty: all cases."""
    seed: int = DEFAULT_SEED
    isolation: Isolation = Isolation.VM
    confirm: bool = False
    """Whether a failed case is repeated in a fresh VM."""
    until: float | None = None
    """Seconds since the epoch after which no case starts and builds stop."""
    compare: bool = True
    """Whether earlier runs of the same tree count in the verdict."""
    known_issues: tuple[Path, ...] = ()
    """The user's own lists of known issues; the run has copies, which count once it has started."""
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    """More to record: the matrix, the shard."""
    elsewhere: tuple[str, ...] = ()
    """Cells of the jobs that other shards of the matrix have."""

    def options(self, known_issues: Sequence[Path]) -> list[str]:
        """Return the options of `run`, without defaults, that give a case of a job the same verdict as here.

        *known_issues* are the lists to name.
        """
        words = [word for path in known_issues for word in ("--known-issues", os.fspath(path.absolute()))]
        words += ["--isolation", self.isolation.value] if self.isolation is not Isolation.VM else []
        words += ["--confirm"] if self.confirm else []
        return words if self.compare else [*words, "--no-compare"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PytestOptions:
    """The options of pytest that a verb passes on."""

    keyword: str = ""
    exit_first: bool = False
    last_failed: bool = False
    """Only what failed in the last run of each job; pytest is not told."""
    affected: bool = False
    """Only what reaches the change since the last good run; pytest is not told."""
    workers: int | None = None
    """The number of workers; None: as many as suit the plan and the host."""
    collect_only: bool = False
    verbose: bool = False
    extra: tuple[str, ...] = ()

    @property
    def narrowed(self) -> bool:
        """Whether pytest may run less than the plan says, or run it in another way."""
        return bool(self.keyword or self.exit_first or self.last_failed or self.affected or self.extra)

    def words(self) -> list[str]:
        """Return them as pytest's command line has them, without the workers."""
        words = ["-k", self.keyword] if self.keyword else []
        words += ["-x"] if self.exit_first else []
        words += ["--collect-only", "-q"] if self.collect_only else []
        words += ["-v"] if self.verbose else []
        return [*words, *self.extra]


WISHES_FILE = "wishes.json"

_FORMAT = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    wishes: tuple[JobWish, ...]
    conduct: Conduct


def save_wishes(directory: Path, wishes: Sequence[JobWish], conduct: Conduct) -> None:
    """Save in a run's *directory* what was asked for, so that the run can be resumed from any directory.

    Without the user's known issues, of which the run has copies.  Raises OSError.
    """
    saved = _Saved(
        wishes=tuple(wish.absolute() for wish in wishes),
        conduct=dataclasses.replace(conduct, known_issues=()),
    )
    values.save(directory / WISHES_FILE, saved, version=_FORMAT)


def load_wishes(directory: Path) -> tuple[tuple[JobWish, ...], Conduct]:
    """Return what save_wishes() saved.  Raises UsageError when it cannot be read or has another format."""
    saved = values.load(directory / WISHES_FILE, _Saved, version=_FORMAT, hint="begin a new run")
    return saved.wishes, saved.conduct

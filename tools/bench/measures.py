# SPDX-License-Identifier: GPL-2.0-only
"""Measure what the harness costs, and report it as ratios to a baseline.

Every measure takes its samples in turn with its baseline, so that a host whose speed drifts slows both.  The
baselines are the alternatives: plain virtme-run, a boot in place of a restore, `make vmlinux`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import select
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from guest.case import discover_own
from harness.base import itself, paths, process
from harness.base.deadline import Deadline
from harness.base.errors import InfraError
from harness.base.outcome import Outcome
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
from harness.lab.agent import AgentClient
from harness.lab.boot import Booted, Recipe, boot
from harness.machine.accel import Accel
from harness.machine.rootparts import GUEST_RUN
from harness.machine.roots import find_root
from harness.machine.snapshot import snapshot_of
from harness.plan import Job

_COMMAND_SECONDS = 1800.0
_BASELINE_SECONDS = 120.0
_RESTORES = 200
_TIMES = 5
"""Runs of a case that make one sample."""

_PARTS = Path(__file__).with_name("parts")
_PARTS_THERE = f"{GUEST_RUN}/bench-parts"

Sample = Callable[[], float]
"""Does something once and returns the seconds that count."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement, with the name of its baseline."""

    name: str
    unit: str
    samples: tuple[float, ...]
    baseline: str = ""
    """The name of the figure it is compared with; empty for one that stands alone."""
    target: float | None = None
    """The upper limit for the ratio to the baseline, or for the value if there is no baseline."""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The difference between the largest and the smallest sample."""
        return max(self.samples) - min(self.samples)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A Figure with its ratio to the baseline's median."""

    figure: Figure
    ratio: float | None

    @property
    def kept(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.figure.target is None:
            return None
        return (self.figure.median if self.ratio is None else self.ratio) <= self.figure.target

    def to_json(self) -> dict[str, object]:
        plain = dataclasses.asdict(self.figure)
        return {**plain, "median": self.figure.median, "ratio": self.ratio, "kept": self.kept}


def compare(figures: Sequence[Figure]) -> tuple[Compared, ...]:
    """Return each figure with its ratio to its baseline, which must be among *figures*."""
    medians = {figure.name: figure.median for figure in figures}
    return tuple(
        Compared(figure=f, ratio=f.median / medians[f.baseline] if f.baseline else None) for f in figures
    )


def in_turn(samples: Mapping[str, Sample], repeat: int) -> dict[str, tuple[float, ...]]:
    """Take *repeat* samples of each, in rounds of one of each."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    for _ in range(repeat):
        for name, sample in samples.items():
            taken[name].append(sample())
    return {name: tuple(values) for name, values in taken.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """The measures on one job's machine."""

    job: Job
    topology: str
    tree: str
    repeat: int

    def measures(self) -> dict[str, Callable[[], list[Figure]]]:
        """Every measure by name, in the order in which they are best read."""
        return {
            "startup": self.startup,
            "boot": self.boot,
            "roundtrip": self.roundtrip,
            "cases": self.cases,
            "run": self.run,
            "restores": self.restores,
            "throughput": self.throughput,
            "edit": self.edit,
            "variants": self.variants,
        }

    def startup(self) -> list[Figure]:
        """CPU time of the harness itself, before it does anything."""
        collect = itself.argv(["run", *self._words(), "--collect-only"])
        _cpu_seconds(collect)  # so that the byte code is there, as it is on a user's second run
        taken = in_turn(
            {
                "--help": lambda: _cpu_seconds(itself.argv(["--help"])),
                "run --collect-only": lambda: _cpu_seconds(collect),
            },
            self.repeat,
        )
        targets = {"--help": 0.3, "run --collect-only": 0.7}
        return [
            Figure(name=name, unit="CPU s", samples=samples, target=targets[name])
            for name, samples in taken.items()
        ]

    def boot(self) -> list[Figure]:
        """The time from starting QEMU to SSH, for every way to boot."""
        recipe = Recipe.of(self.job)
        cold = dataclasses.replace(recipe, snapshots=False)
        with _booted(recipe):
            pass  # so that there is a snapshot
        virtme = dataclasses.replace(
            cold, machine=dataclasses.replace(cold.machine, root=find_root("virtme", cold.machine.arch))
        )
        plain, image, restored = "plain virtme-run, first command", "image root, SSH", "snapshot, SSH"
        taken = in_turn(
            {
                plain: self._virtme_run,
                "virtme root, SSH": lambda: _to_ssh(virtme),
                image: lambda: _to_ssh(cold),
                **({restored: lambda: _to_ssh(recipe)} if _is_saved(recipe) else {}),
            },
            self.repeat,
        )
        baselines = {plain: "", restored: image}
        targets = {image: 0.45, restored: 0.30}
        return [
            Figure(
                name=name,
                unit="s",
                samples=samples,
                baseline=baselines.get(name, plain),
                target=targets.get(name),
            )
            for name, samples in taken.items()
        ]

    def restores(self) -> list[Figure]:
        """A snapshot restored again and again: how long it takes, and whether it ever fails."""
        recipe = Recipe.of(self.job)
        with _booted(recipe):
            pass  # so that there is a snapshot
        seconds: list[float] = []
        for _ in range(_RESTORES):
            with contextlib.suppress(InfraError):
                seconds.append(_to_ssh(recipe))
        lost = float(_RESTORES - len(seconds))
        return [
            Figure(name=f"{_RESTORES} restores, SSH", unit="s", samples=tuple(seconds) or (math.inf,)),
            Figure(name="of them lost", unit="VMs", samples=(lost,), target=0.0),
        ]

    def roundtrip(self) -> list[Figure]:
        """One command over SSH in a guest that is warm."""
        with _booted(Recipe.of(self.job)) as directory, boot(Recipe.of(self.job), directory) as booted:
            once = [_seconds(lambda: booted.guest.check("true", Deadline.after(60))) for _ in range(11)]
        return [Figure(name="one command over SSH", unit="s", samples=tuple(once[1:]))]

    def cases(self) -> list[Figure]:
        """The CPU time of QEMU for cases that do one thing; on a busy host it is up to twice as much."""
        names = [one.name for one in discover_own(os.fspath(_PARTS))]
        with _booted(Recipe.of(self.job)) as directory, boot(Recipe.of(self.job), directory) as booted:
            limit = booted.vm.patient(Deadline.after(_COMMAND_SECONDS))
            booted.guest.push(_PARTS, _PARTS_THERE, limit)
            agent = AgentClient(booted.guest, self.job.features, limit, own=_PARTS_THERE)
            once = {name: functools.partial(_cpu_of_case, booted, agent, name) for name in names}
            taken = in_turn(once, self.repeat)
        return [Figure(name=f"case {name}", unit="CPU ms", samples=cpu) for name, cpu in taken.items()]

    def run(self) -> list[Figure]:
        """A warm run of all probes against a nearly empty plain virtme-run, and the harness's own share of
        it."""
        plain, one = "plain virtme-run, python3 -c pass", "all probes, one VM"
        overheads: list[float] = []
        taken = in_turn(
            {
                plain: lambda: self._virtme_run("python3 -c pass && echo READY"),
                "all probes": lambda: _seconds(lambda: _check(self._probes())),
                one: lambda: self._one_after_the_other(overheads),
            },
            max(1, self.repeat // 2),
        )
        baselines = {plain: "", "all probes": plain, one: plain}
        return [
            *(
                Figure(
                    name=name,
                    unit="s",
                    samples=samples,
                    baseline=baselines[name],
                    target=1.0 if name == "all probes" else None,
                )
                for name, samples in taken.items()
            ),
            Figure(
                name="of it neither boot nor cases",
                unit="s",
                samples=tuple(overheads),
                baseline=one,
                target=0.05,
            ),
        ]

    def throughput(self) -> list[Figure]:
        """Two jobs with one, two and four workers."""
        one = "2 jobs, -n 1"
        return [
            Figure(
                name=f"2 jobs, -n {workers}",
                unit="s",
                samples=(self._two_jobs(workers),),
                baseline="" if workers == 1 else one,
                target=1 / 1.6 if workers == 2 else None,
            )
            for workers in (1, 2, 4)
        ]

    def _two_jobs(self, workers: int) -> float:
        """Wall seconds of all probes on two topologies of one kernel: jobs as long as a matrix has them."""
        words = ["--topology", "edu", "--topology", "edu-igb", "--suite", "probes", "-n", str(workers)]
        return _seconds(lambda: _check(itself.argv(["run", *self._kernel_words(), *words])))

    def edit(self) -> list[Figure]:
        """The time from saving one file in drivers/vfio to the verdict of all probes, against make alone."""
        from tools.bench.edits import EditedTree

        with EditedTree.provide(self.tree, self.job.kernel.variant) as edited:
            taken = in_turn(
                {
                    "make vmlinux": lambda: edited.make(),
                    "edit to verdict": lambda: self._edit_to_verdict(edited.path, edited.edit),
                },
                max(1, self.repeat // 2),
            )
        make = statistics.median(taken["make vmlinux"])
        target = 1.5 + 12 / make
        return [
            Figure(name="make vmlinux", unit="s", samples=taken["make vmlinux"]),
            Figure(
                name="edit to verdict",
                unit="s",
                samples=taken["edit to verdict"],
                baseline="make vmlinux",
                target=target,
            ),
        ]

    def _edit_to_verdict(self, tree: Path, edit: Callable[[], None]) -> float:
        edit()
        machine = ("--variant", self.job.kernel.variant, "--topology", self.topology)
        run = itself.argv(["run", "--tree", os.fspath(tree), *machine, "--suite", "probes"])
        return _seconds(lambda: _check(run))

    def variants(self) -> list[Figure]:
        """The cost of building every variant into an empty store: of the first build, and of all of them."""
        built_in, modular = _variants_by_linkage()
        with tempfile.TemporaryDirectory(prefix="variants-", dir=_bench_dir()) as store:
            source = os.fspath(open_tree(self.tree).path)
            spent = {name: _build_cpu_seconds(source, name, store) for name in (*built_in, *modular)}
        full = f"full build, {built_in[0]}"
        others = tuple(spent[name] for name in built_in[1:])
        everything = sum(spent[name] for name in built_in)
        return [
            Figure(name=full, unit="CPU s", samples=(spent[built_in[0]],)),
            Figure(name="each other built-in variant", unit="CPU s", samples=others, baseline=full),
            Figure(
                name=f"all {len(built_in)} built-in variants",
                unit="CPU s",
                samples=(everything,),
                baseline=full,
                target=1.25,
            ),
            # What includes linux/iommu.h, two of three files, depends on how iommufd is linked.
            *(
                Figure(name=f"{name} variant", unit="CPU s", samples=(spent[name],), baseline=full)
                for name in modular
            ),
        ]

    def _words(self) -> list[str]:
        return [*self._kernel_words(), "--topology", self.topology]

    def _kernel_words(self) -> list[str]:
        return ["--tree", self.tree, "--variant", self.job.kernel.variant]

    def _probes(self) -> list[str]:
        return itself.argv(["run", *self._words(), "--suite", "probes"])

    def _one_after_the_other(self, overheads: list[float]) -> float:
        """Wall seconds of all probes in one VM; the part that is neither boot nor cases is added to
        *overheads*."""
        with tempfile.TemporaryDirectory(prefix="vfio-harness-bench-") as directory:
            began = time.monotonic()
            printed = _check([*self._probes(), "-n", "0", "--json"], VFIO_HARNESS_RUNS=directory)
            wall = time.monotonic() - began
            cases = sum(float(case["duration"]) for case in json.loads(printed)["cases"])
            boots = sum(
                float(json.loads(path.read_text(encoding="utf-8"))["to_proof"])
                for path in Path(directory).glob(f"*/vm/*/{paths.TIMING_FILE}")
            )
        overheads.append(wall - cases - boots)
        return wall

    def _virtme_run(self, script: str = "echo READY") -> float:
        """Seconds from starting virtme-run until its guest has run *script*, which must end with READY."""
        recipe = Recipe.of(self.job)
        argv = [
            sys.executable,
            "-m",
            "virtme.commands.run",
            "--kimg",
            os.fspath(recipe.machine.image),
            "--mods",
            "none",
        ]
        argv += ["--force-9p", "--disable-microvm", "--memory", "1024", "--script-sh", script]
        argv += ["--disable-kvm"] if recipe.accel is Accel.TCG else []
        # Without udev the script cannot use virtme-ng's ports and prints to the console.
        argv += ["--show-boot-console"]
        began = time.monotonic()
        with process.spawn(argv, stdout=process.PIPE, stderr=process.STDOUT, whole_group=True) as child:
            limit = Deadline.after(_BASELINE_SECONDS)
            while select.select([child.stdout], [], [], limit.remaining)[0]:
                line = child.stdout.readline()
                if b"READY" in line:
                    return time.monotonic() - began
                if not line:
                    break
        raise InfraError(f"{shlex.join(argv)} printed no READY")


def _cpu_of_case(booted: Booted, agent: AgentClient, name: str) -> float:
    """CPU milliseconds of QEMU for one run of a case of _PARTS, the mean of _TIMES."""

    def spent() -> float:
        return sum(
            int((task / "schedstat").read_text(encoding="ascii").split()[0])
            for task in Path(f"/proc/{booted.vm.pid}/task").iterdir()
        )

    before = spent()
    for _ in range(_TIMES):
        report, spoilt = agent.run(f"{_PARTS.name}/{name}", _COMMAND_SECONDS, 1, [])
        if spoilt or not report.cases or report.cases[0].outcome is not Outcome.PASS:
            raise InfraError(f"the case {name} of {_PARTS} did not pass: {spoilt}")
    return (spent() - before) / 1e6 / _TIMES


def _check(argv: Sequence[str], **env: str) -> str:
    done = process.run(argv, env={**itself.env(), **env}, deadline=Deadline.after(_COMMAND_SECONDS))
    return done.check("measuring").stdout


def _bench_dir() -> Path:
    """Where measures keep what is too big for a temporary directory."""
    directory = paths.cache_dir() / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _variants_by_linkage() -> tuple[list[str], list[str]]:
    """The variants that every tree can build: those in which VFIO is built in, and those with modules."""
    variants = load_catalogue().variants.values()
    built = [one for one in variants if not one.blocked and one.wants.noiommu_only is None]
    return (
        [variant.name for variant in built if not variant.wants.modular],
        [variant.name for variant in built if variant.wants.modular],
    )


def _build_cpu_seconds(source: str, variant: str, store: str) -> float:
    """Processor time that building *variant* of *source* into *store* takes, as `build` reports it."""
    build = itself.argv(["build", "--tree", source, "--variant", variant, "--json"])
    (built,) = json.loads(_check(build, VFIO_HARNESS_CACHE=store))
    return float(built["build_cpu_seconds"])


def _seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _cpu_seconds(argv: Sequence[str]) -> float:
    def spent() -> float:
        times = os.times()
        return times.children_user + times.children_system

    before = spent()
    _check(argv, PYTHONDONTWRITEBYTECODE="")
    return spent() - before


@contextlib.contextmanager
def _booted(recipe: Recipe) -> Iterator[Path]:
    """Boot and stop a VM; yields a directory for another one."""
    with tempfile.TemporaryDirectory(prefix="vfio-harness-bench-") as directory:
        with boot(recipe, Path(directory) / "first"):
            pass
        yield Path(directory) / "second"


def _is_saved(recipe: Recipe) -> bool:
    """Whether there is a snapshot: not every machine can be saved."""
    snapshot = snapshot_of(recipe.machine, recipe.qemu, recipe.machine.parts())
    return snapshot is not None and snapshot.exists()


def _to_ssh(recipe: Recipe) -> float:
    with tempfile.TemporaryDirectory(prefix="vfio-harness-bench-") as directory:
        with boot(recipe, Path(directory)):
            pass
        timing = json.loads((Path(directory) / paths.TIMING_FILE).read_text(encoding="utf-8"))
    if timing["restored"] is not recipe.snapshots:
        raise InfraError("the VM was restored instead of booted, or the reverse")
    return float(timing["to_ssh"])

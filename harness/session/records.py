# SPDX-License-Identifier: GPL-2.0-only
"""What the results have besides cases: what the run was made with, its jobs, suites that do not compile."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import socket
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import harness
from harness.base import paths
from harness.base.errors import HarnessError
from harness.kernel import gittree
from harness.kernel.arch import find_arch
from harness.kernel.toolchain import ToolchainIdentity
from harness.machine.roots import find_root
from harness.results import KCONFIG_SUITE, Address, Inputs, Outcome, Result, RunInfo
from harness.results.store import RunStore
from harness.session.pipeline import BuiltRun, PlannedRun
from harness.session.planning import PlannedKernel, needs_selftests
from harness.suites.known import KnownIssue, issues_of, known_issue
from harness.suites.model import COMPILES


def open_store(planned: PlannedRun) -> RunStore:
    """Return the store of the run's results, in a directory that has everything else."""
    checked, request = planned.checked, planned.request
    if request.before is not None:
        store = RunStore.open(checked.run_dir)
        store.go_on()
        return store
    info = RunInfo(
        id=checked.run_id,
        started=checked.started,
        harness_version=harness.__version__,
        command=tuple(sys.argv),
        inputs=_inputs(planned),
    )
    return RunStore.create(checked.run_dir, info)


def _inputs(planned: PlannedRun) -> Inputs:
    """Return the identity of everything that decides the run."""
    checked, request = planned.checked, planned.request
    conduct, machine = request.conduct, request.machines[0]
    kernels = planned.kernels.values()
    toolchains = [kernel.plan.built_with for kernel in kernels if kernel.plan]
    return Inputs(
        tree="; ".join(dict.fromkeys(kernel.tree_identity for kernel in kernels)),
        kernels=planned.kernel_keys(),
        qemu=checked.qemu.version_text,
        accel=checked.accel.accel.value,
        timeout_factor=checked.accel.accel.timeout_factor,
        topologies=tuple(dict.fromkeys(machine.topology for machine in request.machines)),
        root=machine.root,
        machine=machine.kind,
        seed=conduct.seed,
        suites=request.suites,
        cases=conduct.cases,
        narrowed=request.pytest.narrowed,
        compare=conduct.compare,
        elsewhere=conduct.elsewhere,
        extra={
            "acceleration": "; ".join(
                f"{arch}: {choice.reason}" if len(checked.accels) > 1 else choice.reason
                for arch, choice in checked.accels.items()
            ),
            **made_with(machine.root, request.arches, toolchains),
            **planned.selftests(),
            **conduct.about,
        },
    )


def record_jobs(built: BuiltRun, store: RunStore) -> None:
    """Record every job, also one without a kernel, and what is known of it before anything runs."""
    planned, request = built.planned, built.planned.request
    before = request.before
    # A resumed run has them already.
    known = {(one.job, one.address) for one in before.results} if before is not None else set()
    for kernel in planned.kernels.values():
        if kernel.is_never_built:
            # It has no machine: one job for all topologies.
            record = kernel.record("", None, suites=(KCONFIG_SUITE,))
            store.add_job(record)
            if kernel.proof is not None and (record.name, kernel.proof.address) not in known:
                store.add(dataclasses.replace(kernel.proof, job=record.name))
    issues = issues_of(planned.checked.run_dir)
    for wish in request.wishes:
        kernel = planned.kernels[wish.kernel]
        if not kernel.is_never_built:
            record = planned.record(wish, planned.jobs.get(wish) or built.failed.get(wish))
            store.add_job(record)
            suites = [s for s in wish.suites if may_select(s, request.conduct.cases, request.pytest.keyword)]
            found = compile_results(record.name, suites, kernel, issues)
            store.add(*(one for one in found if (one.job, one.address) not in known))


def made_with(root: str, arches: Sequence[str], toolchains: Sequence[ToolchainIdentity]) -> dict[str, str]:
    """Return host, toolchain, harness commit and root images, for Inputs.extra; what is unknown is left out.

    *arches* and *toolchains* are those of the run's kernels.
    """
    found = {
        "host": socket.gethostname(),
        "compiler": "; ".join(dict.fromkeys(one.compiler for one in toolchains)),
        "linker": "; ".join(dict.fromkeys(one.linker for one in toolchains)),
        "object tools": "; ".join(dict.fromkeys(one.tools for one in toolchains if one.tools)),
        "harness commit": harness_commit(Path(harness.__file__).resolve().parent.parent),
        "root image": "; ".join(filter(None, (_root_image(root, arch) for arch in arches))),
    }
    return {name: value for name, value in found.items() if value}


def harness_commit(directory: Path) -> str:
    """Return the commit of the checkout *directory* and whether it has changes; empty if it is none."""
    if not (directory / ".git").exists():
        return ""
    with contextlib.suppress(HarnessError, OSError):
        commit = gittree.resolve(directory, "HEAD").commit
        return f"{commit} with local changes" if gittree.has_changes(directory) else commit
    return ""


def _root_image(root: str, arch: str) -> str:
    with contextlib.suppress(HarnessError, OSError):
        return find_root(root, find_arch(arch)).disks(paths.guest_dir()).get("root", "")
    return ""


def may_select(suite: str, cases: Sequence[str], keyword: str) -> bool:
    """Return whether `--case` *cases* and `-k` *keyword* may select something of *suite*.

    Any word of an expression counts: nobody can evaluate it for programs that were not built.
    """
    heads = [pattern.partition("/")[0] for pattern in cases]
    named = not heads or any(fnmatch.fnmatchcase(suite, head) for head in heads)
    words = set(keyword.lower().replace("(", " ").replace(")", " ").split())
    return named and (not words or any(word in suite for word in words - {"and", "or", "not"}))


def compile_results(
    job: str, suites: Iterable[str], kernel: PlannedKernel, issues: Collection[KnownIssue]
) -> Iterator[Result]:
    """Yield a Result for each of *suites* that does not compile, or compiles although *issues* names it."""
    version = kernel.tree.version if kernel.tree is not None else ""
    for suite in suites:
        if kernel.selftests is None or not needs_selftests([suite]):
            continue
        address = Address.parse(f"{suite}/{COMPILES}")
        known = known_issue(issues, str(address), release=version, job=job)
        broken = kernel.broken_suites.get(suite)
        if broken is not None and known is not None:
            yield Result(address=address, job=job, outcome=Outcome.XFAIL, reason=known.reason, log=broken)
        elif broken is not None:
            yield Result(address=address, job=job, outcome=Outcome.ERROR, reason=broken)
        elif known is not None and known.case == str(address):
            yield Result(address=address, job=job, outcome=Outcome.XPASS, reason=known.reason)

# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness build`: the kernel of a variant into the store, nothing booted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from harness.cli import options
from harness.errors import ExitCode, KernelError
from harness.output import emit, tell
from harness.results import Outcome
from harness.session import planning
from harness.session.wishes import KernelWish


@click.command("build")
@options.tree_option
@options.variant_option(multiple=True)
@options.kernel_options
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def command(
    tree: str | None,
    variants: tuple[str, ...],
    addons: tuple[str, ...],
    configs: tuple[Path, ...],
    jobs: int | None,
    as_json: bool,
) -> int:
    """Build the kernel of each variant, with its selftests, into the store.

    \b
    Examples:
      vfio-harness build --tree debian:7.3 --variant cdev
      vfio-harness build --tree ~/linux --variant group-cdev --with debug
    """
    wishes = [KernelWish(tree=tree, variant=v, addons=addons, configs=configs, jobs=jobs) for v in variants]
    for wish in wishes:
        planning.wished_variant(wish.variant)
    planning.check_addons(addons)
    planning.read_configs(configs)
    source = planning.open_wished_tree(tree)
    tell(f"tree: {source.label} ({source.path})")
    done = []
    kernels = []
    code = ExitCode.GOOD
    for wish in wishes:
        try:
            planned = planning.plan_wished_kernel(source, wish, with_selftests=True)
            if planned.proof is not None:
                tell(f"{wish.variant}: {planned.proof.outcome.value}: {planned.proof.reason}")
                refused = planned.proof.outcome is Outcome.PASS
                code = code if refused else max(code, ExitCode.CASE_FAILED)
                continue
            if planned.problem is not None:
                raise planned.problem
            kernels.append(planned)
            built = planning.build_planned(planned)
        except KernelError as error:
            if len(wishes) == 1:
                raise
            # What this tree cannot express or build costs that variant only.
            tell(f"{wish.variant}: {error}")
            code = max(code, error.exit_code)
            continue
        done.append(
            {
                "variant": wish.variant,
                "release": built.release,
                "digest": built.digest,
                "vmlinux": os.fspath(built.vmlinux),
                "config": os.fspath(built.config),
                "build_seconds": built.build_seconds,
                "build_cpu_seconds": built.build_cpu_seconds,
            }
        )
        if not as_json:
            emit(f"{wish.variant} {built.release} {built.vmlinux}")
    planning.tell_broken_suites(kernels)
    if as_json:
        emit(json.dumps(done, indent=2))
    return code

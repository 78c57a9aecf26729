# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness build`: the kernel of a variant into the store, nothing booted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from harness.cli import options, planning
from harness.cli.output import emit, tell
from harness.cli.planning import KernelWish
from harness.errors import ExitCode
from harness.results import Outcome


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
    code = ExitCode.GOOD
    for wish in wishes:
        provided = planning.provide(source, wish)
        if provided.problem is not None:
            raise provided.problem
        if provided.proof is not None:
            tell(f"{wish.variant}: {provided.proof.outcome.value}: {provided.proof.reason}")
            code = code if provided.proof.outcome is Outcome.PASS else ExitCode.CASE_FAILED
        if provided.kernel is not None:
            kernel = provided.kernel
            done.append(
                {
                    "variant": kernel.variant,
                    "release": kernel.release,
                    "digest": kernel.digest,
                    "vmlinux": os.fspath(kernel.vmlinux),
                    "config": os.fspath(kernel.config),
                    "build_seconds": kernel.build_seconds,
                }
            )
            if not as_json:
                emit(f"{kernel.variant} {kernel.release} {kernel.vmlinux}")
    if as_json:
        emit(json.dumps(done, indent=2))
    return code

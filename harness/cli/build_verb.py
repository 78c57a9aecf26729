# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness build`: build kernels into the store and boot nothing."""

from __future__ import annotations

import json
import os

import click

from harness.base.errors import ExitCode, KernelError
from harness.base.output import emit, tell
from harness.cli import options
from harness.kernel.trees import open_tree
from harness.results import Outcome
from harness.session import planning
from harness.session.wishes import KernelWish


@click.command("build")
@options.built_kernel_wish
@options.variant_option(multiple=True)
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def command(kernel: KernelWish, variants: tuple[str, ...], as_json: bool) -> int:
    """Build the kernel of each variant, with its selftests, into the store.

    \b
    Examples:
      vfio-harness build --tree debian:7.3 --variant cdev
      vfio-harness build --tree ~/linux --variant group-cdev --with debug
    """
    wishes = [kernel.of(variant) for variant in dict.fromkeys(variants)]
    for wish in wishes:
        planning.check_kernel(wish)
    source = open_tree(kernel.tree)
    tell(f"tree: {source.label} ({source.path})")
    done, kernels, code = [], [], ExitCode.GOOD
    for wish in wishes:
        planned = planning.plan_wished_kernel(source, wish, with_selftests=True)
        if planned.proof is not None:
            tell(f"{wish.variant}: {planned.proof.outcome.value}: {planned.proof.reason}")
            refused = planned.proof.outcome is Outcome.PASS
            code = code if refused else max(code, ExitCode.CASE_FAILED)
            continue
        try:
            if planned.problem is not None:
                raise planned.problem
            kernels.append(planned)
            built = planning.build_planned(planned)
        except KernelError as error:
            if len(wishes) == 1:
                raise
            # The other variants can still be built.
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

# SPDX-License-Identifier: GPL-2.0-only
"""`python -m tools.bench`: measure the harness, compared with the alternatives."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from harness.base.errors import UsageError
from harness.base.output import emit, tell
from harness.cli import options
from harness.cli.main import main

if TYPE_CHECKING:
    from tools.bench import Compared

MEASURES = ("startup", "boot", "roundtrip", "cases", "run", "restores", "throughput", "edit", "variants")
_QUICK = MEASURES[:5]


@click.command("bench", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@options.tree_option
@options.variant_option(multiple=False)
@options.topology_option(multiple=False)
@click.option(
    "--only",
    "chosen",
    multiple=True,
    type=click.Choice(MEASURES),
    help=f"What to measure; repeatable.  [default: {', '.join(_QUICK)}]",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Measure everything, also edit and variants, which build whole kernels.",
)
@click.option("--repeat", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, for a nightly to watch.")
def command(
    tree: str | None,
    variant: str,
    topology: str,
    chosen: tuple[str, ...],
    everything: bool,
    repeat: int,
    as_json: bool,
) -> None:
    """Measure what the harness costs, compared with the alternatives.

    Prints the median of N samples, their spread, the ratio to the baseline's median, and the target ratio.
    Run it on an idle host; nothing here passes or fails.

    \b
    Examples:
      python -m tools.bench
      python -m tools.bench --only boot --repeat 9 --json
    """
    if everything and chosen:
        raise UsageError("--all measures everything, --only does not", hint="leave one of them out")
    from harness.lab.boot import Recipe
    from harness.session.jobs import provide_job
    from harness.session.wishes import KernelWish, MachineWish, default_tree
    from tools.bench import Bench, compare

    wish = KernelWish(tree=tree or default_tree(), variant=variant)
    job = provide_job(wish, MachineWish(topology=topology))
    measures = Bench(job=job, topology=topology, tree=str(wish.tree), repeat=repeat).measures()
    figures = []
    for name in MEASURES if everything else chosen or _QUICK:
        tell(f"measuring: {name}")
        figures += measures[name]()
    compared = compare(figures)
    if as_json:
        facts = {"job": job.name, "accel": Recipe.of(job).accel, "figures": [c.to_json() for c in compared]}
        emit(json.dumps(facts, indent=2))
    else:
        _show(compared)


def _show(compared: Sequence[Compared]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure")
    for heading in ("median", "spread", "ratio", "aim"):
        table.add_column(heading, justify="right")
    table.add_column("to")
    for one in compared:
        figure = one.figure
        aim = "" if figure.target is None else f"{'' if one.kept else 'over '}{figure.target:.2f}"
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        median, spread = f"{figure.median:.2f} {figure.unit}", f"{figure.spread:.2f}"
        table.add_row(figure.name, median, spread, ratio, aim, figure.baseline)
    width = max(100, shutil.get_terminal_size().columns)
    Console(file=sys.stdout, width=width, highlight=False).print(table)


if __name__ == "__main__":
    main(command)

# SPDX-License-Identifier: GPL-2.0-only
"""Every suite there is, found by the modules of this package that have a function `suites()`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Collection

import harness.suites
from harness.base.errors import UsageError, nearest
from harness.results import Address
from harness.suites.model import DeclaredCase, Suite


@functools.cache
def all_suites() -> tuple[Suite, ...]:
    """Return every suite, in the order in which lists show them."""
    names = sorted(info.name for info in pkgutil.iter_modules(harness.suites.__path__))
    modules = [importlib.import_module(f"harness.suites.{name}") for name in names]
    found = [suite for module in modules if hasattr(module, "suites") for suite in module.suites()]
    return tuple(sorted(found, key=lambda suite: suite.rank))


def suite_names() -> tuple[str, ...]:
    """Return the name of every suite."""
    return tuple(suite.name for suite in all_suites())


def suite_named(name: str) -> Suite:
    """Return the suite called *name*; UsageError names the nearest one."""
    for suite in all_suites():
        if suite.name == name:
            return suite
    raise UsageError(f"there is no suite {name!r}", hint=nearest(name, suite_names()))


def chosen_suites(names: Collection[str]) -> tuple[Suite, ...]:
    """Return the suites with one of *names*."""
    return tuple(suite for suite in all_suites() if suite.name in names)


def declared_cases(names: Collection[str] | None = None) -> tuple[DeclaredCase, ...]:
    """Return all cases that are known without a kernel, those of the suites *names* if given."""
    chosen = all_suites() if names is None else chosen_suites(names)
    return tuple(case for suite in chosen for case in suite.declared())


def may_exist(address: Address) -> bool:
    """Whether the case at *address* may still exist; a kernel alone tells which programs upstream has."""
    return all(suite.has(address) for suite in chosen_suites((address.suite,)))


def work_address(address: Address) -> str:
    """Return the address of the piece of work that the case at *address* is of."""
    suites = chosen_suites((address.suite,))
    return suites[0].work_address(address) if suites else address.program_path

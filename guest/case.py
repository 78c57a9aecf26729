# SPDX-License-Identifier: GPL-2.0-only
"""Case: how one is declared, and what a running one can use.

A case is a function with the decorator @case in a module of guest.probes.  Its docstring is its promise: one
sentence that must hold for the kernel.  Importing a probe module registers its cases and runs nothing.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.util
import os
import random
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple, NoReturn, Optional, Union

from guest import bounded, forked, pci
from guest import needs as _needs
from guest.hostlink import HostLink
from guest.kmsg import KernelLog

PROBES = "guest.probes"

COMPLAINTS = ("WARNING:", "BUG:", "refcount_t:", "Time out waiting for iommufd", "Oops", "general protection")
"""Words of the kernel log that report a bug of the kernel."""


class BadCase(Exception):
    """A case is declared wrongly; raised at import, before any VM starts."""


class Failure(AssertionError):
    """A promise does not hold; the message is one line with the expected and the actual value."""


class Skip(Exception):
    """This case cannot be tried here; the message says why."""


class Case(NamedTuple):
    """One declared case.  All fields but `function` are data that the host reads without running anything."""

    module: str
    """The probe module's last name, such as `capabilities`."""

    name: str
    """The function's name."""

    needs: tuple[str, ...]
    """Features that must be present, or with `!` absent."""

    cites: str
    """The kernel file and function, or the section of the documentation, that the promise is from."""

    timeout: float
    """Seconds on KVM; the host multiplies it for TCG."""

    fresh: bool
    """Whether it needs a just booted VM whose kernel no no-IOMMU device has tainted yet."""

    destructive: bool
    """Whether it may damage the kernel: it runs after all others, in a VM of its own.  If a known issue does
    the damage, a splat is the expected failure."""

    promise: str
    """The first paragraph of the docstring on one line."""

    path: str
    """The source file."""

    lineno: int
    """The line of the case in it."""

    function: Callable[[Test], None]
    """The function that runs the case."""

    @property
    def address(self) -> str:
        """`module/name`, stable over time."""
        return f"{self.module}/{self.name}"

    @property
    def turn(self) -> int:
        """When it runs: 0 for fresh cases, 1 for most, 2 for destructive ones."""
        return 2 if self.destructive else int(not self.fresh)

    def unmet(self, features: frozenset[str]) -> tuple[str, ...]:
        """Return the needs that *features* does not satisfy."""
        return _needs.unmet(self.needs, features)


_registry: dict[str, Case] = {}


def case(
    *,
    needs: Sequence[str] = (),
    cites: str,
    timeout: float = 30.0,
    fresh: bool = False,
    destructive: bool = False,
) -> Callable[[Callable[[Test], None]], Callable[[Test], None]]:
    """Declare the decorated function a case; raise BadCase when the declaration is incomplete.

    A *destructive* case may leave a damaged kernel, on which nothing else may run.
    """

    def register(function: Callable[[Test], None]) -> Callable[[Test], None]:
        code = function.__code__
        declared = Case(
            module=function.__module__.rpartition(".")[2],
            name=function.__name__,
            needs=tuple(needs),
            cites=cites,
            timeout=timeout,
            fresh=fresh,
            destructive=destructive,
            promise=_promise(function.__doc__),
            path=code.co_filename,
            lineno=code.co_firstlineno,
            function=function,
        )
        _check(declared)
        _registry[declared.address] = declared
        return function

    return register


def _promise(doc: Optional[str]) -> str:
    return " ".join((doc or "").strip().split("\n\n")[0].split())


def _check(declared: Case) -> None:
    where = f"{declared.path}:{declared.lineno}: case {declared.address}"
    if any(len(need) == 1 for need in declared.needs):
        raise BadCase(f"{where}: needs must be a tuple of names (a comma is missing)")
    try:
        _needs.check_names(declared.needs)
    except _needs.UnknownFeature as error:
        raise BadCase(f"{where}: {error}") from error
    if not declared.promise:
        raise BadCase(f"{where}: has no promise (a docstring of one sentence)")
    if not declared.cites.strip():
        raise BadCase(f"{where}: cites nothing")
    if declared.timeout <= 0:
        raise BadCase(f"{where}: its timeout must be a positive number of seconds")
    if declared.destructive and declared.fresh:
        raise BadCase(f"{where}: a destructive case comes last, a fresh one first")
    before = _registry.get(declared.address)
    if before is not None and before.path != declared.path:
        raise BadCase(f"{where}: {before.path}:{before.lineno} has this address already")
    if before is not None and before.lineno != declared.lineno:
        raise BadCase(f"{where}: the name is taken by line {before.lineno}")


def discover(package: str = PROBES) -> tuple[Case, ...]:
    """Import every module of *package* and return its cases, by module and then in source order."""
    root = importlib.import_module(package)
    for name in _modules_in(root.__path__):
        importlib.import_module(f"{package}.{name}")
    return _declared_below(root.__path__)


def _modules_in(directories: Iterable[str]) -> list[str]:
    """Return the names of the modules; pkgutil would load a tenth of what a guest loads, to find them."""
    files = (file for directory in directories for file in os.listdir(directory))
    names = {name for name, dot, ending in (file.partition(".") for file in files) if dot + ending == ".py"}
    return sorted(names - {"__init__"})


def discover_own(directory: str, package: str = PROBES) -> tuple[Case, ...]:
    """Import every module in *directory* as one of *package*, in the order of their names; return its cases.

    Raises BadCase for a module whose name *package* has already.
    """
    shipped = _modules_in(importlib.import_module(package).__path__)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        for name in _modules_in([directory]):
            path = os.path.join(directory, f"{name}.py")
            if name in shipped:
                raise BadCase(f"{path}: there is a module {name!r} already; rename it")
            _import(f"{package}.{name}", path)
    finally:
        sys.dont_write_bytecode = before
    return _declared_below((directory,))


def _import(name: str, path: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _declared_below(places: Iterable[str]) -> tuple[Case, ...]:
    directories = tuple(os.path.abspath(path) + os.sep for path in places)
    found = [known for known in _registry.values() if os.path.abspath(known.path).startswith(directories)]
    return tuple(sorted(found, key=lambda one: (one.module, one.lineno)))


class Test:
    """What a running case can use: its features, devices, assertions, the kernel log, the host."""

    __test__ = False  # pytest collects classes named Test*

    def __init__(self, declared: Case, *, features: frozenset[str], seed: int, kmsg: KernelLog) -> None:
        self.case = declared
        self.features = features
        self.seed = seed
        self.host = HostLink()
        self._kmsg = kmsg

    @functools.cached_property
    def random(self) -> random.Random:
        """The source of the case's random choices."""
        return random.Random(self.seed)

    def devices(self, kind: str, *, iommu: Optional[bool] = None) -> list[str]:
        """Return the BDFs of the devices of *kind*, those without an IOMMU first.

        With *iommu*, return only those behind a real IOMMU (True) or those without one (False).
        """
        found = [(pci.has_iommu(bdf), bdf) for bdf in pci.find(kind)]
        return [bdf for real, bdf in sorted(found) if iommu is None or real is iommu]

    def device(self, kind: str, *, iommu: Optional[bool] = None) -> str:
        """Return the first of devices(); fail if there is none."""
        found = self.devices(kind, iommu=iommu)
        if not found:
            where = {None: "", True: " behind an IOMMU", False: " without an IOMMU"}[iommu]
            raise Failure(f"the machine has no device of kind {kind}{where}, although its features name one")
        return found[0]

    def log(self, message: object) -> None:
        """Print *message* for the reader of a failure."""
        print(message, flush=True)

    def skip(self, reason: str) -> NoReturn:
        """Skip the case, for a *reason* that the features do not tell."""
        raise Skip(reason)

    def fail(self, message: str) -> NoReturn:
        """Fail with *message*."""
        raise Failure(message)

    def check(self, condition: object, message: str) -> None:
        """Fail with *message* unless *condition* is true."""
        if not condition:
            raise Failure(message)

    def equal(self, got: object, want: object, what: str) -> None:
        """Fail unless *got* equals *want*; *what* names the value."""
        if got != want:
            raise Failure(f"{what}: want {_show(want)}, got {_show(got)}")

    def wait_until(
        self, condition: Callable[[], object], what: Union[str, Callable[[], str]], seconds: float = 10.0
    ) -> None:
        """Fail with "*what* did not happen" unless *condition* is true within *seconds*.

        *what* may be a function that says how far it came.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                bounded.expired.append(seconds)
                waited_for = what() if callable(what) else what
                raise Failure(f"{waited_for} did not happen within {seconds:g} s")
            time.sleep(0.01)

    def errno(
        self,
        expected: Union[int, tuple[int, ...]],
        call: Callable[..., object],
        *arguments: Any,
        **named: Any,
    ) -> None:
        """Fail unless *call* raises OSError with the errno *expected* (or one of several)."""
        wanted = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(_errno_name(code) for code in wanted)
        what = getattr(call, "__qualname__", repr(call))
        try:
            result = call(*arguments, **named)
        except OSError as error:
            if error.errno in wanted:
                return
            raise Failure(f"{what}: want {names}, got {_errno_name(error.errno or 0)}") from error
        raise Failure(f"{what}: want {names}, but it succeeded with {_show(result)}")

    def in_child(self, function: Callable[[], object], *, timeout: float = 20.0) -> object:
        """Run *function* in a child process and return its result (JSON values only).

        Use it for steps that drop privileges, which the case itself keeps.  An exception in the child fails
        the case.
        """
        try:
            return forked.call(function, timeout=timeout)
        except forked.ChildError as error:
            raise Failure(str(error)) from error

    def dmesg(self) -> list[str]:
        """Return what the kernel printed since the case began, one record a line, without timestamps."""
        return self._kmsg.lines()

    def check_no_complaint(self) -> None:
        """Fail if the kernel log has a complaint since the case began."""
        found = [line for line in self.dmesg() if any(word in line for word in COMPLAINTS)]
        self.equal(found, [], "the kernel's complaints")


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 9:
        return f"{value:#x}"
    return repr(value)


def _errno_name(code: int) -> str:
    # Python calls 95 ENOTSUP; the kernel's name for it is EOPNOTSUPP.
    name = "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode.get(code, "?")
    return f"{name} ({code})"

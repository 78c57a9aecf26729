# SPDX-License-Identifier: GPL-2.0-only
"""What a case is, how one is declared, and what a running one can ask for.

A case is a function in a module of guest.probes under the decorator @case.  Its docstring is its promise: one
sentence that the kernel has to keep.  Importing a probe module only registers its cases; nothing runs.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NoReturn, Optional, TypeVar, Union

from guest import forked, pci
from guest import needs as _needs
from guest.hostlink import HostLink
from guest.kmsg import KernelLog

PROBES = "guest.probes"

COMPLAINTS = ("WARNING:", "BUG:", "refcount_t:", "Time out waiting for iommufd", "Oops", "general protection")
"""What the kernel says when it has caught itself at a mistake."""

T = TypeVar("T")


class BadCase(Exception):
    """A case is declared wrongly: found at import, long before a VM is started."""


class Failure(AssertionError):
    """A promise was not kept; the message is one line that says what was wanted and what came."""


class Skip(Exception):
    """This case cannot be tried here, for the reason given."""


@dataclass(frozen=True)
class Case:
    """One declared case.  All but `function` is plain data that the host reads without running anything."""

    module: str
    """The probe module's last name, such as `capabilities`."""

    name: str
    """The function's name."""

    needs: tuple[str, ...]
    """Features that must be there, or with `!` must not."""

    cites: str
    """The kernel file and function, or the section of the documentation, that makes the promise true."""

    timeout: float
    """Seconds, on hardware; the host scales it for an emulated processor."""

    fresh: bool
    """Whether it needs a just booted VM that no no-IOMMU device has tainted yet."""

    destructive: bool
    """Whether it is expected to damage the kernel it runs on: it gets a VM of its own, after all the others.
    Where a known issue is what does the damage, the kernel's complaint is the expected failure."""

    alongside: bool
    """Whether it may run at the same time as others that say so too, in one VM: it touches no device and no
    setting of the machine, and none of them can tell that it is there."""

    promise: str
    """The first paragraph of the docstring on one line."""

    path: str
    """The source file."""

    lineno: int
    """Where the case begins in it."""

    function: Callable[[Test], None] = field(compare=False, repr=False)
    """What to call."""

    @property
    def address(self) -> str:
        """`module/name`, stable over time."""
        return f"{self.module}/{self.name}"

    @property
    def turn(self) -> int:
        """When it runs: 0 for what wants an unused kernel, 1 for most, 2 for what damages it."""
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
    alongside: bool = False,
) -> Callable[[Callable[[Test], None]], Callable[[Test], None]]:
    """Declare the decorated function a case; raise BadCase when the declaration is incomplete.

    A *destructive* case may leave a damaged kernel behind, which nothing else may run on.  One that may run
    *alongside* others cannot hear the kernel, whose words might be about any of them.
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
            alongside=alongside,
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
    if declared.alongside and (declared.fresh or declared.destructive):
        raise BadCase(f"{where}: a fresh or destructive case runs alone, not alongside others")
    before = _registry.get(declared.address)
    if before is not None and before.path != declared.path:
        raise BadCase(f"{where}: {before.path}:{before.lineno} has this address already")
    if before is not None and before.lineno != declared.lineno:
        raise BadCase(f"{where}: the name is taken by line {before.lineno}")


def discover(package: str = PROBES) -> tuple[Case, ...]:
    """Import every module of *package* and return its cases, by module and then in source order."""
    root = importlib.import_module(package)
    modules = sorted(info.name for info in pkgutil.iter_modules(root.__path__))
    for name in modules:
        importlib.import_module(f"{package}.{name}")
    directories = tuple(os.path.abspath(path) + os.sep for path in root.__path__)
    found = [known for known in _registry.values() if os.path.abspath(known.path).startswith(directories)]
    return tuple(sorted(found, key=lambda one: (one.module, one.lineno)))


class Test:
    """What a running case has: its features, its devices, its assertions, the kernel's voice, the host."""

    __test__ = False  # pytest collects classes named Test*

    def __init__(self, declared: Case, *, features: frozenset[str], seed: int, kmsg: KernelLog) -> None:
        self.case = declared
        self.features = features
        self.seed = seed
        self.random = random.Random(seed)
        self.host = HostLink()
        self._kmsg = kmsg

    def devices(self, kind: str, *, iommu: Optional[bool] = None) -> list[str]:
        """Return the BDFs of the devices of *kind*, those without an IOMMU first.

        *iommu* keeps only the ones that do (True) or do not (False) sit behind a real IOMMU.
        """
        found = [(pci.has_iommu(bdf), bdf) for bdf in pci.find(kind)]
        return [bdf for real, bdf in sorted(found) if iommu is None or real is iommu]

    def device(self, kind: str, *, iommu: Optional[bool] = None) -> str:
        """Return the first of devices(); fail when there is none, since the needs promised one."""
        found = self.devices(kind, iommu=iommu)
        if not found:
            where = {None: "", True: " behind an IOMMU", False: " without an IOMMU"}[iommu]
            raise Failure(f"the topology promised a device of kind {kind}{where}, and there is none")
        return found[0]

    def log(self, message: object) -> None:
        """Say something for whoever reads a failure."""
        print(message, flush=True)

    def skip(self, reason: str) -> NoReturn:
        """Give up without a verdict, for a reason that the features could not know."""
        raise Skip(reason)

    def fail(self, message: str) -> NoReturn:
        """Fail with *message*."""
        raise Failure(message)

    def check(self, condition: object, message: str) -> None:
        """Fail with *message* unless *condition* is true."""
        if not condition:
            raise Failure(message)

    def equal(self, got: object, want: object, what: str) -> None:
        """Fail unless *got* equals *want*; *what* names the thing that was looked at."""
        if got != want:
            raise Failure(f"{what}: want {_show(want)}, got {_show(got)}")

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
        """Fail with *what* did not happen unless *condition* comes true within *seconds*."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise Failure(f"{what} did not happen within {seconds:g} s")
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
        """Run *function* in a child of its own and return its result (JSON values only).

        For steps that give up privileges: the case itself keeps them.  What the child raises fails the case.
        """
        try:
            return forked.call(function, timeout=timeout)
        except forked.ChildError as error:
            raise Failure(str(error)) from error

    def dmesg(self) -> list[str]:
        """Return what the kernel printed since the case began, one record a line, without timestamps."""
        if self.case.alongside:
            raise Failure("a case that runs alongside others cannot know which of them the kernel speaks of")
        return self._kmsg.lines()

    def check_no_complaint(self) -> None:
        """Fail when the kernel complained of itself since the case began."""
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

# SPDX-License-Identifier: GPL-2.0-only
"""A Run with one of everything, for the report tests."""

from __future__ import annotations

import dataclasses
import datetime

from harness.base.errors import ExitCode
from harness.results import Address, Inputs, JobRecord, Outcome, Result, Run, RunInfo, RunState, Verdict

STARTED = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
HOSTILE = 'a<b>&"c" [red]x[/red] \x1b[31m\x00\x0b\udc80 </script><script>alert(1)</script> ]]>'
SPLAT = (
    "BUG: kernel NULL pointer dereference, address: 0000000000000018\nRIP: 0010:vfio_df_unbind+0x18/0x60\n"
)


def result(text: str, outcome: Outcome, job: str = "7.3.4-cdev-edu", **fields: object) -> Result:
    made = Result(address=Address.parse(text), job=job, outcome=outcome, duration=1.5)
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


RESULTS = (
    result("probes/iommufd/get_pa_mapped", Outcome.PASS),
    result("probes/iommufd/get_pa_unmapped", Outcome.FAIL, reason="errno is 22 (EINVAL), want 2 (ENOENT)",
           log="binding 0000:00:04.0\n", vm_dir="vms/0",
           rerun="vfio-harness run -k 'get_pa_unmapped and edu'"),
    result("probes/hotplug/unplug_while_open", Outcome.CRASH, reason="BUG: kernel NULL pointer dereference",
           splat=SPLAT, log="console", vm_dir="vms/1", rerun="vfio-harness run -k unplug_while_open"),
    result("probes/hotplug/replug", Outcome.NOT_RUN, reason="not reached: unplug_while_open was CRASH"),
    result("probes/edu/known", Outcome.XFAIL, reason="documented"),
    result("probes/edu/mended", Outcome.XPASS),
    result("kselftest:vfio/vfio_pci_device_test/f.reset", Outcome.SKIP, job="7.3.4-group-igb",
           reason="no reset"),
    result("kselftest:vfio/vfio_pci_device_test/f.slow", Outcome.TIMEOUT, job="7.3.4-group-igb"),
    result("kselftest:vfio/vfio_pci_driver_test/(program)", Outcome.ERROR, job="7.3.4-group-igb"),
    result("kselftest:vfio/vfio_pci_driver_test/f.lost", Outcome.LOST, job="7.3.4-group-igb", attempt=1),
    result("kselftest:vfio/vfio_pci_driver_test/f.lost", Outcome.LOST, job="7.3.4-group-igb", attempt=2),
    result(f"probes/evil/{HOSTILE}", Outcome.FAIL, job="7.3.4-group-igb", reason=HOSTILE, log=HOSTILE * 3),
)  # fmt: skip

RUN = Run(
    info=RunInfo(
        id="20300102-030405-1",
        started=STARTED,
        harness_version="0.1.0",
        command=("vfio-harness", "matrix"),
        inputs=Inputs(
            tree="v7.3.4",
            kernels={"cdev": "aa", "group": "bb"},
            qemu="10.0.2",
            accel="tcg",
            timeout_factor=10.0,
            topologies=("edu", "igb"),
            root="image",
            extra={"host": "north"},
        ),
    ),
    jobs=(
        JobRecord(
            name="7.3.4-cdev-edu", kernel="7.3.4 aa", variant="cdev", topology="edu", features=("cdev",)
        ),
        JobRecord(name="7.3.4-group-igb", kernel="7.3.4 bb", variant="group", topology="igb"),
        JobRecord(name="7.3.4-broken-edu", problem="the build stopped", problem_code=ExitCode.KERNEL),
        JobRecord(
            name="7.2-cdev-edu", problem="no such symbol", problem_code=ExitCode.KERNEL, applicable=False
        ),
    ),
    results=RESULTS,
    state=RunState.FINISHED,
    finished=STARTED + datetime.timedelta(seconds=83),
    verdict=Verdict.BAD,
    directory="runs/20300102-030405-1",
)

GOOD = dataclasses.replace(
    RUN,
    info=dataclasses.replace(RUN.info, inputs=dataclasses.replace(RUN.info.inputs, accel="kvm")),
    jobs=RUN.jobs[:1],
    results=RESULTS[:1],
    verdict=Verdict.GOOD,
)
EMPTY = dataclasses.replace(RUN, jobs=(), results=(), info=dataclasses.replace(RUN.info, inputs=Inputs()))

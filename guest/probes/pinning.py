# SPDX-License-Identifier: GPL-2.0-only
"""Pinned memory: when it is pinned, whose limit it counts against, and what it survives.

Limits are lowered and privileges dropped in child processes only. A child inherits the iommufd and has its
own memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator

from guest import caps, forked, libc, memory, pci, vfio
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.memory import HUGE, PAGE
from guest.opened import CdevUser, through_cdev

BARE = ("noiommu-cdev", "edu", "!viommu")
ACCOUNTING = "drivers/iommu/iommufd/pages.c iopt_pages_update_pinned()"

BASE = 0x1000_0000
PER_USER, PER_PROCESS = 0, 1
LIMIT = 16
"""The number of pages that a child may lock."""


@contextlib.contextmanager
def _counted(bdf: str, mode: int) -> Iterator[CdevUser]:
    """Open *bdf* as through_cdev() does, with the accounting mode *mode*."""
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        iommufd.option_set(api.OPTION_RLIMIT_MODE, mode)
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        device.attach(ioas)
        yield CdevUser(device=device, iommufd=iommufd, ioas=ioas, devid=devid)


def _limit(limit: int) -> None:
    """Limit the memory that this process may lock to *limit* bytes; a part of a page cannot be used."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    caps.drop(caps.CAP_IPC_LOCK)


def _map(user: CdevUser, pages: int, iova: int) -> None:
    """Map *pages* pages of new memory of this process, which stays until the process ends."""
    buffer = memory.anonymous(pages * PAGE)
    buffer.touch()
    user.map(buffer, iova)


def _expect_room(t: Test, user: CdevUser, pages: int, iova: int) -> None:
    """Fail unless exactly *pages* can be pinned; leave nothing mapped."""
    t.errno(errno.ENOMEM, _map, user, pages + 1, iova)
    if pages:
        _map(user, pages, iova)
        user.iommufd.unmap(user.ioas, iova, pages * PAGE)


@contextlib.contextmanager
def _holder(use: Callable[[], object], *, killed: bool = False) -> Iterator[None]:
    """Run *use* in a child that stays until the end of the block, and then exits or is *killed*."""
    ready, done = forked.Gate(), forked.Gate()

    def hold() -> None:
        use()
        ready.open()
        done.wait(60)

    with forked.Child(hold) as child:
        while not child.ended():
            with contextlib.suppress(TimeoutError):
                ready.wait(0.05)
                break
        yield
        if killed:
            child.kill()
            child.wait()
        else:
            done.open()
            child.result()
    ready.close()
    done.close()


@case(needs=BARE, cites=f"{ACCOUNTING}, incr_user_locked_vm()")
def processes_of_a_user_share_a_limit(t: Test) -> None:
    """With accounting per user, pages that one process pinned count against the limit of another, even after
    the first has ended."""
    with _counted(t.device("edu"), PER_USER) as user:

        def first() -> None:
            _limit(LIMIT * PAGE)
            _map(user, 12, BASE)
            t.equal((memory.pinned_pages(), memory.locked_pages()), (12, 0), "pages pinned and locked")

        def second(room: int) -> None:
            _limit(LIMIT * PAGE)
            _expect_room(t, user, room, BASE + HUGE)

        with _holder(first):
            t.in_child(lambda: second(4))
        t.in_child(lambda: second(4))
        user.iommufd.unmap(user.ioas, 0, LAST_IOVA)
        t.in_child(lambda: second(16))


@case(needs=BARE, cites=f"{ACCOUNTING}, update_mm_locked_vm()")
def processes_have_limits_of_their_own(t: Test) -> None:
    """With accounting per process, each process may pin up to its own limit, and VmLck includes the pinned
    pages until they are unmapped, by any process."""
    with _counted(t.device("edu"), PER_PROCESS) as user:
        unmapped = forked.Gate()

        def first() -> None:
            _limit(LIMIT * PAGE)
            _map(user, LIMIT, BASE)
            t.equal((memory.pinned_pages(), memory.locked_pages()), (16, 16), "pages pinned and locked")
            ready.open()
            unmapped.wait()
            t.equal((memory.pinned_pages(), memory.locked_pages()), (0, 0), "pages when another has unmapped")
            _expect_room(t, user, LIMIT, BASE)

        def second() -> None:
            _limit(LIMIT * PAGE)
            _expect_room(t, user, LIMIT, BASE + HUGE)

        ready = forked.Gate()
        with forked.Child(first) as child:
            ready.wait()
            t.in_child(second)
            user.iommufd.unmap(user.ioas, BASE, LIMIT * PAGE)
            unmapped.open()
            child.result()


@case(needs=BARE, cites=f"{ACCOUNTING}, iopt_alloc_pages() (source_user)")
def users_have_limits_of_their_own(t: Test) -> None:
    """With accounting per user, pages that one user pinned do not count against another user."""
    with _counted(t.device("edu"), PER_USER) as user:

        def as_root() -> None:
            _limit(LIMIT * PAGE)
            _map(user, LIMIT, BASE)

        def as_nobody() -> None:
            _limit(LIMIT * PAGE)
            caps.become()
            _expect_room(t, user, LIMIT, BASE + HUGE)

        with _holder(as_root):
            t.in_child(as_nobody)


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c iopt_alloc_pages() (CAP_IPC_LOCK)")
def ipc_lock_lifts_the_limit(t: Test) -> None:
    """With CAP_IPC_LOCK memory is pinned beyond any limit and counts against no limit, in either mode."""
    for mode in (PER_USER, PER_PROCESS):
        with _counted(t.device("edu"), mode) as user:

            def privileged() -> None:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
                _map(user, 2 * LIMIT, BASE)
                t.equal((memory.pinned_pages(), memory.locked_pages()), (32, 0), "pages pinned and locked")

            def limited() -> None:
                _limit(LIMIT * PAGE)
                _expect_room(t, user, LIMIT, BASE + HUGE)

            with _holder(privileged):
                t.in_child(limited)


@case(needs=BARE, cites=f"{ACCOUNTING}, incr_user_locked_vm(), iopt_area_fill_domains() (unwinding)")
def refused_map_pins_nothing(t: Test) -> None:
    """A MAP of one page more than the limit pins nothing, and all pages that it counted are free again."""
    pages = t.random.randrange(600, 1500)
    t.log(f"seed {t.seed}, {pages} pages")
    for mode in (PER_USER, PER_PROCESS):
        with _counted(t.device("edu"), mode) as user:
            before = memory.held_pins()

            def limited() -> None:
                _limit(pages * PAGE + PAGE - 1)
                for _ in range(2):
                    t.errno(errno.ENOMEM, _map, user, pages + 1, BASE)
                    t.equal((memory.pinned_pages(), memory.locked_pages()), (0, 0), "pages pinned and locked")
                _expect_room(t, user, pages, BASE)

            t.in_child(limited)
            t.equal(memory.held_pins(), before, "pins in the system")


@case(needs=BARE, cites=f"{ACCOUNTING} (source_task); pages.c pfn_reader_user_pin() pin_user_pages_remote()")
def attach_charges_who_mapped(t: Test) -> None:
    """Whichever process attaches, pages count against the process that mapped them and its current limit, and
    are taken from that process."""
    with _counted(t.device("edu"), PER_USER) as user:
        user.device.detach()
        mapped, refused, attached, raised = (forked.Gate() for _ in range(4))

        def owner() -> list[int]:
            caps.drop(caps.CAP_IPC_LOCK)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT * PAGE, 4 * LIMIT * PAGE))
            buffer = memory.anonymous(2 * LIMIT * PAGE)
            buffer.touch()
            user.map(buffer, BASE)
            mapped.open()
            refused.wait()
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * LIMIT * PAGE, 4 * LIMIT * PAGE))
            raised.open()
            attached.wait()
            t.equal(memory.pinned_pages(), 2 * LIMIT, "pages pinned by the process that mapped")
            return memory.frames(buffer.address, buffer.length)

        with forked.Child(owner) as child:
            mapped.wait()
            t.errno(errno.ENOMEM, user.device.attach, user.ioas)
            refused.open()
            raised.wait()
            user.device.attach(user.ioas)
            t.equal(memory.pinned_pages(), 0, "pages pinned by the process that attached")
            got = [user.iommufd.get_pa(user.ioas, BASE + page * PAGE, 1)[0] for page in range(2 * LIMIT)]
            attached.open()
            t.equal(got, child.result(), "the addresses, compared with the frames of the process that mapped")


@case(needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_change_process(), charge_current()")
def count_moves_to_another_process(t: Test) -> None:
    """CHANGE_PROCESS moves the count of pages pinned by MAP_FILE from the process that mapped to the caller;
    it is ENOMEM if the caller's limit is too low and EINVAL if the iommufd has any other kind of mapping, and
    a refusal changes no count."""
    for mode in (PER_USER, PER_PROCESS):
        _count_moves(t, mode)


def _count_moves(t: Test, mode: int) -> None:
    locked = LIMIT if mode == PER_PROCESS else 0
    # Counted per user, the old process's pages are still counted when the new one's are added.
    room = LIMIT if mode == PER_PROCESS else 2 * LIMIT
    fd = memory.memfd(LIMIT * PAGE)
    with _counted(t.device("edu"), mode) as user, memory.anonymous() as page:
        page.touch()
        mapped, refused, told, moved = (forked.Gate() for _ in range(4))

        def owner() -> None:
            _limit(LIMIT * PAGE)
            user.iommufd.map_file(user.ioas, fd, LIMIT * PAGE, BASE)
            mapped.open()
            refused.wait()
            t.equal((memory.pinned_pages(), memory.locked_pages()), (LIMIT, locked), "after refused calls")
            told.open()
            moved.wait()
            t.equal(
                (memory.pinned_pages(), memory.locked_pages()),
                (0, 0),
                "pages pinned and locked after the move",
            )

        def poor_heir() -> None:
            _limit(room * PAGE - 1)
            t.errno(errno.ENOMEM, user.iommufd.change_process)
            t.equal((memory.pinned_pages(), memory.locked_pages()), (0, 0), "pages after the refused call")

        def heir() -> None:
            _limit(room * PAGE)
            for _ in range(2):
                user.iommufd.change_process()
                t.equal(
                    (memory.pinned_pages(), memory.locked_pages()),
                    (LIMIT, locked),
                    "pages pinned and locked by the new process",
                )

        with forked.Child(owner) as child:
            mapped.wait()
            address = user.physical(BASE, 1)
            other = user.iommufd.ioas_alloc()
            user.iommufd.map(other, page.address, PAGE, BASE)
            t.errno(errno.EINVAL, user.iommufd.change_process)
            user.iommufd.unmap(other, BASE, PAGE)
            t.in_child(poor_heir)
            refused.open()
            told.wait()
            t.in_child(heir)
            moved.open()
            child.result()
        t.equal(user.physical(BASE, 1), address, "the address after both processes ended")
        user.iommufd.unmap(user.ioas, 0, LAST_IOVA)

        def room_again() -> None:
            _limit(LIMIT * PAGE)
            _expect_room(t, user, LIMIT, BASE)

        t.in_child(room_again)
    os.close(fd)


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c pfn_reader_user_pin() (mmget_not_zero)")
def memory_of_the_dead_cannot_be_attached(t: Test) -> None:
    """Attaching an IOAS with memory of a process that has ended is EFAULT, whether or not it was attached
    before; after unmapping it the IOAS attaches."""
    with through_cdev(t.device("edu")) as user:
        user.device.detach()
        before = memory.held_pins()
        t.in_child(lambda: _map(user, 8, BASE))
        t.errno(errno.EFAULT, user.device.attach, user.ioas)
        t.equal(memory.held_pins(), before, "pins in the system after the refused call")
        t.equal(user.iommufd.unmap(user.ioas, 0, LAST_IOVA), 8 * PAGE, "bytes still mapped")
        t.check(user.device.attach(user.ioas) > 0, "attach without that memory returned no page table")
        with _holder(lambda: _map(user, 8, BASE), killed=True):
            pass
        user.device.detach()
        t.errno(errno.EFAULT, user.device.attach, user.ioas)
        t.equal(memory.held_pins(), before, "pins in the system after the second refusal")
        t.equal(
            user.iommufd.unmap(user.ioas, 0, LAST_IOVA),
            8 * PAGE,
            "bytes still mapped after the second refused call",
        )
        t.check(
            user.device.attach(user.ioas) > 0, "the second attach without that memory returned no page table"
        )


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c pin_memfd_pages(), pfn_reader_user_pin() (user->file)")
def file_needs_no_living_owner(t: Test) -> None:
    """A memfd mapped by a process that has ended can still be attached, since the pages belong to the
    file."""
    fd = memory.memfd(8 * PAGE)
    with through_cdev(t.device("edu")) as user, memory.shared_file(fd, 8 * PAGE) as view:
        view.touch()
        user.device.detach()
        t.in_child(lambda: user.iommufd.map_file(user.ioas, fd, 8 * PAGE, BASE))
        os.close(fd)
        user.device.attach(user.ioas)
        got = [user.iommufd.get_pa(user.ioas, BASE + page * PAGE, 1)[0] for page in range(8)]
        t.equal(
            got,
            memory.frames(view.address, view.length),
            "the addresses, compared with the frames of the file",
        )


@case(needs=BARE, cites=f"{ACCOUNTING}; pages.c iopt_area_unfill_domain(), update_mm_locked_vm()")
def pages_outlive_their_owner(t: Test) -> None:
    """Pages of a killed process stay pinned at the same addresses until they are unmapped, without a kernel
    warning."""
    for mode in (PER_USER, PER_PROCESS):
        with _counted(t.device("edu"), mode) as user:
            before = memory.held_pins()

            def owner() -> None:
                _limit(LIMIT * PAGE)
                _map(user, LIMIT, BASE)

            with _holder(owner, killed=True):
                addresses = [user.physical(BASE + page * PAGE, PAGE) for page in range(LIMIT)]
            got = [user.physical(BASE + page * PAGE, PAGE) for page in range(LIMIT)]
            t.equal(got, addresses, "the addresses after the kill")
            t.equal(memory.held_pins() - before, LIMIT, "pins in the system after the kill")
            user.iommufd.unmap(user.ioas, 0, LAST_IOVA)
            t.equal(memory.held_pins(), before, "pins in the system after the unmap")
    t.check_no_complaint()


@case(needs=BARE, cites=f"{ACCOUNTING}; pages.c iopt_area_fill_domains(), iopt_area_unfill_domain()")
def copy_and_second_table_pin_nothing(t: Test) -> None:
    """Pages are pinned once for all copies and page tables; unmapping releases only pages that no copy
    uses."""
    with through_cdev(t.device("edu")) as user, memory.anonymous(64 * PAGE) as buffer:
        buffer.touch()
        before = memory.held_pins()
        user.map(buffer, BASE)
        other = user.iommufd.ioas_alloc()
        for ioas in (user.ioas, other):
            user.iommufd.hwpt_alloc(user.devid, ioas)
        user.iommufd.copy(other, user.ioas, 16 * PAGE, BASE + 24 * PAGE, BASE)
        user.iommufd.copy(user.ioas, user.ioas, 8 * PAGE, BASE + 36 * PAGE, BASE + 128 * PAGE)
        t.equal(
            (memory.held_pins() - before, memory.pinned_pages()),
            (64, 64),
            "pins and pages with all copies and page tables",
        )
        user.iommufd.unmap(user.ioas, BASE, buffer.length)
        # Pages 24 to 39 and 36 to 43 are left, twenty in all.
        t.equal(
            (memory.held_pins() - before, memory.pinned_pages()), (20, 20), "pins and pages of the copies"
        )
        user.iommufd.unmap(other, 0, LAST_IOVA)
        t.equal(
            (memory.held_pins() - before, memory.pinned_pages()), (8, 8), "pins and pages of the last copy"
        )
        user.iommufd.unmap(user.ioas, 0, LAST_IOVA)
        t.equal(
            (memory.held_pins() - before, memory.pinned_pages()),
            (0, 0),
            "pins and pages after unmapping everything",
        )


@case(needs=BARE, cites="mm/gup.c (FOLL_LONGTERM, FOLL_PIN); drivers/iommu/iommufd/pages.c")
def pinned_pages_survive_munmap(t: Test) -> None:
    """After munmap pinned pages stay the device's: their addresses stay the same, and no other memory gets
    them."""
    with through_cdev(t.device("edu")) as user:
        buffer = memory.anonymous(64 * PAGE)
        buffer.touch()
        user.map(buffer, BASE)
        old = memory.frames(buffer.address, buffer.length)
        buffer.close()
        with memory.anonymous(8 * HUGE) as other:
            other.touch()
            shared = set(old) & set(memory.frames(other.address, other.length))
        t.equal(shared, set(), "pinned frames that were given to other memory")
        got = [user.iommufd.get_pa(user.ioas, BASE + page * PAGE, 1)[0] for page in range(64)]
        t.equal(got, old, "the addresses after munmap")
        t.equal(memory.pinned_pages(), 64, "pages pinned after munmap")


@case(needs=BARE, cites="mm/madvise.c madvise_dontneed_single_vma(); drivers/iommu/iommufd/pages.c")
def dontneed_parts_process_and_device(t: Test) -> None:
    """After MADV_DONTNEED the process gets new, empty pages, and the device keeps the old ones."""
    with through_cdev(t.device("edu")) as user, memory.anonymous(8 * PAGE) as buffer:
        buffer.fill(0x5A)
        user.map(buffer, BASE)
        old = memory.frames(buffer.address, buffer.length)
        libc.madvise(buffer.address, buffer.length, memory.MADV_DONTNEED)
        t.check(not any(buffer.read()), "the process still sees the old bytes")
        buffer.touch()
        t.equal(
            set(old) & set(memory.frames(buffer.address, buffer.length)),
            set(),
            "frames of both the process and the device",
        )
        got = [user.iommufd.get_pa(user.ioas, BASE + page * PAGE, 1)[0] for page in range(8)]
        t.equal(got, old, "the device's addresses")


@case(needs=BARE, cites="mm/shmem.c shmem_undo_range(); drivers/iommu/iommufd/pages.c pin_memfd_pages()")
def truncation_leaves_the_pinned_pages(t: Test) -> None:
    """A memfd truncated while mapped gets new pages when it grows again; the device keeps the old ones."""
    fd = memory.memfd(8 * PAGE)
    with through_cdev(t.device("edu")) as user, memory.shared_file(fd, 8 * PAGE) as view:
        view.touch()
        user.iommufd.map_file(user.ioas, fd, 8 * PAGE, BASE)
        old = memory.frames(view.address, view.length)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, 8 * PAGE)
        view.touch()
        t.equal(
            set(old) & set(memory.frames(view.address, view.length)),
            set(),
            "frames of both the process and the device",
        )
        got = [user.iommufd.get_pa(user.ioas, BASE + page * PAGE, 1)[0] for page in range(8)]
        t.equal(got, old, "the device's addresses")
    os.close(fd)


@case(needs=BARE, cites="mm/internal.h gup_must_unshare() (FOLL_LONGTERM breaks copy-on-write in advance)")
def read_only_pin_holds_through_a_write(t: Test) -> None:
    """Memory mapped for reading before its first write is not backed by the shared zero page: a write keeps
    the same frames."""
    with through_cdev(t.device("edu")) as user, memory.anonymous(8 * PAGE) as buffer:
        for page in range(0, 8, 2):
            t.equal(buffer.read(page * PAGE, 1), b"\0", "the first byte")  # the read maps the zero page
        user.iommufd.map(user.ioas, buffer.address, buffer.length, BASE, flags=api.MAP_READABLE)
        got = [user.iommufd.get_pa(user.ioas, BASE + page * PAGE, 1)[0] for page in range(8)]
        t.equal(len(set(got)), 8, "number of different frames")
        buffer.touch()
        t.equal(memory.frames(buffer.address, buffer.length), got, "the frames after the write")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_disable_large_pages()")
def large_pages_save_a_table(t: Test) -> None:
    """Mapping a 2 MiB page takes one more page of page tables with large pages off, and pins as many pages as
    it has."""
    if memory.set_hugepages(1) < 1:
        t.skip("the kernel cannot reserve a 2 MiB page")
    with through_cdev(t.device("edu")) as user, memory.hugetlb() as buffer:
        buffer.touch(HUGE)
        sizes, pins = [], memory.held_pins()
        for large in (1, 0):
            before = memory.table_pages()
            ioas = user.iommufd.ioas_alloc()
            user.iommufd.option_set(api.OPTION_HUGE_PAGES, large, ioas)
            table = user.iommufd.hwpt_alloc(user.devid, ioas)
            user.iommufd.map(ioas, buffer.address, HUGE, 16 * HUGE)
            sizes.append(memory.table_pages() - before)
            t.equal(memory.held_pins() - pins, HUGE // PAGE, "pins by a 2 MiB page")
            t.equal(memory.pinned_pages(), HUGE // PAGE, "pages pinned by a 2 MiB page")
            user.iommufd.destroy(table)
            user.iommufd.destroy(ioas)
            t.equal(memory.table_pages(), before, "pages of page tables after closing")
        t.equal(sizes[1] - sizes[0], 1, f"pages of page tables saved (with and without large pages: {sizes})")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/pages.c iopt_area_fill_domain(), io_pagetable.c iopt_fill_domain()",
)
def attach_over_the_limit_changes_nothing(t: Test) -> None:
    """Attaching an IOAS that would pin more than RLIMIT_MEMLOCK is ENOMEM and leaves its mappings."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(32 * PAGE) as buffer:
        buffer.touch()
        user.device.detach()

        def limited() -> None:
            _limit(LIMIT * PAGE)
            user.map(buffer, 0x100000)
            t.errno(errno.ENOMEM, user.device.attach, user.ioas)
            t.equal(memory.pinned_pages(), 0, "pages pinned after the refused call")
            t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, 0x100000, 1)
            t.equal(user.iommufd.unmap(user.ioas, 0, LAST_IOVA), buffer.length, "bytes still mapped")
            t.check(user.device.attach(user.ioas) > 0, "attach of the empty IOAS returned no page table")

        t.in_child(limited)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/pages.c iopt_area_fill_domains(), io_pagetable.c iopt_fill_domain()",
)
def pages_are_pinned_for_a_domain_only(t: Test) -> None:
    """Memory is pinned only while a device is attached, for mappings made before and during that time."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(256 * PAGE) as buffer:
        buffer.touch()
        user.device.detach()
        user.map(buffer, 0x100000)
        t.equal(memory.pinned_pages(), 0, "pages pinned while detached")
        user.device.attach(user.ioas)
        t.equal(memory.pinned_pages(), 256, "pages pinned by attaching")
        user.iommufd.map(user.ioas, buffer.address, 4 * PAGE, 0x100000 + 512 * PAGE)
        t.equal(memory.pinned_pages(), 260, "pages pinned with another map")
        user.iommufd.unmap(user.ioas, 0x100000, buffer.length)
        t.equal(memory.pinned_pages(), 4, "pages pinned after unmapping the first mapping")
        user.device.detach()
        t.equal(memory.pinned_pages(), 0, "pages pinned after detaching")

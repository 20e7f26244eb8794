"""Lines of a kernel's log: what each begins to tell of, and that none of it can do harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator.clusters.kernel_log import (
    MAX_BYTES,
    MAX_LINES,
    MAX_TEXT,
    KernelLines,
    at_least,
    clean,
    parse_console,
    parse_kmsg,
    parse_raw,
)
from microvm_orchestrator.clusters.kernel_reports import reports_of
from microvm_orchestrator.clusters.kernel_words import trouble_of
from microvm_orchestrator.model.kernel_log import KernelLine, Level, Trouble

TOLD = {
    "panic": [
        "Kernel panic - not syncing: sysrq triggered crash",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
        "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        "Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled",
        "Kernel panic - not syncing: Asynchronous SError Interrupt",
        "Kernel panic - not syncing: hung_task: blocked tasks",
        "Kernel panic: Fatal exception",
        "PANIC: double fault, error_code: 0x0",
        "traps: PANIC: double fault, error_code: 0x0",
    ],
    "oops": [
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "BUG: Kernel NULL pointer dereference on read at 0x00000000",
        "BUG: unable to handle page fault for address: ffffc90000d7b000",
        "BUG: unable to handle kernel NULL pointer dereference at 0000000000000010",
        "BUG: unable to handle kernel paging request at ffff8880deadbeef",
        "BUG: stack guard page was hit at 00000000d38ec9a5 (stack is 0000000055..00000000e8)",
        "kernel BUG at fs/ext4/inode.c:2717!",
        "Oops: 0002 [#1] PREEMPT SMP NOPTI",
        (
            "Oops: general protection fault, probably for non-canonical address 0xdffffc000000: "
            "0000 [#1] PREEMPT SMP KASAN NOPTI"
        ),
        "Oops[#1]:",
        "general protection fault: 0000 [#1] SMP",
        (
            "general protection fault, probably for non-canonical address 0x6b6b6b6b6b6b6b6b: 0000 "
            "[#1] PREEMPT SMP"
        ),
        "invalid opcode: 0000 [#1] SMP",
        "divide error: 0000 [#3] PREEMPT SMP",
        "stack segment: 0000 [#1] SMP",
        "Internal error: Oops: 0000000096000045 [#1] PREEMPT SMP",
        "Internal error: Oops - BUG: 00000000f2000800 [#1] SMP",
        "Internal error: synchronous external abort: 96000210 [#1] SMP",
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000",
        "Unable to handle kernel paging request at virtual address ffff00000deadbee",
        "Fixing recursive fault but reboot is needed!",
    ],
    "kasan": [
        "BUG: KASAN: slab-use-after-free in fastrpc_release+0x2d/0x60 [fastrpc]",
        "BUG: KASAN: stack-out-of-bounds in __show_regs+0x3e/0x400",
        "KASAN: null-ptr-deref in range [0x0000000000000000-0x0000000000000007]",
    ],
    "kmsan": ["BUG: KMSAN: uninit-value in tcp_parse_options+0x1d/0x60"],
    "kfence": ["BUG: KFENCE: use-after-free read in test_use_after_free_read+0xb3/0x143"],
    "kcsan": ["BUG: KCSAN: data-race in __d_lookup_rcu / __d_move"],
    "ubsan": [
        "UBSAN: array-index-out-of-bounds in drivers/net/foo.c:118:21",
        "UBSAN: Undefined behaviour in kernel/time/timer.c:1:3",
    ],
    "bug": [
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
        "BUG: scheduling while atomic: sh/123/0x00000002",
        "BUG: Bad page state in process sh  pfn:1d2a4",
        "BUG: Bad rss-counter state mm:00000000c1f8f2a4 type:MM_ANONPAGES val:1",
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 33s!",
        "BUG: using smp_processor_id() in preemptible [00000000] code: sh/123",
        "BUG kmalloc-64 (Tainted: G    B     ): Redzone overwritten",
    ],
    "lockdep": [
        "WARNING: possible circular locking dependency detected",
        "WARNING: possible recursive locking detected",
        "WARNING: inconsistent lock state",
        "WARNING: suspicious RCU usage",
        "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
        "WARNING: possible irq lock inversion dependency detected",
        "WARNING: bad unlock balance detected!",
        "[ INFO: possible circular locking dependency detected ]",
        "[ BUG: Invalid wait context ]",
        "BUG: MAX_LOCK_DEPTH too low!",
        "DEBUG_LOCKS_WARN_ON(lock->magic != lock)",
        "INFO: trying to register non-static key.",
    ],
    "hard_lockup": [
        "watchdog: Watchdog detected hard LOCKUP on cpu 1",
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
        "watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3",
    ],
    "soft_lockup": ["watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [insmod:1234]"],
    "rcu_stall": [
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-...D } 21 jiffies",
        "INFO: rcu_tasks detected stalls on tasks:",
        "rcu: rcu_preempt kthread starved for 2549 jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5)",
    ],
    "hung_task": [
        "INFO: task jbd2/vda1-8:123 blocked for more than 120 seconds.",
        "INFO: task kworker/u4:2:57 blocked for more than 143 seconds.",
    ],
    "oom": [
        "stress invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0",
        "Out of memory: Killed process 412 (stress) total-vm:262144kB, anon-rss:131072kB",
        "Memory cgroup out of memory: Killed process 88 (python3) total-vm:99kB, anon-rss:1kB",
        "Out of memory and no killable processes...",
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,task=stress",
    ],
    "mce": [
        "mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 5: bea0000000000108",
        "mce: [Hardware Error]: Machine check events logged",
        "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 0",
        "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_Ha#0_Chan#1_DIMM#0",
    ],
    "filesystem": [
        "EXT4-fs error (device vda1): ext4_lookup:1613: inode #2: comm ls: deleted inode 12",
        "EXT4-fs (vda1): Remounting filesystem read-only",
        "Aborting journal on device vda1-8.",
        "JBD2: Detected IO errors while flushing file data on vda1-8",
        "XFS (vdb): Metadata corruption detected at xfs_agf_read_verify+0xca/0x110 [xfs]",
        "XFS (vdb): Corruption of in-memory data (0x8) detected at xfs_defer_finish (fs/xfs.c:1)",
        "XFS (vdb): log I/O error -5",
        "BTRFS error (device vdb): bdev /dev/vdb errs: wr 1, rd 0, flush 0, corrupt 0, gen 0",
        "BTRFS critical (device vdb): corrupt leaf: root=5 block=1 slot=0",
        "FAT-fs (sda1): error, fat_get_cluster: invalid cluster chain",
        "SQUASHFS error: Unable to read page, block 1a2b, size 3c4d",
    ],
    "io": [
        "blk_update_request: I/O error, dev vda, sector 2048 op 0x0:(READ) flags 0x0",
        "I/O error, dev vda, sector 12345 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2",
        "critical medium error, dev sda, sector 1953525160 op 0x0:(READ) flags 0x0",
        "Buffer I/O error on dev dm-0, logical block 0, lost async page write",
        "ata1.00: failed command: READ FPDMA QUEUED",
        "nvme nvme0: I/O 23 QID 4 timeout, aborting",
        "sd 0:0:0:0: [sda] tag#17 FAILED Result: hostbyte=DID_OK driverbyte=DRIVER_OK",
        "nfs: server 10.0.0.1 not responding, still trying",
    ],
    "warn": [
        "WARNING: CPU: 1 PID: 4231 at net/core/dev.c:5672 netif_receive_skb+0x1a/0x30",
        "WARNING: kernel/sched/core.c:1234 at try_to_wake_up+0x2d/0x60, CPU#0: sh/123",
        "WARNING: at fs/sysfs/dir.c:31 sysfs_warn_dup+0x60/0x80()",
        "WARNING: kernel stack regs at 00000000a1b2c3d4 in sh:123 has bad 'bp' value 0000000012",
    ],
}
NORMAL = [
    "Linux version 6.1.0-37-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12) #1 SMP",
    "Command line: console=ttyS0 panic=-1 oops=panic panic_on_warn=1 quiet",
    "Kernel command line: console=ttyS0 oops=panic softlockup_panic=1",
    "rcu: Preemptible hierarchical RCU implementation.",
    "rcu: \tRCU lockdep checking is enabled.",
    "Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
    "... MAX_LOCKDEP_SUBCLASSES:  8",
    "kasan: KernelAddressSanitizer initialized (generic)",
    "kfence: initialized - using 2097152 bytes for 255 objects at 0x(____ptrval____)",
    "kcsan: enabled early",
    "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
    "watchdog: Delayed init of the lockup detector failed: -19",
    "mce: CPU0: Thermal monitoring enabled (TM1)",
    "mce: Using 10 MCE banks",
    "MCE: In-kernel MCE decoding enabled.",
    "EDAC MC: Ver: 3.0.0",
    "EXT4-fs (vda1): mounted filesystem 6b1c with ordered data mode. Quota mode: none.",
    "EXT4-fs (vda1): recovery complete",
    "EXT4-fs (vda1): re-mounted. Opts: errors=remount-ro. Quota mode: none.",
    "XFS (vdb): Mounting V5 Filesystem",
    "XFS (vdb): Ending clean mount",
    "BTRFS info (device vdb): using crc32c (crc32c-intel) checksum algorithm",
    "systemd[1]: Started systemd-oomd.service - Userspace Out-Of-Memory (OOM) Killer.",
    "python3[212]: segfault at 0 ip 00007f1c5e sp 00007ffd error 4 in libc.so.6[7f1c00+195000]",
    "traps: a.out[511] general protection fault ip:401136 sp:7ffe error:0 in a.out[401000+1000]",
    "traps: python3[5] trap invalid opcode ip:5b2a9c sp:7ffc error:0 in python3.11[41f000+2b3000]",
    "traps: x[9] trap divide error ip:401122 sp:7ffd error:0 in x[401000+1000]",
    "ACPI BIOS Error (bug): Could not resolve symbol [_SB.PCI0], AE_NOT_FOUND (20220331/dswload)",
    "ACPI Warning: SystemIO range conflicts with OpRegion",
    "ramoops: using module parameters",
    "pstore: Registered efi as persistent store backend",
    "sysrq: Trigger a crash",
    "sysrq: HELP : loglevel(0-9) reboot(b) crash(c) terminate-all-tasks(e) memory-full-oom-kill(f)",
    "sh (123): drop_caches: 3",
    "process 'bin/x' launched '/bin/panic' with NULL argv: empty string added",
    "Warning: unable to open an initial console.",
    "WARNING: /etc/ssh/moduli does not exist, using fixed modulus",
    "WARNING: Deprecated option used",
    "INFO: lockdep is turned off.",
    "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 msecs",
    "perf: interrupt took too long (2502 > 2500), lowering kernel.perf_event_max_sample_rate",
    "random: crng init done",
    "oom_reaper: reaped process 412 (stress), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
    "note: sh[123] exited with irqs disabled",
    "Rebooting in 10 seconds..",
    "---[ end Kernel panic - not syncing: sysrq triggered crash ]---",
    "---[ end trace 0000000000000000 ]---",
    "run fstests generic/475 at 2026-01-31 12:00:00, which may cause I/O error, dev dm-0",
    "a module says: Kernel panic - not syncing is what we test for",
    "debug: 0000 is no fault",
    "virtio_blk virtio2: [vda] 131072 512-byte logical blocks (67.1 MB/64.0 MiB)",
    "device-mapper: ioctl: 4.47.0-ioctl (2022-07-28) initialised: dm-devel@redhat.com",
    "printk: console [ttyS0] enabled",
    "Spectre V1 : Mitigation: usercopy/swapgs barriers and __user pointer sanitization",
    "UBSAN is enabled",
    "Oopsie",
]


def test_the_table_has_every_trouble() -> None:
    assert sorted(TOLD) == sorted(Trouble)
    assert sum(map(len, TOLD.values())) + len(NORMAL) >= 60


@pytest.mark.parametrize(
    ("trouble", "text"), [(trouble, text) for trouble, texts in TOLD.items() for text in texts]
)
def test_a_headline_tells_its_trouble_by_each_way(trouble: str, text: str) -> None:
    assert trouble_of(text) == trouble
    data = text.encode()
    for parsed in (
        parse_raw(b"<4>[   12.345678] " + data + b"\n"),
        parse_raw(b"<4>" + data + b"\n"),
        parse_kmsg(b"4,77,12345678,-;" + data + b"\n"),
        parse_console(b"[   12.345678] " + data + b"\r\n"),
        parse_console(b"box login: \x1b[1m[   12.345678][   T17] " + data + b"\r\n"),
        parse_console(b"no times here\n" + data),
    ):
        assert [line.trouble for line in parsed.lines if line.trouble] == [trouble]


@pytest.mark.parametrize("text", NORMAL)
def test_what_only_sounds_like_trouble_is_normal(text: str) -> None:
    assert trouble_of(text) is None


def test_a_raw_ring_tells_time_level_and_facility() -> None:
    ring = (
        b"<6>[    0.000000] Linux version 6.1.0\n"
        b"<12>[    3.000001] microvm-mark 1\n"
        b"<30>[    3.5][   T1] systemd[1]: hi\n"
        b"<3>no time\n"
        b"behind it\n"
        b"<4294967297>[    4.000000] no such level\n"
        b"<191>[   99.000000][    C1] last of all\n"
    )
    told = [(line.timestamp, line.level, line.facility) for line in parse_raw(ring).lines]
    assert told[:2] == [(0.0, Level.INFO, "kern"), (3.000001, Level.WARN, "user")]
    assert told[3:5] == [(None, Level.ERR, "kern")] * 2
    assert told[-1] == (99.0, Level.DEBUG, "local7")
    assert parse_raw(ring).lines[-1].text == "last of all"


def test_records_tell_their_number_and_several_lines_each() -> None:
    records = (
        b"6,339,5140900,-;NET: Registered protocol family 10\n"
        b"30,340,5690716,-,caller=T1;udevd[80]: a\\x0ab \\xc3\\xa9 \\x5c\n"
        b" SUBSYSTEM=acpi\n"
        b" DEVICE=+acpi:PNP0A03:00\n"
        b"4,341,6000000,c;cont\n"
        b"garbage\n"
        b"1,99999999999999999999999,1,-;a number no kernel has\n"
    )
    lines = parse_kmsg(records).lines
    assert [line.text for line in lines] == [
        *("NET: Registered protocol family 10", "udevd[80]: a", r"b é \ ".strip(), "cont")
    ]
    assert [line.seq for line in lines] == [339, 340, 340, 341]
    assert (lines[1].facility, lines[0].timestamp) == ("daemon", 5.1409)


def test_what_a_program_writes_into_the_ring_is_no_word_of_the_kernel() -> None:
    forged = b"Kernel panic - not syncing: not really"
    assert [line.trouble for line in parse_raw(b"<10>[    1.000000] " + forged).lines] == [None]
    assert [line.trouble for line in parse_kmsg(b"10,1,1,-;" + forged).lines] == [None]


def test_on_a_console_the_kernels_lines_are_told_from_those_of_programs() -> None:
    console = (
        b"345] cut off\r\n"
        b"\x1b[32m  OK  \x1b[0m Started thing\r\r\n"
        b"\x1b]0;title[    5.000000] BUG: kernel NULL pointer dereference, address: 0\r\n"
        b"Kernel panic - not syncing: says a program\r\n"
        b"box login: [    6.000000] Kernel panic - not sy"
    )
    lines = parse_console(console).lines
    assert [(line.from_kernel, line.trouble) for line in lines] == [
        *((False, None), (False, None), (False, None), (True, "oops"), (False, None)),
        *((False, None), (True, "panic")),
    ]
    assert lines[-1].level is None


def test_a_kernel_that_prints_no_times_is_heard_all_the_same() -> None:
    console = b"Kernel panic - not syncing: no times\r\n"
    assert [(line.from_kernel, line.trouble) for line in parse_console(console).lines] == [
        (True, "panic")
    ]


def test_lines_that_do_not_tell_their_level_are_taken_for_grave_ones() -> None:
    assert at_least(KernelLine("x"), Level.ERR)
    assert at_least(KernelLine("x", level=Level.ERR), Level.ERR)
    assert not at_least(KernelLine("x", level=Level.WARN), Level.ERR)


@pytest.mark.parametrize(
    ("parse", "line"),
    [
        (parse_raw, b"<6>[    1.000000] %d\n"),
        (parse_kmsg, b"6,1,1,-;%d\n"),
        (parse_console, b"[    1.000000] %d\n"),
    ],
)
def test_of_more_than_is_kept_the_newest_is_told(
    parse: Callable[[bytes], KernelLines], line: bytes
) -> None:
    parsed = parse(b"".join(line % number for number in range(MAX_LINES + 5)))
    assert (len(parsed.lines), parsed.cut) == (MAX_LINES, True)
    assert parsed.lines[-1].text == str(MAX_LINES + 4)
    long = parse(b"x" * (MAX_BYTES + 10) + b"\n" + line % 7)
    assert (long.cut, long.lines[-1].text) == (True, "7")


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b2Jx", "x"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1bPq#0\x1b\\x", "x"),
        ("\x1b(Bx\x1bc", "x"),
        ("a\tb", "a b"),
        ("\x1b", "\ufffd"),
        ("\x07\x08x", "\ufffd\ufffdx"),
        ("\u202egnp", "\ufffdgnp"),
    ],
)
def test_nothing_that_comes_out_commands_a_terminal(given_text: str, shown: str) -> None:
    assert clean(given_text) == shown


pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            *(b"\n", b"\r\n", b"\x1b[", b"\x1b]0;", b"<4>", b"6,1,1,-;", b"[    1.000000] "),
            *(b"------------[ cut here ]------------\n", b"=" * 66, b"Call Trace:\n <TASK>\n"),
            *(b"---[ end trace 0000000000000000 ]---\n", b" f+0x1/0x2\n", b"\\x0a", b"RIP: 0010:"),
            *(text.encode() for texts in TOLD.values() for text in texts[:1]),
        ]
    ),
)


@given(st.lists(pieces, max_size=60).map(b"".join))
def test_nothing_a_guest_writes_breaks_a_reader_or_reaches_a_terminal(data: bytes) -> None:
    for parsed in (parse_raw(data), parse_kmsg(data), parse_console(data)):
        for line in parsed.lines:
            assert line.text.isprintable()
            assert 0 < len(line.text) <= MAX_TEXT
        reports, more = reports_of(parsed.lines)
        assert more == 0
        told = [line.trouble for line in parsed.lines if line.trouble and line.from_kernel]
        # The gravest is always told, and nothing is told that is not there.
        assert {report.trouble for report in reports} <= set(told)
        if told:
            gravest = min(told, key=lambda trouble: trouble.rank)
            assert gravest in {report.trouble for report in reports}


@pytest.mark.parametrize(
    "line",
    [
        *(b"\x1b]" * 2000, b"\x1b[" * 2000, b"\\x1b" * 2000, b"[    1.000000]" * 300),
        *(b"BUG: " * 1000, b"a:" * 2000 + b"INFO: task ", b"WARNING: " + b"a:1" * 1500),
        *(b"x invoked oom" * 300, b"Read of size " + b"a by task " * 400, b" f+0x1/0x2" * 400),
    ],
)
def test_no_line_takes_a_reader_long(line: bytes) -> None:
    # A reader that tried every way through such lines would not come back today.
    many = b"\n".join([b"<4>[    1.000000] " + line] * 200)
    for parsed in (parse_raw(many), parse_kmsg(many), parse_console(many)):
        reports_of(parsed.lines)

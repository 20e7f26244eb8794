"""Reports of a kernel: each trouble is told once, from its headline to its call trace."""

from __future__ import annotations

import pytest

from microvm_orchestrator.clusters.kernel_log import parse_console, parse_raw
from microvm_orchestrator.clusters.kernel_reports import (
    MAX_FRAMES,
    MAX_REPORT_LINES,
    MAX_REPORTS,
    Reporter,
    reports_of,
)
from microvm_orchestrator.model.kernel_log import KernelReport, Trouble

NULL_POINTER = """\
BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 0 P4D 0
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 1543 Comm: insmod Tainted: G           OE      6.1.0-37-cloud-amd64 #1
Hardware name: QEMU Standard PC (i440FX + PIIX, 1996), BIOS 1.16.2-debian-1.16.2-1 04/01/2014
RIP: 0010:do_one_bad_thing+0x11/0x30 [bad]
Code: Unable to access opcode bytes at RIP 0xffffffffc0a32fe7.
RSP: 0018:ffffb2f4c0b5fc88 EFLAGS: 00010246
Call Trace:
 <TASK>
 ? __die+0x20/0x70
 bad_init+0x5/0x1000 [bad]
 do_one_initcall+0x44/0x210
 do_init_module+0x4c/0x1f0
 __do_sys_finit_module+0xb4/0x130
 do_syscall_64+0x3a/0xc0
 entry_SYSCALL_64_after_hwframe+0x64/0xce
RIP: 0033:0x7f2c8b3a2719
 </TASK>
Modules linked in: bad(OE+) virtio_net
CR2: 0000000000000000
---[ end trace 0000000000000000 ]---
RIP: 0010:do_one_bad_thing+0x11/0x30 [bad]
note: insmod[1543] exited with irqs disabled
"""
PANIC = """\
Kernel panic - not syncing: Fatal exception
CPU: 1 PID: 88 Comm: sh Not tainted 6.1.0-37-cloud-amd64 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x44/0x5c
 panic+0x118/0x2ed
 sysrq_handle_crash+0x16/0x20
 </TASK>
Kernel Offset: disabled
---[ end Kernel panic - not syncing: Fatal exception ]---
"""
SYSRQ = """\
sysrq: Trigger a crash
Kernel panic - not syncing: sysrq triggered crash
CPU: 0 UID: 0 PID: 97 Comm: sh Not tainted 6.12.9-cloud-amd64 #1 Debian 6.12.9-1
Call Trace:
 <TASK>
 panic+0x118/0x2ed
 sysrq_handle_crash+0x16/0x20
 __handle_sysrq.cold+0x4d/0x110
 write_sysrq_trigger+0x24/0x40
 </TASK>
"""
WARN = """\
------------[ cut here ]------------
refcount_t: underflow; use-after-free.
WARNING: CPU: 1 PID: 4231 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110
Modules linked in: nf_tables
CPU: 1 PID: 4231 Comm: kworker/1:2 Not tainted 6.1.0 #1
Workqueue: events free_work
RIP: 0010:refcount_warn_saturate+0xba/0x110
Call Trace:
 <TASK>
 free_it+0x1/0x2
 </TASK>
---[ end trace 0000000000000000 ]---
"""
NEW_WARN = """\
------------[ cut here ]------------
WARNING: kernel/sched/core.c:1234 at try_to_wake_up+0x2d/0x60, CPU#0: stress-ng/123
Modules linked in:
Call Trace:
 <TASK>
 wake_up_q+0x4a/0x90
 </TASK>
---[ end trace 0000000000000000 ]---
"""
KASAN = """\
==================================================================
BUG: KASAN: slab-use-after-free in use_it+0x2d/0x60 [bad]
Read of size 8 at addr ffff888103a5d400 by task cat/512

CPU: 0 PID: 512 Comm: cat Tainted: G    B      OE      6.6.9 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x37/0x50
 use_it+0x2d/0x60 [bad]
 </TASK>

Allocated by task 500:
 kasan_save_stack+0x33/0x60
Freed by task 501:
 kfree+0x1/0x2
Memory state around the buggy address:
 ffff888103a5d300: fa fb fb fb fb fb fb fb
>ffff888103a5d400: fa fb fb fb fb fb fb fb
==================================================================
"""
UBSAN = """\
------------[ cut here ]------------
UBSAN: array-index-out-of-bounds in drivers/net/foo.c:118:21
index 8 is out of range for type 'int [8]'
CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.6.9 #1
Call Trace:
 <TASK>
 __ubsan_handle_out_of_bounds+0x95/0xd0
 </TASK>
---[ end trace ]---
"""
OLD_UBSAN = """\
================================================================================
UBSAN: Undefined behaviour in kernel/time/timer.c:1:3
signed integer overflow:
CPU: 0 PID: 7 Comm: a b Not tainted 4.19.0 #1
Call Trace:
 dump_stack+0x66/0x90
================================================================================
"""
LOCKDEP = """\
======================================================
WARNING: possible circular locking dependency detected
6.6.9 #1 Not tainted
------------------------------------------------------
modprobe/411 is trying to acquire lock:
ffffffffc0a34028 (lock_a){+.+.}-{3:3}, at: init+0x30/0x1000 [dead]

but task is already holding lock:
ffffffffc0a34098 (lock_b){+.+.}-{3:3}, at: init+0x24/0x1000 [dead]

the existing dependency chain (in reverse order) is:

-> #1 (lock_b){+.+.}-{3:3}:
       __mutex_lock+0x95/0xd10

stack backtrace:
CPU: 1 PID: 411 Comm: modprobe Not tainted 6.6.9 #1
Call Trace:
 <TASK>
 check_noncircular+0x11d/0x130
 __lock_acquire+0x1452/0x2160
 </TASK>
"""
HUNG = """\
INFO: task jbd2/vda1-8:123 blocked for more than 120 seconds.
      Not tainted 6.1.0-37-cloud-amd64 #1
"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
task:jbd2/vda1-8     state:D stack:0     pid:123   ppid:2      flags:0x00004000
Call Trace:
 <TASK>
 __schedule+0x34d/0x9e0
 schedule+0x5a/0xd0
 io_schedule+0x42/0x70
 </TASK>
"""
SOFT = """\
watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [insmod:1234]
Modules linked in: spin(OE+)
CPU: 0 PID: 1234 Comm: insmod Tainted: G           OE      6.1.0 #1
RIP: 0010:spin_init+0x7/0x1000 [spin]
Call Trace:
 <TASK>
 do_one_initcall+0x44/0x210
 </TASK>
"""
STALL = """\
rcu: INFO: rcu_preempt self-detected stall on CPU
rcu: \t0-....: (5249 ticks this GP) idle=7d14/1/0x4000000000000000 softirq=312/312 fqs=2625
rcu: \t(t=5250 jiffies g=-895 q=12 ncpus=1)
CPU: 0 PID: 99 Comm: spinner Not tainted 6.1.0 #1
RIP: 0010:spin+0x7/0x10
Call Trace:
 <TASK>
 spin_forever+0x1/0x2
 </TASK>
rcu: rcu_preempt kthread starved for 2549 jiffies! g-895 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0
rcu: \tUnless rcu_preempt kthread gets sufficient CPU time, OOM is now expected behavior.
"""
OOM = """\
stress invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0
CPU: 0 PID: 411 Comm: stress Not tainted 6.1.0-37-cloud-amd64 #1
Call Trace:
 <TASK>
 dump_header+0x4a/0x1ff
 oom_kill_process.cold+0xb/0x10
 </TASK>
Mem-Info:
active_anon:1 inactive_anon:2
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
[    412]     0   412    65000    32000   300000        0             0 eater
oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,task=eater,pid=412
Out of memory: Killed process 412 (eater) total-vm:262144kB, anon-rss:131072kB, file-rss:0kB
oom_reaper: reaped process 412 (eater), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB
"""
ARM = """\
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000
Mem abort info:
  ESR = 0x0000000096000045
  EC = 0x25: DABT (current EL), IL = 32 bits
[0000000000000000] user address but active_mm is swapper
Internal error: Oops: 0000000096000045 [#1] PREEMPT SMP
Modules linked in:
CPU: 2 PID: 77 Comm: bash Not tainted 6.1.0-arm64 #1
pstate: 60400005 (nZCv daif +PAN -UAO -TCO -DIT -SSBS BTYPE=--)
pc : lkdtm_WRITE+0x18/0x40
lr : direct_entry+0xd4/0x150
Call trace:
 lkdtm_WRITE+0x18/0x40
 vfs_write+0xc8/0x2f0
Code: d503233f d2800000 (b900001f) d65f03c0
---[ end trace 0000000000000000 ]---
"""
NORMAL = "e1000: eth0 NIC Link is Up 1000 Mbps\nrandom: crng init done\n"
# Text, trouble, process, what ran, first and last of the call trace.
EACH = {
    "oops": (
        *(NULL_POINTER, "oops", "insmod/1543", "do_one_bad_thing+0x11/0x30"),
        ("bad_init+0x5/0x1000 [bad]", "entry_SYSCALL_64_after_hwframe+0x64/0xce"),
    ),
    "arm64": (
        *(ARM, "oops", "bash/77", "lkdtm_WRITE+0x18/0x40"),
        ("lkdtm_WRITE+0x18/0x40", "vfs_write+0xc8/0x2f0"),
    ),
    "panic": (
        *(PANIC, "panic", "sh/88", None),
        ("dump_stack_lvl+0x44/0x5c", "sysrq_handle_crash+0x16/0x20"),
    ),
    "warn": (
        *(WARN, "warn", "kworker/1:2/4231", "refcount_warn_saturate+0xba/0x110"),
        ("free_it+0x1/0x2", "free_it+0x1/0x2"),
    ),
    "new warn": (
        *(NEW_WARN, "warn", "stress-ng/123", None),
        ("wake_up_q+0x4a/0x90", "wake_up_q+0x4a/0x90"),
    ),
    "kasan": (
        *(KASAN, "kasan", "cat/512", None),
        ("dump_stack_lvl+0x37/0x50", "use_it+0x2d/0x60 [bad]"),
    ),
    "ubsan": (
        *(UBSAN, "ubsan", "swapper/0/1", None),
        ("__ubsan_handle_out_of_bounds+0x95/0xd0",) * 2,
    ),
    "old ubsan": (*(OLD_UBSAN, "ubsan", "a b/7", None), ("dump_stack+0x66/0x90",) * 2),
    "lockdep": (
        *(LOCKDEP, "lockdep", "modprobe/411", None),
        ("check_noncircular+0x11d/0x130", "__lock_acquire+0x1452/0x2160"),
    ),
    "hung task": (
        *(HUNG, "hung_task", "jbd2/vda1-8/123", None),
        ("__schedule+0x34d/0x9e0", "io_schedule+0x42/0x70"),
    ),
    "soft lockup": (
        *(SOFT, "soft_lockup", "insmod/1234", "spin_init+0x7/0x1000"),
        ("do_one_initcall+0x44/0x210",) * 2,
    ),
    "rcu stall": (
        *(STALL, "rcu_stall", "spinner/99", "spin+0x7/0x10"),
        ("spin_forever+0x1/0x2",) * 2,
    ),
    "oom": (
        *(OOM, "oom", "eater/412", None),
        ("dump_header+0x4a/0x1ff", "oom_kill_process.cold+0xb/0x10"),
    ),
    # Nothing comes after it.
    "sysrq": (
        *(SYSRQ, "panic", "sh/97", None),
        ("panic+0x118/0x2ed", "write_sysrq_trigger+0x24/0x40"),
    ),
}


def ring(*texts: str, at: float = 10.0, step: float = 0.0) -> bytes:
    lines = "".join(texts).splitlines()
    return b"".join(
        f"<4>[{at + step * number:12.6f}] {line}\n".encode() for number, line in enumerate(lines)
    )


def found(*texts: str) -> tuple[KernelReport, ...]:
    return reports_of(parse_raw(ring(*texts)).lines)[0]


@pytest.mark.parametrize("which", EACH)
def test_a_report_is_told_once_with_who_and_where(which: str) -> None:
    text, trouble, process, rip, ends = EACH[which]
    (report,) = found(NORMAL, text, NORMAL)
    assert (report.trouble, report.process, report.rip) == (trouble, process, rip)
    assert (report.call_trace[0], report.call_trace[-1]) == ends
    assert (report.timestamp, report.count, report.open) == (10.0, 1, False)
    assert report.headline in text


@pytest.mark.parametrize("which", EACH)
def test_a_console_tells_the_same_as_the_ring(which: str) -> None:
    text, *_ = EACH[which]
    said = b"".join(
        b"[   10.000000] " + line.encode() + b"\r\nthe program says: Oops: 0 [#1]\r\n"
        for line in text.splitlines()
    )
    (shown,) = reports_of(parse_console(said).lines)[0]
    (told,) = found(text)
    assert shown == told


def test_all_together_are_told_one_by_one_in_their_order() -> None:
    reports = found(*(text for text, *_ in EACH.values()))
    assert [report.trouble for report in reports] == [trouble for _, trouble, *_ in EACH.values()]
    assert [report.process for report in reports] == [who for _, _, who, *_ in EACH.values()]


def test_a_panic_that_follows_an_oops_is_told_beside_it() -> None:
    oops, panic = found(NULL_POINTER, PANIC)
    assert (oops.trouble, panic.trouble) == (Trouble.OOPS, Trouble.PANIC)
    unfinished = NULL_POINTER.partition("Modules linked")[0]
    oops, panic = found(unfinished, PANIC)
    assert (oops.open, panic.open) == (True, False)


def test_a_forged_panic_does_not_hide_the_kernels_own() -> None:
    forged = "Kernel panic - not syncing: says a program\n"
    assert [report.headline for report in found(forged, NORMAL, SYSRQ)] == [
        *(forged.strip(), "Kernel panic - not syncing: sysrq triggered crash")
    ]


def test_what_is_cut_off_says_so() -> None:
    (report,) = found(WARN.partition("Call Trace")[0])
    assert (report.trouble, report.open, report.call_trace) == (Trouble.WARN, True, ())


def test_what_follows_much_later_or_in_another_boot_is_no_part_of_a_report() -> None:
    cut = WARN.partition("Call Trace")[0]
    for later in (100.0, 0.5):
        lines = parse_raw(ring(cut) + ring("Call Trace:\n late+0x1/0x2\n", at=later)).lines
        (report,), _ = reports_of(lines)
        assert (report.open, report.call_trace) == (True, ())


def test_the_same_told_again_is_counted() -> None:
    again = "".join(f"I/O error, dev vda, sector {number} op 0x1:(WRITE)\n" for number in range(90))
    other = "I/O error, dev vdb, sector 1 op 0x1:(WRITE)\n"
    assert [report.count for report in found(again, other)] == [90, 1]
    two = found(HUNG, HUNG.replace(":123", ":124"), HUNG)
    assert [(report.process, report.count) for report in two] == [
        *(("jbd2/vda1-8/123", 2), ("jbd2/vda1-8/124", 1))
    ]


def test_too_many_reports_leave_the_gravest() -> None:
    many = "".join(f"I/O error, dev vd{'a' * number}, sector 1\n" for number in range(300))
    lines = parse_raw(ring(many, PANIC)).lines
    reports, more = reports_of(lines)
    assert (len(reports), more) == (MAX_REPORTS, 101)
    assert reports[-1].trouble is Trouble.PANIC


def test_a_report_without_end_is_bounded() -> None:
    endless = WARN.partition(" free_it")[0] + " again+0x1/0x2\n" * 1000
    (report,) = found(endless)
    assert (len(report.lines), len(report.call_trace)) == (MAX_REPORT_LINES, MAX_FRAMES)
    assert report.more_lines == len(endless.splitlines()) - MAX_REPORT_LINES


def test_a_live_log_shows_the_report_whose_end_has_not_come() -> None:
    reporter = Reporter()
    *most, last = parse_raw(ring(WARN)).lines
    assert [report for line in most for report in reporter.feed(line)] == []
    assert reporter.open is not None
    assert (reporter.open.trouble, reporter.open.open) == (Trouble.WARN, True)
    (report,) = reporter.feed(last)
    assert (report.open, reporter.open, reporter.end()) == (False, None, [])

"""The words by which a kernel begins to tell of each trouble.

A line is taken for a headline only where the kernel's own format has these words at its beginning:
much that is normal has them somewhere. Where several would fit, the gravest counts. Pure.
"""

from __future__ import annotations

import re

from microvm_orchestrator.model.kernel_log import Trouble

# What stands before the words: the part of the kernel that speaks, and the frame of old lockdeps.
_SPEAKER = r"(?:(?:rcu|watchdog|NMI watchdog|traps|x86/[a-z]{1,20}|hung_task): |\[ )?"

_LOCKDEP = (
    "possible circular locking dependency detected",
    "possible recursive locking detected",
    "possible irq lock inversion dependency detected",
    "possible (?:irq|signal)-?[a-z]* ?deadlock detected",
    r"[A-Z]{4,7}(?:IRQ|_FS)-safe -> [A-Z]{4,7}(?:IRQ|_FS)-unsafe lock order detected",
    "inconsistent lock state",
    "suspicious RCU usage",
    "bad unlock balance detected",
    "bad contention detected",
    "held lock freed",
    "lock held when returning to user space",
    "lock held at task exit time",
    "trying to register non-static key",
    "Invalid wait context",
    "Nested lock was not taken",
)

_WORDS: tuple[tuple[Trouble, str], ...] = (
    (Trouble.PANIC, r"Kernel panic\b(?: - not syncing)?:?"),
    (Trouble.PANIC, r"PANIC: double fault"),
    (Trouble.OOPS, r"BUG: (?:kernel|Kernel) NULL pointer dereference"),
    (Trouble.OOPS, r"BUG: [Uu]nable to handle (?:kernel|page fault)"),
    (Trouble.OOPS, r"BUG: stack guard page was hit"),
    (Trouble.OOPS, r"BUG: TASK stack guard page was hit"),
    (Trouble.OOPS, r"kernel BUG at \S"),
    (Trouble.OOPS, r"Oops(?:: |\[#|#)"),
    (Trouble.OOPS, r"Internal error: "),
    (Trouble.OOPS, r"Unable to handle kernel "),
    (Trouble.OOPS, r"Unexpected kernel BRK exception"),
    (Trouble.OOPS, r"general protection fault(?:, probably for .{1,60}|, maybe for .{1,60})?: "),
    (
        Trouble.OOPS,
        (
            r"(?:divide error|invalid opcode|stack segment|int3|double fault|bounds|overflow|debug"
            r"|segment not present|invalid TSS|alignment check|control protection fault"
            r"|machine check): [0-9a-f]{4} \[#"
        ),
    ),
    (Trouble.OOPS, r"Fixing recursive fault but reboot is needed"),
    (Trouble.KASAN, r"BUG: KASAN: "),
    (Trouble.KASAN, r"KASAN: (?:null-ptr-deref|probably|maybe) "),
    (Trouble.KMSAN, r"BUG: KMSAN: "),
    (Trouble.KFENCE, r"BUG: KFENCE: "),
    (Trouble.KCSAN, r"BUG: KCSAN: "),
    (Trouble.UBSAN, r"UBSAN: "),
    (Trouble.SOFT_LOCKUP, r"BUG: soft lockup - CPU"),
    (Trouble.HARD_LOCKUP, r"(?:CPU[0-9]{1,5}: )?Watchdog detected hard LOCKUP"),
    (Trouble.LOCKDEP, rf"(?:WARNING|INFO|BUG): (?:{'|'.join(_LOCKDEP)})"),
    (Trouble.LOCKDEP, r"BUG: MAX_(?:LOCK|STACK|LOCKDEP)\w{1,30} too low"),
    (Trouble.LOCKDEP, r"DEBUG_LOCKS_WARN_ON\("),
    (Trouble.BUG, r"BUG: workqueue lockup - pool"),
    (
        Trouble.BUG,
        (
            r"BUG: (?:Bad |bad |sleeping function called from|scheduling while atomic|using "
            r"|spinlock |rwlock |memory leak|non-zero |Dentry |looking up invalid|workqueue leaked"
            r"|mutex |recent printk|arch|assuming |unsupported )"
        ),
    ),
    (Trouble.BUG, r"BUG [^ :]{1,60} \([^)]{0,40}\): "),  # a slab: its name, how it is tainted
    (Trouble.RCU_STALL, r"INFO: rcu_\w{1,30} (?:self-)?detected (?:expedited )?stalls?\b"),
    (Trouble.RCU_STALL, r"rcu_\w{1,30} kthread (?:starved|timer wakeup didn't happen) for"),
    (Trouble.HUNG_TASK, r"INFO: task .{1,60}:[0-9]{1,10} blocked (?:in I/O wait )?for more than"),
    (Trouble.OOM, r"\S.{0,60} invoked oom-killer: "),
    (
        Trouble.OOM,
        (
            r"(?:Memory cgroup o|O)ut of memory(?: \(oom_kill_allocating_task\))?"
            r"(?:: Kill(?:ed)? process| and no killable)"
        ),
    ),
    (Trouble.OOM, r"oom-kill:constraint="),
    (Trouble.MCE, r"(?:mce: )?(?:\{[0-9]{1,10}\})?\[Hardware Error\]: "),
    (Trouble.MCE, r"(?:mce: )?CPU [0-9]{1,5}: Machine Check(?: Exception)?: "),
    (Trouble.MCE, r"EDAC \w{1,40}: (?:[0-9]{1,9} )?(?:CE|UE) "),
    (Trouble.FILESYSTEM, r"EXT[234]-fs (?:error|warning) \(device "),
    (
        Trouble.FILESYSTEM,
        (
            r"EXT[234]-fs \([^)]{1,60}\): (?:Remounting filesystem read-only|error |failed to"
            r"|Delayed block allocation failed|previous I/O error|I/O error while)"
        ),
    ),
    (Trouble.FILESYSTEM, r"Aborting journal on device "),
    (Trouble.FILESYSTEM, r"JBD2: (?:Detected IO errors|Error |.{0,60}[Ii]/?[Oo] error)"),
    (
        Trouble.FILESYSTEM,
        (
            r"XFS \([^)]{1,60}\): (?:(?:Metadata )?[Cc]orruption|Metadata CRC error|Internal error"
            r"|metadata I/O error|log I/O error|Log I/O Error|Filesystem has been shut down"
            r"|User initiated shutdown|writeback error|xfs_do_force_shutdown)"
        ),
    ),
    (Trouble.FILESYSTEM, r"BTRFS(?:: error| error| critical) \(device "),
    (Trouble.FILESYSTEM, r"F2FS-fs \([^)]{1,60}\): (?:.{0,60}[Cc]orrupt|.{0,60}[Ii]nconsisten)"),
    (Trouble.FILESYSTEM, r"FAT-fs \([^)]{1,60}\): error"),
    (Trouble.FILESYSTEM, r"SQUASHFS error: "),
    (Trouble.FILESYSTEM, r"VFS: (?:Busy inodes after unmount|Close: file count is 0)"),
    (
        Trouble.IO,
        (
            r"(?:blk_update_request: |print_req_error: |end_request: )?"
            r"(?:I/O|critical (?:medium|target|space allocation|nexus)|protection|timeout"
            r"|recoverable transport) error, dev "
        ),
    ),
    (Trouble.IO, r"Buffer I/O error on dev"),
    (Trouble.IO, r"ata[0-9.]{1,9}: (?:failed command|exception Emask)"),
    (Trouble.IO, r"nvme nvme[0-9]{1,5}: (?:I/O|I/O tag|controller is down|Device not ready)"),
    (Trouble.IO, r"sd [0-9:]{1,20}: (?:\[\w{1,20}\] .{0,40}FAILED Result|rejecting I/O)"),
    (Trouble.IO, r"nfs: server \S{1,100} (?:not responding|timed out)"),
    (Trouble.IO, r"md/raid\w{0,5}:\S{1,40}: Disk failure on "),
    (Trouble.WARN, r"WARNING: (?:CPU: ?[0-9]|at \S|\S{1,200}:[0-9]{1,9} at )"),
    (Trouble.WARN, r"WARNING: kernel stack (?:regs|frame pointer) "),
    (Trouble.WARN, r"WARNING: stack (?:recursion|going in the wrong direction)"),
)

# One expression for each trouble, the gravest first.
_HEADLINES = [
    (trouble, re.compile(_SPEAKER + "(?:" + "|".join(words) + ")", re.ASCII))
    for trouble in Trouble
    if (words := [pattern for of, pattern in _WORDS if of is trouble])
]
# Every headline has one of these: what has none is looked at no further.
_HINT = re.compile(
    r"panic|PANIC|BUG|Oops|rror|[Uu]nable|Unexpected|[Ff]ault|\[#|SAN|LOCK|WARNING|INFO|starved"
    r"|wakeup|oom|memory|Machine|EDAC|fs |journal|XFS|BTRFS|VFS|ata|nvme|sd |nfs|md/|BTRFS|JBD2"
)


def trouble_of(text: str) -> Trouble | None:
    """Tell what trouble a line begins to tell of, if any."""
    if not _HINT.search(text):
        return None
    return next((trouble for trouble, words in _HEADLINES if words.match(text)), None)

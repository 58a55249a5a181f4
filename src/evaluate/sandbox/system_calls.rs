//! What a program in the sandbox may ask of the kernel: an allow list, everything else does not exist (`ENOSYS`).
//!
//! Left out on purpose: new processes and threads, sockets, tracing, mounts, keys, other users' memory, and the calls
//! that change modes, owners, times or attributes of files, which Landlock does not watch.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Calls that every architecture has.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    // Files that are open, and what Landlock watches.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_lseek, libc::SYS_close, libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_fcntl,
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_openat,
    libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_getcwd,
    libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat2,
    libc::SYS_truncate, libc::SYS_ftruncate, libc::SYS_symlinkat, libc::SYS_linkat, libc::SYS_fsync,
    libc::SYS_fdatasync, libc::SYS_flock, libc::SYS_pipe2, libc::SYS_umask,
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    // Memory of its own.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise,
    // Signals to itself, clocks, sleep.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack, libc::SYS_setitimer, libc::SYS_getitimer,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    libc::SYS_gettimeofday, libc::SYS_times, libc::SYS_getrusage,
    // What the C library does when a process begins and ends.
    libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address, libc::SYS_getrandom,
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_execve, libc::SYS_restart_syscall,
    // Who and where it is.
    libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid,
    libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_getpgid,
    libc::SYS_getsid, libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_sched_yield, libc::SYS_sched_getaffinity,
    libc::SYS_getpriority, libc::SYS_getcpu,
];

/// Older names of the same, of x86-64 alone.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_pipe, libc::SYS_dup2,
    libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_alarm, libc::SYS_pause,
    libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_renameat, libc::SYS_link,
    libc::SYS_symlink, libc::SYS_readlink, libc::SYS_getpgrp, libc::SYS_time, libc::SYS_arch_prctl,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// Requests to terminals and files that only look: size, mode, bytes to read, close on exec.
const IOCTLS: [u64; 5] = [0x5401, 0x5413, 0x541b, 0x5450, 0x5451];

/// The filter for a process of this number, which may signal itself and nobody else.
pub fn filter(pid: u32) -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let first_is = |argument: u8, value: u64| -> Result<SeccompRule> {
        let equal = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
        Ok(SeccompRule::new(vec![equal])?)
    };
    for call in [libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill] {
        rules.insert(call, vec![first_is(0, u64::from(pid))?]);
    }
    rules.insert(libc::SYS_prlimit64, vec![first_is(0, 0)?]);
    rules.insert(libc::SYS_ioctl, IOCTLS.iter().map(|request| first_is(1, *request)).collect::<Result<_>>()?);
    let architecture = std::env::consts::ARCH.try_into().context("there is no filter for this processor")?;
    let refuse = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok(SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?.try_into()?)
}

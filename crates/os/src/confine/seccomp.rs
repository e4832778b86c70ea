//! The system calls of a proxy: a process with threads, sockets, epoll and memory of its own that opens files for
//! reading only.
//!
//! The list was taken from traces of the proxy under its own tests, with what its libraries (tokio, rustls, aws-lc,
//! jemalloc, glibc and musl) fall back to on other kernels. Those that look at arguments cost a few instructions per
//! call; for the others the kernel keeps the answer in a bitmap (Linux 5.11).

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Why the filters cannot be made or enforced.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// Not a processor for which there is a list.
    #[error("there is no list of system calls for {0}")]
    Architecture(&'static str),
    /// The rules contradict each other.
    #[error("the filter cannot be made: {0}")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel has no filters, or another module forbids them.
    #[error("the kernel refuses the filter: {0}")]
    Refused(#[source] io::Error),
}

/// Needed, whatever the arguments.
const ALLOWED: &[c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    // Sockets that exist already.
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Memory, except for making it executable.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to itself; sending them is below.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_sigaltstack,
    // About itself and the machine.
    libc::SYS_getrandom,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
];

/// Older forms, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_time,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Nothing but an attack calls these.
const DEADLY: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_open_by_handle_at,
    libc::SYS_personality,
];
#[cfg(target_arch = "x86_64")]
const DEADLY_HERE: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const DEADLY_HERE: &[c_long] = &[];

/// `prctl` operations: names of threads and of memory, questions. The last is `PR_GET_AUXV` of Linux 6.4.
const PRCTL: [u64; 5] = [
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_GET_DUMPABLE as u64,
    0x4155_5856,
];
/// Making a socket non-blocking, asking how much can be read, asking whether it is a terminal.
// Their type depends on the C library.
#[allow(clippy::unnecessary_cast)]
const IOCTL: [u64; 3] = [libc::FIONBIO as u64, libc::FIONREAD as u64, libc::TCGETS as u64];
const FAMILIES: [u64; 3] = [libc::AF_UNIX as u64, libc::AF_INET as u64, libc::AF_INET6 as u64];

type Condition = (u8, SeccompCmpOp, u64);

/// Any of `any` allows the call; all conditions of one must hold.
fn rules(any: &[&[Condition]]) -> Result<Vec<SeccompRule>, SeccompError> {
    let condition = |(argument, operator, value): &Condition| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
    };
    any.iter()
        .map(|all| Ok(SeccompRule::new(all.iter().map(condition).collect::<Result<_, _>>()?)?))
        .collect()
}

fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, SeccompError> {
    let conditions: Vec<[Condition; 1]> =
        values.iter().map(|value| [(argument, SeccompCmpOp::Eq, *value)]).collect();
    rules(&conditions.iter().map(<[Condition; 1]>::as_slice).collect::<Vec<_>>())
}

fn none_of(argument: u8, bits: u64) -> Result<Vec<SeccompRule>, SeccompError> {
    rules(&[&[(argument, SeccompCmpOp::MaskedEq(bits), 0)]])
}

/// The filters, compiled.
#[derive(Clone, Debug)]
pub struct Filters {
    deadly: BpfProgram,
    allowed: BpfProgram,
}

impl Filters {
    /// For the calling process: it may signal nobody but itself. `bind` is whether it may bind and listen.
    ///
    /// # Errors
    /// [`SeccompError::Architecture`], [`SeccompError::Compile`].
    pub fn new(bind: bool) -> Result<Self, SeccompError> {
        let arch = TargetArch::try_from(std::env::consts::ARCH)
            .map_err(|_| SeccompError::Architecture(std::env::consts::ARCH))?;
        let unconditional =
            |list: &[c_long]| list.iter().map(|call| (*call, Vec::new())).collect::<BTreeMap<_, _>>();
        let mut allowed = unconditional(ALLOWED);
        allowed.extend(unconditional(ALLOWED_HERE));
        if bind {
            allowed.extend(unconditional(&[libc::SYS_bind, libc::SYS_listen]));
        }
        let writing =
            libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
        let executable = libc::PROT_EXEC as u64;
        allowed.extend([
            (libc::SYS_openat, none_of(2, writing as u64)?),
            (libc::SYS_mmap, none_of(2, executable)?),
            (libc::SYS_mprotect, none_of(2, executable)?),
            (libc::SYS_socket, one_of(0, &FAMILIES)?),
            (libc::SYS_ioctl, one_of(1, &IOCTL)?),
            (libc::SYS_prctl, one_of(0, &PRCTL)?),
            // Threads, not processes. `clone3` cannot be looked into; libraries take this one then.
            (
                libc::SYS_clone,
                rules(&[&[(
                    0,
                    SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
                    libc::CLONE_THREAD as u64,
                )]])?,
            ),
            // How `abort` ends the process.
            (libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])?),
        ]);
        let enosys = SeccompAction::Errno(libc::ENOSYS as u32);
        let allowed = SeccompFilter::new(allowed, enosys, SeccompAction::Allow, arch)?;
        let mut deadly = unconditional(DEADLY);
        deadly.extend(unconditional(DEADLY_HERE));
        let deadly = SeccompFilter::new(deadly, SeccompAction::Allow, SeccompAction::KillProcess, arch)?;
        Ok(Self { deadly: deadly.try_into()?, allowed: allowed.try_into()? })
    }

    /// Binds every thread of this process, for good.
    ///
    /// # Errors
    /// [`SeccompError::Refused`]. If it is the second filter that is refused, the first applies.
    pub fn enforce(&self) -> Result<(), SeccompError> {
        rustix::thread::set_no_new_privs(true).map_err(|error| SeccompError::Refused(error.into()))?;
        install(&self.deadly)?;
        install(&self.allowed)
    }
}

fn install(program: &BpfProgram) -> Result<(), SeccompError> {
    // All threads at once; and on kernels before 5.16, which slow filtered processes down against speculation: not so,
    // for no foreign code runs in ours.
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let refused = |error: io::Error| Err(SeccompError::Refused(error));
    let Ok(length) = u16::try_from(program.len()) else {
        return refused(io::Error::from_raw_os_error(libc::E2BIG));
    };
    // The kernel reads it only; its type says otherwise.
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program has the kernel's layout (seccompiler's `sock_filter` is that of the kernel) and lives across
    // the call, which only reads it.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&filter))
    };
    match outcome {
        0 => Ok(()),
        -1 => refused(io::Error::last_os_error()),
        thread => refused(io::Error::other(format!("thread {thread} has a filter of its own"))),
    }
}

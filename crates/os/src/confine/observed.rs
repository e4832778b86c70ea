//! What applies to a process, as the kernel says: not what anybody set out to do.

use serde::{Deserialize, Serialize};

/// What `/proc/PID/status` says of the main thread. What another thread has beside it cannot be seen there;
/// [`super::this_process`] looks at all of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// It has no capability that it could use or pass on.
    pub no_capabilities: bool,
    /// Nothing it executes gives it more than it has.
    pub no_new_privileges: bool,
    /// Its system calls go through a filter.
    pub system_calls_filtered: bool,
}

impl Observed {
    /// Of the process `pid`; `None` if it has gone, or this system does not say.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let empty = |key| value(key).map(|set| set.bytes().all(|digit| digit == b'0'));
        Some(Self {
            no_capabilities: empty("CapInh:")? && empty("CapPrm:")? && empty("CapEff:")?
                // Linux before 4.3 has no such set.
                && empty("CapAmb:").unwrap_or(true),
            no_new_privileges: value("NoNewPrivs:")? == "1",
            system_calls_filtered: value("Seccomp:").is_some_and(|mode| mode == "2"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let zero = "0000000000000000";
        let status = |effective: &str, nnp: &str, seccomp: &str| {
            format!(
                "Name:\tx\nCapInh:\t{zero}\nCapPrm:\t{effective}\nCapEff:\t{effective}\nCapBnd:\tff\nCapAmb:\t{zero}\n\
                 NoNewPrivs:\t{nnp}\n{seccomp}"
            )
        };
        let said = |no_capabilities, no_new_privileges, system_calls_filtered| {
            Some(Observed { no_capabilities, no_new_privileges, system_calls_filtered })
        };
        assert_eq!(Observed::parse(&status(zero, "1", "Seccomp:\t2\n")), said(true, true, true));
        assert_eq!(Observed::parse(&status("400", "0", "Seccomp:\t0\n")), said(false, false, false));
        assert_eq!(
            Observed::parse(&status(zero, "1", "")),
            said(true, true, false),
            "a kernel without filters"
        );
        assert_eq!(Observed::parse("Name:\tx\n"), None);
        assert!(Observed::of(std::process::id()).is_some());
        assert_eq!(Observed::of(u32::MAX), None);
    }
}

//! A clock that can be set for some processes and nobody else.
//!
//! The time of day is the machine's: the kernel has no namespace for it. So the processes under test load a small library
//! before the C library that adds a number to the time of day they are told, and to nothing else: clocks that count what
//! passes are the kernel's. The number lies in a file that all of them have mapped, and so has every process that one of
//! them starts. Holds: the product's programs are those that are shipped; nobody else sees another time. Does not: work
//! for statically linked programs, or where no C compiler is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::peers;
use crate::process::{find_program, run};
use crate::wait::LONG;

/// Seconds of a day.
pub const DAY: i64 = 86_400;
/// Seconds of a year, but for a few days.
pub const YEAR: i64 = 365 * DAY;

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *set;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TESTKIT_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file < 0) return;
    void *map = mmap(0, sizeof *set, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED) set = map;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int outcome = real ? real(id, now) : (int)syscall(SYS_clock_gettime, id, now);
    if (outcome == 0 && set && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *set;
    return outcome;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int outcome = clock_gettime(CLOCK_REALTIME, &exact);
    (void)zone;
    if (outcome == 0) *now = (struct timeval){exact.tv_sec, exact.tv_nsec / 1000};
    return outcome;
}

time_t time(time_t *to) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    if (to) *to = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// See the module.
#[derive(Debug)]
pub struct Clock {
    folder: tempfile::TempDir,
    number: File,
}

impl Clock {
    /// One that is right. `None`, with a message, where it cannot be made.
    pub fn new() -> Result<Option<Self>> {
        let Some(compiler) = find_program("cc") else {
            peers::skip_or_fail("no C compiler (`cc`), so no clock that can be set")?;
            return Ok(None);
        };
        let folder = tempfile::Builder::new().prefix("ot-clock").tempdir()?;
        let source = folder.path().join("clock.c");
        std::fs::write(&source, LIBRARY)?;
        let mut compile = Command::new(compiler);
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(folder.path().join("clock.so")).arg(&source);
        compile.arg("-ldl");
        run(compile, LONG)?.ok()?;
        let number =
            File::options().read(true).write(true).create_new(true).open(folder.path().join("set"))?;
        number.write_all_at(&0_i64.to_ne_bytes(), 0)?;
        Ok(Some(Self { folder, number }))
    }

    /// Sets it for whoever has it, as far from the machine's as this, in seconds.
    pub fn set(&self, seconds: i64) -> Result<()> {
        Ok(self.number.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }

    /// What a process gets in its environment to have this clock, and all that it starts.
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        let file = |name| self.folder.path().join(name);
        [("LD_PRELOAD", file("clock.so")), ("TESTKIT_CLOCK", file("set"))]
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_clock_is_set_for_those_who_have_it() {
        let Some(clock) = Clock::new().unwrap() else { return };
        let told = || {
            let mut date = Command::new("date");
            date.arg("+%s").envs(clock.environment());
            run(date, LONG).unwrap().ok().unwrap().stdout.trim().parse::<i64>().unwrap()
        };
        let ours = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            i64::try_from(now).unwrap()
        };
        for set in [0, 10 * YEAR, -DAY] {
            clock.set(set).unwrap();
            let (before, told, after) = (ours(), told(), ours());
            assert!((before..=after).contains(&(told - set)), "{set}: {before} {told} {after}");
        }
    }
}

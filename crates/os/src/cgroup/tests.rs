use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// A group of its own for a test, which leaves nothing behind however the test ends.
struct Trial(Cgroup);

impl Drop for Trial {
    fn drop(&mut self) {
        // In a thread: the test is in a runtime already.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                let _ = runtime.block_on(self.0.kill(PATIENCE));
                let _ = runtime.block_on(self.0.remove(PATIENCE));
            });
        });
    }
}

/// Where this machine lets us make groups with limits.
fn real() -> Option<Parent> {
    let parent = Parent::establish(&Layout::read().unwrap());
    match parent.support().shortcomings() {
        None => Some(parent),
        Some(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

fn trial(parent: &Parent) -> Trial {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    Trial(parent.create(&format!("outrider-test-{}-{n}", std::process::id())).unwrap())
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn machines_are_understood() {
    struct Case {
        what: &'static str,
        cgroup: &'static str,
        mountinfo: &'static str,
        unified: Option<(&'static str, &'static str)>,
        memory: Option<(&'static str, &'static str)>,
        cpu: Option<(&'static str, &'static str)>,
    }
    let cases = [
        Case {
            what: "version 2, a systemd service",
            cgroup: "0::/system.slice/outrider.service\n",
            mountinfo: "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            unified: Some(("/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/outrider.service")),
            memory: None,
            cpu: None,
        },
        Case {
            what: "version 1, some controllers mounted together, no tags",
            cgroup: "12:pids:/a\n4:memory:/a/b\n3:cpu,cpuacct:/\n1:name=systemd:/init.scope\n",
            mountinfo: "1 2 0:1 / /c/memory rw - cgroup cgroup rw,memory\n\
                        1 2 0:2 / /c/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                        1 2 0:3 / /proc rw - proc proc rw\n",
            unified: None,
            memory: Some(("/c/memory", "/c/memory/a/b")),
            cpu: Some(("/c/cpu,cpuacct", "/c/cpu,cpuacct")),
        },
        Case {
            what: "hybrid",
            cgroup: "4:memory:/\n0::/x\n",
            mountinfo: "1 2 0:1 / /c/unified rw shared:1 master:2 - cgroup2 cgroup2 rw\n\
                        1 2 0:2 / /c/memory rw - cgroup none rw,memory\n",
            unified: Some(("/c/unified", "/c/unified/x")),
            memory: Some(("/c/memory", "/c/memory")),
            cpu: None,
        },
        Case {
            what: "a container without a cgroup namespace sees its own part only",
            cgroup: "4:memory:/docker/abc/inner\n3:cpu:/docker/other\n",
            mountinfo: "1 2 0:1 /docker/abc /c/memory ro - cgroup cgroup rw,memory\n\
                        1 2 0:1 /docker/abc /c/cpu ro - cgroup cgroup rw,cpu\n",
            unified: None,
            memory: Some(("/c/memory", "/c/memory/inner")),
            cpu: None,
        },
        Case {
            what: "a mount from above the cgroup namespace, and then one of the namespace",
            cgroup: "0::/\n",
            mountinfo: "1 2 0:1 /../.. /host/cgroup rw - cgroup2 cgroup2 rw\n\
                        1 2 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            unified: Some(("/sys/fs/cgroup", "/sys/fs/cgroup")),
            memory: None,
            cpu: None,
        },
        Case {
            what: "we are above the namespace, or in a group that was removed",
            cgroup: "0::/../x\n4:memory:/gone (deleted)\n",
            mountinfo: "1 2 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                        1 2 0:1 / /c/memory rw - cgroup cgroup rw,memory\n",
            unified: None,
            memory: None,
            cpu: None,
        },
        Case {
            what: "blanks in names; the word memory elsewhere",
            cgroup: "0::/a b:c\n9:memoryx:/x\n",
            mountinfo: "1 2 0:1 / /mnt/c\\040group rw - cgroup2 memory rw\n",
            unified: Some(("/mnt/c group", "/mnt/c group/a b:c")),
            memory: None,
            cpu: None,
        },
        Case {
            what: "rubbish",
            cgroup: "x\n::",
            mountinfo: "- -\n\\0",
            unified: None,
            memory: None,
            cpu: None,
        },
    ];
    for case in cases {
        let layout = Layout::parse(case.cgroup.as_bytes(), case.mountinfo.as_bytes());
        let hierarchy =
            |paths: Option<(&str, &str)>| paths.map(|(m, o)| Hierarchy { mount: m.into(), own: o.into() });
        assert_eq!(layout.unified, hierarchy(case.unified), "{}", case.what);
        assert_eq!(layout.v1.get(&Controller::Memory).cloned(), hierarchy(case.memory), "{}", case.what);
        assert_eq!(layout.v1.get(&Controller::Cpu).cloned(), hierarchy(case.cpu), "{}", case.what);
    }
}

#[test]
fn names_cannot_leave_the_parent_or_be_files_of_the_kernel() {
    for name in ["outrider-shop_a-1", "a", "shop.checkout@1:2", &"x".repeat(200)] {
        check_name(name).unwrap();
    }
    let bad =
        ["", ".", "..", "a/b", "../a", "memory.max", "cgroup.procs", "tasks", "a b", "a\n", "é", ".hidden"];
    for name in bad.into_iter().chain([&*"x".repeat(201)]) {
        assert!(matches!(check_name(name), Err(CgroupError::Name(n)) if n == name), "{name:?}");
    }
}

#[test]
fn limits_have_bounds() {
    let fine = Limits { cpu_max: Some(CpuMax::millis(250)), cpu_weight: Some(1), ..Limits::default() };
    fine.check().unwrap();
    assert_eq!(CpuMax::millis(250), CpuMax { quota_us: 25_000, period_us: 100_000 });
    let none = Limits::default();
    for (limits, text) in [
        (
            Limits { memory_max: Some(4096), ..none },
            "a memory limit (bytes) of 4096 is not between 1048576 and",
        ),
        (
            Limits { memory_high: Some(u64::MAX), ..none },
            "a high mark of memory (bytes) of 18446744073709551615",
        ),
        (
            Limits { cpu_max: Some(CpuMax::millis(9)), ..none },
            "a CPU quota (µs) of 900 is not between 1000 and",
        ),
        (
            Limits { cpu_max: Some(CpuMax { quota_us: 5000, period_us: 2_000_000 }), ..none },
            "a CPU period (µs) of 2000000 is not between 1000 and 1000000",
        ),
        (Limits { cpu_weight: Some(0), ..none }, "a CPU weight of 0 is not between 1 and 10000"),
        (Limits { pids_max: Some(0), ..none }, "a limit of processes of 0 is not between 1 and 4194304"),
    ] {
        let error = limits.check().unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

/// A folder that looks like a group of version 2.
fn unified(directory: &Path, files: &[(&str, &str)]) -> Layout {
    std::fs::create_dir_all(directory).unwrap();
    for (name, content) in files {
        std::fs::write(directory.join(name), content).unwrap();
    }
    let own = Hierarchy { mount: directory.to_owned(), own: directory.to_owned() };
    Layout { unified: Some(own), ..Layout::default() }
}

fn content(directory: &Path, file: &str) -> String {
    std::fs::read_to_string(directory.join(file)).unwrap()
}

#[tokio::test]
async fn version_2_is_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let layout = unified(
        dir.path(),
        &[
            ("cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("cgroup.subtree_control", "cpu memory pids\n"),
        ],
    );
    let group = dir.path().join("outrider-a");
    unified(
        &group,
        &[
            ("memory.max", "max\n"),
            ("memory.high", "max\n"),
            ("memory.swap.max", "max\n"),
            ("memory.current", "10485760\n"),
            ("memory.peak", "20971520\n"),
            ("memory.events", "low 0\nhigh 7\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.weight", "100\n"),
            ("cpu.stat", "usage_usec 5000\nuser_usec 1\nnr_periods 9\nnr_throttled 4\nthrottled_usec 600\n"),
            ("pids.max", "max\n"),
            ("pids.current", "5\n"),
            ("cgroup.procs", "0\n"),
        ],
    );
    let parent = Parent::establish(&layout);
    assert_eq!(parent.support().shortcomings(), None);
    assert_eq!(parent.list("outrider-"), BTreeSet::from(["outrider-a".to_owned()]));
    assert!(parent.open("outrider-b").is_none());
    let cgroup = parent.open("outrider-a").unwrap();
    assert_eq!(
        cgroup.usage(),
        Usage {
            memory_bytes: Some(10 * MIB),
            memory_peak_bytes: Some(20 * MIB),
            memory_limit_bytes: None,
            memory_limit_hits: Some(3),
            oom_kills: Some(2),
            cpu_us: Some(5000),
            throttled_periods: Some(4),
            throttled_us: Some(600),
            tasks: Some(5),
        }
    );
    let limits = Limits {
        memory_max: Some(64 * MIB),
        memory_high: Some(60 * MIB),
        cpu_max: Some(CpuMax::millis(500)),
        cpu_weight: Some(200),
        pids_max: Some(64),
    };
    let all = || {
        let files = ["memory.max", "memory.high", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max"];
        files.map(|file| content(&group, file))
    };
    cgroup.set(&limits).unwrap();
    assert_eq!(all(), ["67108864", "62914560", "0", "50000 100000", "200", "64"]);
    let below = cgroup.set(&Limits { memory_max: Some(8 * MIB), ..Limits::default() }).unwrap_err();
    assert_eq!(below.to_string(), "a memory limit of 8388608 bytes is below the 10485760 bytes in use");
    assert_eq!(all(), ["67108864", "62914560", "0", "50000 100000", "200", "64"], "nothing was changed");
    cgroup.set(&Limits::default()).unwrap();
    assert_eq!(all(), ["max", "max", "max", "max 100000", "100", "max"]);
    cgroup.add(77).unwrap();
    assert_eq!(content(&group, "cgroup.procs"), "77");
    assert!(
        matches!(cgroup.remove(Duration::ZERO).await, Err(CgroupError::Io { .. })),
        "no cgroup: it has files"
    );
}

#[test]
fn version_2_with_other_processes_in_the_group_is_refused_unless_it_was_given_to_us() {
    let dir = tempfile::tempdir().unwrap();
    let me = std::process::id().to_string();
    let files = |procs: &str| {
        unified(
            dir.path(),
            &[
                ("cgroup.controllers", "memory pids\n"),
                ("cgroup.subtree_control", "\n"),
                ("cgroup.type", "domain\n"),
                ("cgroup.procs", procs),
            ],
        )
    };
    let layout = files(&format!("1\n{me}\n"));
    let parent = Parent::establish(&layout);
    let text = parent.support().shortcomings().unwrap();
    assert!(text.contains("has 2 processes, not only this one") && text.contains("Delegate=yes"), "{text}");
    assert!(text.starts_with("memory, CPU, processes cannot be limited: "), "one reason, said once: {text}");
    assert!(matches!(parent.create("a"), Err(CgroupError::Nowhere(_))));
    assert_eq!(content(dir.path(), "cgroup.subtree_control"), "\n", "nothing was changed");

    let leaf = dir.path().join(SELF_LEAF);
    std::fs::create_dir(&leaf).unwrap();
    std::fs::write(leaf.join("cgroup.procs"), "").unwrap();
    let moved = || (content(&leaf, "cgroup.procs"), content(dir.path(), "cgroup.subtree_control"));
    Parent::establish(&files(&me));
    assert_eq!(moved(), ("0".to_owned(), "+memory +pids".to_owned()), "alone: it moves itself");

    std::fs::write(leaf.join("cgroup.procs"), "").unwrap();
    let layout = files("1\n2\n");
    match rustix::fs::setxattr(dir.path(), "user.delegate", b"1", rustix::fs::XattrFlags::empty()) {
        Ok(()) => {
            Parent::establish(&layout);
            assert_eq!(moved(), ("0".to_owned(), "+memory +pids".to_owned()), "given to us");
        }
        Err(error) => println!("skipped: no extended attributes here: {error}"),
    }

    // Started again inside of the leaf, groups are made beside it.
    let mut layout = files("");
    std::fs::write(dir.path().join("cgroup.subtree_control"), "memory pids").unwrap();
    if let Some(hierarchy) = &mut layout.unified {
        hierarchy.own = leaf.clone();
    }
    let parent = Parent::establish(&layout);
    assert_eq!((parent.support().memory.works(), parent.support().cpu.works()), (true, false));
    let cgroup = parent.create("a").unwrap();
    assert_eq!(cgroup.directories().collect::<Vec<_>>(), [dir.path().join("a")]);
    assert_eq!(parent.list(""), BTreeSet::from(["a".to_owned()]), "the leaf is none of ours");
    let error = cgroup.set(&Limits { cpu_weight: Some(50), ..Limits::default() }).unwrap_err();
    assert_eq!(error.to_string(), "CPU cannot be limited: its controller is not available to our cgroup");
}

#[test]
fn a_machine_without_cgroups_says_so() {
    let parent = Parent::establish(&Layout::default());
    assert_eq!(
        parent.support().shortcomings().unwrap(),
        "memory, CPU, processes cannot be limited: no cgroup file system is mounted here"
    );
}

#[test]
fn somebody_unprivileged_is_told_why() {
    // This test binary runs itself as another user.
    if std::env::var_os("OUTRIDER_TEST_NOBODY").is_some() {
        let parent = Parent::establish(&Layout::read().unwrap());
        println!("told: {:?} {:?}", parent.support().shortcomings(), parent.create("x").map(|_| ()));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cgroup::tests::somebody_unprivileged_is_told_why", "--nocapture"])
        .env("OUTRIDER_TEST_NOBODY", "1")
        .uid(65534)
        .gid(65534)
        .output();
    let Ok(output) = output else {
        println!("skipped: nobody may not execute the test program");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("told: "), "{text}");
    if !text.contains("told: Some") {
        println!("skipped: here everybody may make groups");
        return;
    }
    assert!(text.contains("Permission denied") && text.contains("run as root"), "{text}");
    assert!(text.contains("Err(Nowhere("), "{text}");
}

#[tokio::test]
async fn a_child_starts_in_its_group_and_so_do_its_children() {
    let Some(parent) = real() else { return };
    let trial = trial(&parent);
    let mut command = shell("sleep 600 & echo ready; cat /proc/self/cgroup; wait");
    trial.0.place(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let name = format!("/{}", trial.0.name());
    assert!(lines.any(|line| line.unwrap().ends_with(&name)));
    assert!(trial.0.processes().unwrap().contains(&child.id()));
    until("usage", || trial.0.usage().tasks >= Some(2) && trial.0.usage().memory_bytes > Some(0));
    assert!(trial.0.usage().cpu_us.is_some());
    // It is taken again by its name, with what is in it.
    assert!(parent.list("outrider-test-").contains(trial.0.name()));
    assert_eq!(parent.open(trial.0.name()).unwrap().processes().unwrap(), trial.0.processes().unwrap());
    assert!(matches!(trial.0.remove(Duration::ZERO).await, Err(CgroupError::Busy { processes: 2.., .. })));
    assert!(trial.0.kill(PATIENCE).await.unwrap() >= 2);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    trial.0.remove(PATIENCE).await.unwrap();
    trial.0.remove(PATIENCE).await.unwrap();
    assert!(parent.open(trial.0.name()).is_none());
}

#[tokio::test]
async fn a_child_that_becomes_another_user_is_placed_too() {
    let Some(parent) = real() else { return };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let trial = trial(&parent);
    let mut command = shell("id -u; cat /proc/self/cgroup");
    trial.0.place(&mut command).unwrap();
    let output = command.uid(65534).gid(65534).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("65534\n") && text.contains(trial.0.name()), "{text}");
}

#[tokio::test]
async fn who_takes_too_much_memory_is_killed_alone_and_the_cause_is_known() {
    let Some(parent) = real() else { return };
    let trial = trial(&parent);
    trial.0.set(&Limits { memory_max: Some(16 * MIB), ..Limits::default() }).unwrap();
    let before = trial.0.usage();
    let mut watch = oom::Watch::new(&trial.0).unwrap();
    // Collects a line that never ends.
    let mut command = Command::new("tail");
    command.args(["-n", "1", "/dev/zero"]).stdout(Stdio::null());
    trial.0.place(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    let status = child.wait().unwrap();
    let after = trial.0.usage();
    assert_eq!(oom::cause(&before, &after, status.signal()), Some(oom::OutOfMemory::OwnLimit), "{after:?}");
    assert!(
        after.memory_peak_bytes >= Some(15 * MIB) && after.memory_peak_bytes <= Some(17 * MIB),
        "{after:?}"
    );

    // Killed by somebody, later, in the same group.
    let mut command = shell("sleep 600");
    trial.0.place(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(oom::cause(&after, &trial.0.usage(), status.signal()), None);
}

#[test]
fn causes_are_told_apart() {
    let usage = |oom_kills, hits| Usage { oom_kills, memory_limit_hits: hits, ..Usage::default() };
    let before = usage(Some(1), Some(5));
    for (after, signal, expected) in [
        (usage(Some(2), Some(6)), Some(9), Some(oom::OutOfMemory::OwnLimit)),
        (usage(Some(2), Some(5)), Some(9), Some(oom::OutOfMemory::Elsewhere)),
        (usage(Some(1), Some(9)), Some(9), None),
        (usage(Some(2), Some(6)), Some(11), None),
        (usage(Some(2), Some(6)), None, None),
        (usage(None, None), Some(9), None),
    ] {
        assert_eq!(oom::cause(&before, &after, signal), expected, "{after:?} {signal:?}");
    }
    let at_limit =
        Usage { memory_peak_bytes: Some(16), memory_limit_bytes: Some(16), ..usage(Some(2), Some(5)) };
    assert_eq!(oom::cause(&before, &at_limit, Some(9)), Some(oom::OutOfMemory::OwnLimit));
    assert_eq!(oom::cause(&usage(None, None), &before, Some(9)), Some(oom::OutOfMemory::OwnLimit));
}

#[tokio::test]
async fn limits_change_under_a_running_process_but_never_kill_it() {
    let Some(parent) = real() else { return };
    let trial = trial(&parent);
    let mut limits = Limits {
        memory_max: Some(256 * MIB),
        cpu_max: Some(CpuMax::millis(1500)),
        cpu_weight: Some(50),
        pids_max: Some(100),
        memory_high: None,
    };
    trial.0.set(&limits).unwrap();
    let mut command = shell("x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ready; read y; echo ${#x}");
    trial.0.place(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    limits.memory_max = Some(8 * MIB);
    assert!(matches!(trial.0.set(&limits), Err(CgroupError::BelowUse { wanted, used })
        if wanted == 8 * MIB && used > wanted));
    // Up, down, away, and with another period.
    let period = CpuMax { quota_us: 400_000, period_us: 1_000_000 };
    for (memory, cpu) in [
        (Some(512 * MIB), Some(CpuMax::millis(250))),
        (Some(128 * MIB), Some(period)),
        (None, None),
        (Some(200 * MIB), Some(CpuMax { quota_us: 2_000, period_us: 1_000 })),
    ] {
        trial.0.set(&Limits { memory_max: memory, cpu_max: cpu, ..limits }).unwrap();
        let text: String = trial
            .0
            .directories()
            .map(|d| {
                let files = [
                    "memory.limit_in_bytes",
                    "memory.max",
                    "cpu.cfs_quota_us",
                    "cpu.cfs_period_us",
                    "cpu.max",
                ];
                files.map(|file| std::fs::read_to_string(d.join(file)).unwrap_or_default()).concat()
            })
            .collect();
        for value in [memory, cpu.map(|c| c.quota_us), cpu.map(|c| c.period_us)].into_iter().flatten() {
            let mut words = text.split_ascii_whitespace();
            assert!(words.any(|word| word == value.to_string()), "{value} in {text}");
        }
    }
    drop(child.stdin.take());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().success()), ("30000000\n", true));
}

#[tokio::test]
async fn cpu_is_held_back_and_counted() {
    let Some(parent) = real() else { return };
    let trial = trial(&parent);
    trial.0.set(&Limits { cpu_max: Some(CpuMax::millis(20)), ..Limits::default() }).unwrap();
    let mut command = shell("while :; do :; done");
    trial.0.place(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    until("throttled", || {
        let usage = trial.0.usage();
        usage.throttled_periods > Some(0) && usage.throttled_us > Some(0) && usage.cpu_us > Some(0)
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn processes_are_limited() {
    let Some(parent) = real() else { return };
    let trial = trial(&parent);
    trial.0.set(&Limits { pids_max: Some(2), ..Limits::default() }).unwrap();
    let mut command = shell("sleep 600 > /dev/null & sleep 600 > /dev/null & echo not reached");
    trial.0.place(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).ok();
    trial.0.kill(PATIENCE).await.unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(text, "");
}

#[tokio::test]
async fn news_of_a_file_of_version_2_arrives() {
    // The mechanism of memory.events, on a file that every version 2 group has.
    let Some(parent) = real() else { return };
    let trial = trial(&parent);
    let Some(events) = trial.0.unified.as_ref().map(|d| d.join("cgroup.events")).filter(|p| p.exists())
    else {
        println!("skipped: version 2 is not writable here");
        return;
    };
    let open = std::fs::File::open(&events).unwrap();
    let mut watch = oom::Watch::of_events(open, ["populated", "frozen"]).unwrap();
    let mut command = shell("read line");
    trial.0.place(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(std::fs::read_to_string(events).unwrap().contains("populated 0"));
}

//! Each test runs this test binary again as the child that is confined, because there is no way back.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output};

use super::*;

const ROLE: &str = "OUTRIDER_TEST_CONFINED";

/// This very test, in another process.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("confine::tests::{test}"), "--nocapture", "--test-threads", "1"]);
    command.env(ROLE, "1").env("RUST_BACKTRACE", "0");
    command
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))
}

fn is_child() -> bool {
    std::env::var_os(ROLE).is_some()
}

fn landlock_here() -> bool {
    match landlock::prepare(&View::default()).unwrap().1 {
        Step::Missing(why) => {
            println!("skipped: {why}");
            false
        }
        _ => true,
    }
}

/// As the agent starts a proxy: `before_exec`, then `this_process` in the child, which then says what it can do.
#[test]
fn a_confined_process_works_and_can_do_little_else() {
    if is_child() {
        return confined();
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), "not for it").unwrap();
    let users: &[Option<u32>] =
        if rustix::process::geteuid().is_root() { &[None, Some(65534)] } else { &[None] };
    for user in users {
        let mut command = again("a_confined_process_works_and_can_do_little_else");
        command.env("OUTRIDER_TEST_SECRET", dir.path().join("secret"));
        if let Some(id) = user {
            command.uid(*id).gid(*id);
        }
        let program = std::env::current_exe().unwrap();
        let step = before_exec(&mut command, &View::of_program(&program)).unwrap();
        command.env("OUTRIDER_TEST_STEP", serde_json::to_string(&step).unwrap());
        let output = match command.output() {
            Err(error) if user.is_some() && error.kind() == io::ErrorKind::PermissionDenied => {
                println!("skipped: user 65534 may not execute the test program");
                continue;
            }
            output => output.unwrap(),
        };
        let text = text(&output);
        assert!(output.status.success() && text.contains("all is as it should be"), "{text}");
    }
}

#[test]
fn without_a_view_the_rest_applies() {
    let mut command = Command::new("/bin/cat");
    command.arg("/proc/self/status").arg("/etc/passwd");
    let step = before_exec_unseen(&mut command, "for this test");
    assert_eq!(step, Step::Missing("for this test".to_owned()));
    let output = command.output().unwrap();
    let status = text(&output);
    assert!(output.status.success(), "{status}");
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "root:"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}

fn confined() {
    use std::io::{Read, Write};
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let confinement = this_process(&Needs::default());
    let told: Step = serde_json::from_str(&std::env::var("OUTRIDER_TEST_STEP").unwrap()).unwrap();
    // The thread of the test harness is there already; what the parent did reaches it.
    assert_eq!(confinement.file_system, told);
    assert_eq!(confinement.privileges, Step::Applied);
    assert_eq!(confinement.memory, Step::Applied);
    assert_eq!(confinement.system_calls, Step::Applied);
    assert_eq!(Some(confinement.descriptors), limit.maximum.or(Some(u64::MAX)));
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let has = |key: &str, value: &str| {
            assert!(status.lines().any(|l| l.split_once(":\t") == Some((key, value))), "{key}: {status}");
        };
        let bounding = if rustix::process::geteuid().is_root() { "CapBnd" } else { "CapEff" };
        for set in ["CapPrm", "CapEff", "CapInh", bounding] {
            has(set, "0000000000000000");
        }
        has("NoNewPrivs", "1");
        has("Seccomp", "2");
    }
    assert_eq!(rustix::process::dumpable_behavior().unwrap(), rustix::process::DumpableBehavior::NotDumpable);

    // What a proxy does.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut a, mut b) = tokio::net::UnixStream::pair().unwrap();
        let echo = tokio::spawn(async move {
            let mut text = [0; 5];
            b.read_exact(&mut text).await.unwrap();
            b.write_all(&text).await.unwrap();
        });
        a.write_all(b"hello").await.unwrap();
        let mut text = [0; 5];
        a.read_exact(&mut text).await.unwrap();
        echo.await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        // To somewhere nobody listens: the answer of the network, not of the filter.
        let refused = tokio::net::TcpStream::connect("127.0.0.1:1").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
    std::thread::spawn(|| vec![0_u8; 50_000_000].len()).join().unwrap();
    assert!(fs::read_to_string("/proc/self/statm").unwrap().len() > 5);
    assert!(crate::process::resident_bytes(std::process::id()).unwrap() > 0);
    let mut random = [0; 8];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    println!("standard output still works");
    std::io::stdout().flush().unwrap();

    // What it does not.
    let unsupported = |what: &str, error: Option<i32>| assert_eq!(error, Some(libc::ENOSYS), "{what}");
    unsupported("making a file", fs::write("/tmp/x", "x").unwrap_err().raw_os_error());
    unsupported(
        "writing a file",
        fs::OpenOptions::new().write(true).open("/dev/null").unwrap_err().raw_os_error(),
    );
    unsupported("removing", fs::remove_file("/nothing").unwrap_err().raw_os_error());
    unsupported("binding", std::net::TcpListener::bind("127.0.0.1:0").unwrap_err().raw_os_error());
    let netlink =
        rustix::net::socket(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, None);
    unsupported("a netlink socket", Some(netlink.unwrap_err().raw_os_error()));
    let parent = rustix::process::getppid().unwrap();
    let signalled = rustix::process::kill_process(parent, rustix::process::Signal::CONT);
    unsupported("signalling others", Some(signalled.unwrap_err().raw_os_error()));
    // SAFETY: maps new memory at an address of the kernel's choice; it is never touched.
    #[allow(unsafe_code)]
    let mapped = unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0)
    };
    assert_eq!(mapped, libc::MAP_FAILED);
    unsupported("executable memory", io::Error::last_os_error().raw_os_error());
    if told == Step::Applied {
        for path in [std::env::var("OUTRIDER_TEST_SECRET").unwrap(), "/etc/passwd".to_owned()] {
            let error = fs::read_to_string(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
        }
    }
    println!("all is as it should be");
}

#[test]
fn what_only_an_attack_does_is_deadly() {
    if is_child() {
        let confinement = this_process(&Needs::default());
        println!("confined {confinement:?}");
        match std::env::var("OUTRIDER_TEST_ATTACK").unwrap().as_str() {
            "exec" => println!("came back: {}", Command::new("/bin/true").exec()),
            "fork" => println!("came back: {:?}", Command::new("/bin/true").status()),
            "abort" => std::process::abort(),
            other => panic!("{other}"),
        }
        std::process::exit(3);
    }
    for (attack, signal) in [("exec", Some(libc::SIGSYS)), ("abort", Some(libc::SIGABRT)), ("fork", None)] {
        let mut command = again("what_only_an_attack_does_is_deadly");
        let output = command.env("OUTRIDER_TEST_ATTACK", attack).output().unwrap();
        let text = text(&output);
        assert!(text.contains("confined"), "{attack}: {text}");
        assert_eq!(output.status.signal(), signal, "{attack}: {text}");
        // No process without CLONE_THREAD comes to be, whichever way the library takes.
        if signal.is_none() {
            assert!(text.contains("came back: Err") && output.status.code() == Some(3), "{text}");
        }
    }
}

/// Started by hand: the test harness has a thread already, as the proxy's allocator has.
#[test]
fn without_its_parents_help_it_says_what_is_missing() {
    if is_child() {
        let wanted = View { read: vec!["/proc".into()], ..View::default() };
        let confinement = this_process(&Needs { view: wanted, descriptors: vec![] });
        println!("77 is unexpected: {}", confinement.unexpected_descriptors.contains(&77));
        println!("shortcomings {:?}", confinement.shortcomings());
        println!("passwd {:?}", fs::read_to_string("/etc/passwd").map(|_| ()));
        return;
    }
    let mut command = again("without_its_parents_help_it_says_what_is_missing");
    let open = tempfile::tempfile().unwrap();
    crate::child::inherit_at(&mut command, open.into(), 77).unwrap();
    let output = command.output().unwrap();
    let text = text(&output);
    assert!(output.status.success() && text.contains("77 is unexpected: true"), "{text}");
    if rustix::process::geteuid().is_root() {
        assert!(text.contains("privileges: confined in part: 1 threads that were there before"), "{text}");
    }
    if landlock_here() {
        assert!(text.contains("file system: confined in part: "), "{text}");
        assert!(text.contains("passwd Err"), "the calling thread is confined: {text}");
    }
}

#[test]
fn a_view_of_paths_that_do_not_exist_is_fine_and_a_program_outside_of_it_does_not_start() {
    if !landlock_here() {
        return;
    }
    let mut view = View::of_program(Path::new("/no/such/program"));
    view.read.push("/no/such/folder".into());
    let mut command = Command::new(std::env::current_exe().unwrap());
    before_exec(&mut command, &view).unwrap();
    assert_eq!(command.output().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn the_view_covers_writing_binding_and_signals() {
    if !landlock_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), "").unwrap();
    let shell = |view: &View, script: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).current_dir(dir.path());
        let step = before_exec(&mut command, view).unwrap();
        (step, command.output().unwrap())
    };
    let mut view = View::of_program(Path::new("/bin/sh"));
    view.write.push(dir.path().join("mine"));
    let (step, output) = shell(&view, "echo x > mine && echo written; echo y > other || echo not made");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "written\nnot made\n", "{}", text(&output));
    assert_eq!(fs::read_to_string(dir.path().join("mine")).unwrap(), "x\n");
    let (_, output) = shell(&view, "while read -r l; do :; done < /etc/passwd || echo not read");
    assert!(String::from_utf8_lossy(&output.stdout).contains("not read"), "{}", text(&output));
    if step == Step::Applied {
        let (_, output) = shell(&view, &format!("kill -CONT {} || echo not signalled", std::process::id()));
        assert!(String::from_utf8_lossy(&output.stdout).contains("not signalled"), "{}", text(&output));
    }
    let (_, output) = shell(&view, "ulimit -c; ulimit -H -c");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n0\n");
}

#[test]
fn shortcomings_are_sentences() {
    let mut confinement = Confinement {
        privileges: Step::Applied,
        memory: Step::Applied,
        file_system: Step::Missing("this kernel has no Landlock (Linux 5.13)".to_owned()),
        system_calls: Step::Partly("x".to_owned()),
        descriptors: 1024,
        unexpected_descriptors: vec![],
    };
    assert_eq!(
        confinement.shortcomings(),
        [
            "file system: not confined: this kernel has no Landlock (Linux 5.13)",
            "system calls: confined in part: x"
        ]
    );
    let text = serde_json::to_string(&confinement).unwrap();
    assert!(text.contains(r#""privileges":"applied""#), "{text}");
    assert_eq!(serde_json::from_str::<Confinement>(&text).unwrap(), confinement);
    (confinement.file_system, confinement.system_calls) = (Step::Applied, Step::Applied);
    assert!(confinement.shortcomings().is_empty());
}

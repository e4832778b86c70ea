use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const NOBODY: u32 = 65534;

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder anybody may read, with a hosts file in it.
fn folder() -> (tempfile::TempDir, Replacement) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = dir.path().join("hosts");
    fs::write(&source, "127.64.0.7 inventory\n").unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).unwrap();
    (dir, Replacement { source, target: "/etc/hosts".into() })
}

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_child_sees_the_replacement_and_nobody_else_does() {
    let (_dir, replacement) = folder();
    let outside = fs::read_to_string("/etc/hosts").unwrap();
    match probe(std::slice::from_ref(&replacement)) {
        Ok(()) => {}
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    }
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "cat /etc/hosts; echo later >> /etc/hosts"]);
    enter(&mut command, std::slice::from_ref(&replacement)).unwrap();
    assert_eq!(output(&mut command), "127.64.0.7 inventory\n");
    assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), outside);
    assert_eq!(
        fs::read_to_string(&replacement.source).unwrap(),
        "127.64.0.7 inventory\nlater\n",
        "same inode"
    );
}

#[test]
fn works_without_privilege_and_keeps_the_user() {
    if !root() {
        println!("skipped: only root can become another user; the other tests ran as one already");
        return;
    }
    let (_dir, replacement) = folder();
    if let Err(error) =
        probe_as(std::slice::from_ref(&replacement), NOBODY, NOBODY, Rights::None, Some(NOBODY))
    {
        println!("skipped: {error}");
        return;
    }
    let plan = Plan::new(std::slice::from_ref(&replacement), NOBODY, NOBODY, Rights::None).unwrap();
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "cat /etc/hosts; id -u; id -g; grep CapEff /proc/self/status"])
        .uid(NOBODY)
        .gid(NOBODY);
    // SAFETY: as in `enter`.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || plan.carry_out());
    }
    assert_eq!(
        output(&mut command),
        "127.64.0.7 inventory\n65534\n65534\nCapEff:\t0000000000000000\n",
        "same user, and no capability left after exec"
    );
}

#[test]
fn who_may_set_ids_keeps_all_of_them() {
    let (_dir, replacement) = folder();
    let replacements = std::slice::from_ref(&replacement);
    if !root() || probe_as(replacements, 0, 0, Rights::Map, None).is_err() {
        println!("skipped: this process may not set ids, or make namespaces");
        return;
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        println!("skipped: no setpriv here");
        return;
    }
    let plan = Plan::new(replacements, 0, 0, Rights::Map).unwrap();
    let mut command = Command::new("/bin/sh");
    let becomes = "setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'id -u; id -g'";
    command.args(["-c", &format!("cat /etc/hosts; stat -c %u /proc/1; {becomes}")]);
    // SAFETY: as in `enter`.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || plan.carry_out());
    }
    assert_eq!(output(&mut command), "127.64.0.7 inventory\n0\n65534\n65534\n");
}

#[test]
fn a_refusal_names_the_setting() {
    use rustix::io::Errno;
    for (errno, setting) in [
        (Errno::NOSPC, "(sysctl user.max_user_namespaces)"),
        (Errno::PERM, "kernel.apparmor_restrict_unprivileged_userns"),
        (Errno::ACCESS, "seccomp"),
    ] {
        let text = NamespaceError::Refused(errno.into()).to_string();
        assert!(text.contains(setting) && !text.contains("space left"), "{text}");
    }
}

#[test]
fn a_missing_file_is_named_and_told_from_a_missing_program() {
    let missing = Replacement { source: "/no/such/file".into(), target: "/etc/hosts".into() };
    let error = probe(std::slice::from_ref(&missing)).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/file cannot be shown to it as /etc/hosts: "), "{error}");
    let nul = Replacement { source: "/a\0b".into(), target: "/etc/hosts".into() };
    assert!(matches!(probe(&[nul]), Err(NamespaceError::Path(_))));
    let (_dir, good) = folder();
    if probe(std::slice::from_ref(&good)).is_ok() {
        let mut command = Command::new("/no/such/program");
        enter(&mut command, &[good]).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

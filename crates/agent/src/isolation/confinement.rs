//! What a proxy may do: nothing but what it needs, and what of that is in force.
//!
//! ```text
//! Confined::prepare(command) ─► spawn ─┬─► it runs: Observed::of(pid) once it is ready ─► shown(…)
//!                                      └─► refused within its view: once more without one
//! ```
//! The agent takes privileges and the view of the file system away before the program runs; the program limits its
//! system calls itself, if it knows [`VARIABLE`]. One that does not know it (an older release) passes over it and
//! starts all the same. Holds: what is shown as in force was seen of the process, or done to it by this agent or the
//! one before; a program that cannot be executed within its view is started without one, which is said. Does not:
//! confine Envoy.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use outrider_os::confine::{self, Observed, Step, View};

use crate::engine::Engine;

/// Says with `true` to a native proxy that it is to confine itself.
const VARIABLE: &str = "OUTRIDER_PROXY_CONFINE";

/// The words for what is in force, as they are shown.
const NO_CAPABILITIES: &str = "no_capabilities";
const NO_NEW_PRIVILEGES: &str = "no_new_privileges";
const SYSTEM_CALLS: &str = "system_calls";
const FILE_SYSTEM: &str = "file_system";

/// Lets the next child of `command`, the native proxy `binary`, start with what it needs and nothing else, or with
/// everything if not `wanted`. Returns what was done about its view of the file system; `None`: nothing. Register it
/// after everything else that happens before exec.
pub(crate) fn prepare(command: &mut Command, binary: &Path, wanted: bool) -> Option<Step> {
    // Said either way: the variable may be in our own environment.
    command.env(VARIABLE, wanted.to_string());
    if !wanted {
        return None;
    }
    let step = match confine::before_exec(command, &View::of_program(&found(binary))) {
        Ok(step) => step,
        Err(error) => confine::before_exec_unseen(command, &error.to_string()),
    };
    if let Step::Partly(why) | Step::Missing(why) = &step {
        static SAID: OnceLock<()> = OnceLock::new();
        SAID.get_or_init(|| tracing::warn!(%why, "proxies can see more of the file system than they need"));
    }
    Some(step)
}

/// As [`prepare`], for a program that the kernel did not execute within its view.
pub(crate) fn prepare_unseen(command: &mut Command) -> Step {
    command.env(VARIABLE, "true");
    confine::before_exec_unseen(command, "the program cannot be executed within its view")
}

/// Whether a view was in force, so that it may be why a program was not executed.
pub(crate) fn has_view(step: Option<&Step>) -> bool {
    matches!(step, Some(Step::Applied | Step::Partly(_)))
}

/// The file of a program, looked up in `PATH` as `exec` does.
pub(crate) fn found(binary: &Path) -> PathBuf {
    if binary.components().count() > 1 {
        return binary.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).map(|folder| folder.join(binary)).find(|file| file.is_file());
    there.unwrap_or_else(|| binary.to_owned())
}

/// What is in force for a process, as words, and what is not, as a sentence that is empty if nothing is missing.
/// `wanted` is whether proxies are to be confined; `view` what was done, `None` if that is not known.
pub(crate) fn shown(
    engine: Engine,
    wanted: bool,
    view: Option<&Step>,
    observed: Option<Observed>,
) -> (Vec<String>, String) {
    let Some(observed) = observed else { return (Vec::new(), String::new()) };
    let Observed { no_capabilities, no_new_privileges, system_calls_filtered } = observed;
    let visible = matches!(view, Some(Step::Applied | Step::Partly(_)));
    let parts = [
        (NO_CAPABILITIES, no_capabilities),
        (NO_NEW_PRIVILEGES, no_new_privileges),
        (SYSTEM_CALLS, system_calls_filtered),
        (FILE_SYSTEM, visible),
    ];
    let in_force: Vec<String> =
        parts.iter().filter(|(_, there)| *there).map(|(word, _)| (*word).to_owned()).collect();
    if engine == Engine::Envoy {
        return (in_force, "Envoy is not confined".to_owned());
    }
    if !wanted && !system_calls_filtered && !no_new_privileges {
        return (in_force, "the agent was told not to confine proxies (--confine-proxies=false)".to_owned());
    }
    let mut missing: Vec<String> = Vec::new();
    if !no_capabilities || !no_new_privileges {
        missing.push("it was started with its privileges".to_owned());
    }
    if !system_calls_filtered {
        missing.push(
            "its system calls are not limited: the release does not do it, or its log says why".to_owned(),
        );
    }
    match view {
        Some(Step::Applied) => {}
        Some(Step::Partly(why)) => {
            missing.push(format!("its view of the file system is limited in part: {why}"))
        }
        Some(Step::Missing(why)) => missing.push(format!("it sees all of the file system: {why}")),
        None => missing.push("what it sees of the file system is not known".to_owned()),
    }
    (in_force, missing.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_exec_finds_them() {
        assert!(found(Path::new("sh")).is_absolute());
        assert_eq!(found(Path::new("./sh")), Path::new("./sh"));
        assert_eq!(found(Path::new("no-such-program")), Path::new("no-such-program"));
    }

    #[test]
    fn what_is_in_force_and_what_is_not_is_said() {
        let all = Observed { no_capabilities: true, no_new_privileges: true, system_calls_filtered: true };
        let none =
            Observed { no_capabilities: false, no_new_privileges: false, system_calls_filtered: false };
        let older = Observed { system_calls_filtered: false, ..all };
        let words = [NO_CAPABILITIES, NO_NEW_PRIVILEGES, SYSTEM_CALLS, FILE_SYSTEM].map(str::to_owned);
        let native = |wanted, view: Option<Step>, observed| {
            shown(Engine::Native, wanted, view.as_ref(), Some(observed))
        };
        assert_eq!(native(true, Some(Step::Applied), all), (words.to_vec(), String::new()));
        let (in_force, missing) = native(true, Some(Step::Partly("version 1".into())), all);
        assert_eq!(in_force, words);
        assert_eq!(missing, "its view of the file system is limited in part: version 1");
        let (in_force, missing) = native(true, Some(Step::Missing("no Landlock".into())), older);
        assert_eq!(in_force, words[..2]);
        assert!(missing.contains("system calls") && missing.ends_with("no Landlock"), "{missing}");
        // Switched off; but one that an agent before this one confined still is.
        let (in_force, missing) = native(false, None, none);
        assert!(in_force.is_empty() && missing.contains("--confine-proxies=false"), "{missing}");
        assert_eq!(native(false, Some(Step::Applied), all), (words.to_vec(), String::new()));
        // Switched on; but this one was started by an agent that did not.
        assert!(native(true, None, none).1.contains("with its privileges"));
        assert_eq!(shown(Engine::Envoy, true, None, Some(none)).1, "Envoy is not confined");
        assert_eq!(shown(Engine::Native, true, None, None), (vec![], String::new()), "nothing runs yet");
    }

    #[test]
    fn the_variable_is_set_either_way() {
        for wanted in [true, false] {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "echo $OUTRIDER_PROXY_CONFINE"]);
            prepare(&mut command, Path::new("/bin/sh"), wanted);
            let output = command.output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), wanted.to_string());
        }
    }
}

//! The Procfile: which command runs as which service.
//!
//! ```text
//! # a comment
//! checkout: python3 checkout.py        the only service named checkout
//! finance/ledger: ./ledger             when several namespaces have one
//! ```
//!
//! Holds: no I/O; every mistake is found at once, with its line. Does not: run anything.

use std::collections::BTreeMap;

use outrider_intent::model::ServiceRef;

/// Largest Procfile, in bytes.
pub(crate) const SIZE_LIMIT: u64 = 64 << 10;
/// Most processes, instances counted.
const PROCESS_LIMIT: usize = 200;

/// One process to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// What its output is labelled with: the name as written, with `.2`, `.3` … for further instances.
    pub(crate) label: String,
    /// The service it is an instance of.
    pub(crate) service: ServiceRef,
    /// Command for `sh -c`.
    pub(crate) command: String,
}

impl Process {
    /// The command as the shell gets it: a simple one replaces the shell, so that signals reach it directly.
    pub(crate) fn shell_command(&self) -> String {
        let special = |c: char| ";&|<>()$`\\\"'*?[]{}#~=%!\n".contains(c);
        let reserved = ["exec", "if", "for", "while", "until", "case", "trap", "cd", ":", ".", "exit"];
        let first = self.command.split_whitespace().next().unwrap_or_default();
        if self.command.contains(special) || reserved.contains(&first) {
            self.command.clone()
        } else {
            format!("exec {}", self.command)
        }
    }
}

/// A mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProcfileError {
    /// A line that is none.
    #[error("Procfile:{line}: write `service: command`")]
    Form { line: usize },
    /// The same name twice.
    #[error(
        "Procfile:{line}: `{name}` is there already, in line {first}; use --scale {name}=N for several instances"
    )]
    Duplicate { line: usize, name: String, first: usize },
    /// No such service.
    #[error("Procfile:{line}: no document here declares a service `{name}`{}", there_are(.known))]
    UnknownService { line: usize, name: String, known: Vec<String> },
    /// More than one.
    #[error("Procfile:{line}: `{name}` could be {}; write one of them", .candidates.join(" or "))]
    Ambiguous { line: usize, name: String, candidates: Vec<String> },
    /// `--scale` of something that is not there.
    #[error("--scale {name}: the Procfile has no process of that name{}", there_are(.known))]
    UnknownScale { name: String, known: Vec<String> },
    /// Several copies of what listens.
    #[error(
        "--scale {name}={number}: every instance of {service} listens on {}, so only one can run on this host; declare \
         another service with a targetPort of its own, and split between the two with an HTTPRoute",
        ports(.targets)
    )]
    Shared { name: String, number: u16, service: ServiceRef, targets: Vec<u16> },
    /// Too many.
    #[error("the Procfile asks for more than {PROCESS_LIMIT} processes")]
    TooMany,
}

fn there_are(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; there are: {}", names.join(", ")) }
}

/// `targetPort 80`, `targetPort 80 and 81`.
fn ports(targets: &[u16]) -> String {
    let numbers: Vec<_> = targets.iter().map(ToString::to_string).collect();
    format!("targetPort {}", numbers.join(" and "))
}

/// Reads a Procfile against the declared services, given with their target ports. `scale` gives numbers of instances
/// by name as written.
pub(crate) fn parse(
    text: &str,
    services: &BTreeMap<ServiceRef, Vec<u16>>,
    scale: &[(String, u16)],
) -> Result<Vec<Process>, Vec<ProcfileError>> {
    let mut errors = Vec::new();
    let mut processes = Vec::new();
    let mut seen = BTreeMap::<String, usize>::new();
    for (at, content) in text.lines().enumerate() {
        let line = at + 1;
        let content = content.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let Some((name, command)) = split(content) else {
            errors.push(ProcfileError::Form { line });
            continue;
        };
        if let Some(first) = seen.insert(name.to_owned(), line) {
            errors.push(ProcfileError::Duplicate { line, name: name.to_owned(), first });
            continue;
        }
        let service = match find(name, services, line) {
            Ok(service) => service,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let instances =
            scale.iter().rev().find(|(scaled, _)| scaled == name).map_or(1, |(_, number)| *number);
        if let Some(targets) = services.get(&service).filter(|ports| instances > 1 && !ports.is_empty()) {
            errors.push(ProcfileError::Shared {
                name: name.to_owned(),
                number: instances,
                service: service.clone(),
                targets: targets.clone(),
            });
        }
        for number in 1..=instances {
            let label = if number == 1 { name.to_owned() } else { format!("{name}.{number}") };
            processes.push(Process { label, service: service.clone(), command: command.to_owned() });
        }
    }
    for (name, _) in scale {
        if !seen.contains_key(name) {
            errors.push(ProcfileError::UnknownScale {
                name: name.clone(),
                known: seen.keys().cloned().collect(),
            });
        }
    }
    if processes.len() > PROCESS_LIMIT {
        errors.push(ProcfileError::TooMany);
    }
    if errors.is_empty() { Ok(processes) } else { Err(errors) }
}

fn split(line: &str) -> Option<(&str, &str)> {
    let (name, command) = line.split_once(':')?;
    let (name, command) = (name.trim(), command.trim());
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '/');
    (!name.is_empty() && name.chars().all(good) && !command.is_empty()).then_some((name, command))
}

fn find(
    name: &str,
    services: &BTreeMap<ServiceRef, Vec<u16>>,
    line: usize,
) -> Result<ServiceRef, ProcfileError> {
    let candidates: Vec<&ServiceRef> = match name.split_once('/') {
        Some((namespace, name)) => {
            services.keys().filter(|service| service.namespace == namespace && service.name == name).collect()
        }
        None => services.keys().filter(|service| service.name == name).collect(),
    };
    match candidates.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(ProcfileError::UnknownService {
            line,
            name: name.to_owned(),
            known: services.keys().map(ToString::to_string).collect(),
        }),
        many => Err(ProcfileError::Ambiguous {
            line,
            name: name.to_owned(),
            candidates: many.iter().map(ToString::to_string).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> BTreeMap<ServiceRef, Vec<u16>> {
        [("shop", "web"), ("shop", "cart"), ("finance", "ledger"), ("shop", "ledger")]
            .into_iter()
            .map(|(namespace, name)| {
                let ports = if name == "cart" { vec![80, 81] } else { Vec::new() };
                (ServiceRef::new(namespace, name), ports)
            })
            .collect()
    }

    fn check(text: &str, scale: &[(&str, u16)]) -> Result<Vec<String>, Vec<String>> {
        let scale: Vec<_> = scale.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        match parse(text, &services(), &scale) {
            Ok(list) => {
                Ok(list.iter().map(|p| format!("{} = {}: {}", p.label, p.service, p.command)).collect())
            }
            Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn good_files() {
        let ok = |lines: &[&str]| Ok(lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
        assert_eq!(check("", &[]), ok(&[]));
        assert_eq!(
            check("# shop\n\nweb: python3 web.py --url http://x:1\r\n  finance/ledger :  ./ledger\n", &[]),
            ok(&[
                "web = shop/web: python3 web.py --url http://x:1",
                "finance/ledger = finance/ledger: ./ledger"
            ])
        );
        assert_eq!(
            check("web: a\ncart: b", &[("web", 2), ("cart", 0)]),
            ok(&["web = shop/web: a", "web.2 = shop/web: a"])
        );
    }

    #[test]
    fn every_mistake_is_found_at_once() {
        let errors =
            check("web\nnope: x\nledger: x\nweb: x\nweb: y\n: z\ncart:\n", &[("cart", 2)]).unwrap_err();
        let starts = [
            "Procfile:1: write",
            "Procfile:2: no document here declares a service `nope`; there are: finance/ledger, ",
            "Procfile:3: `ledger` could be finance/ledger or shop/ledger",
            "Procfile:5: `web` is there already, in line 4",
            "Procfile:6: write",
            "Procfile:7: write",
            "--scale cart: the Procfile has no process of that name",
        ];
        assert_eq!(errors.len(), starts.len(), "{errors:#?}");
        for (error, start) in errors.iter().zip(starts) {
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn what_listens_is_not_scaled() {
        let refused = check("cart: b\nweb: a\n", &[("cart", 2), ("web", 3)]).unwrap_err();
        assert_eq!(refused.len(), 1, "{refused:?}");
        let start =
            "--scale cart=2: every instance of shop/cart listens on targetPort 80 and 81, so only one";
        assert!(refused[0].starts_with(start), "{}", refused[0]);
        assert!(check("cart: b\n", &[("cart", 1)]).is_ok());
    }

    #[test]
    fn simple_commands_replace_the_shell() {
        let cases = [
            ("python3 -u web.py --port 1", "exec python3 -u web.py --port 1"),
            ("A=1 ./web", "A=1 ./web"),
            ("./a && ./b", "./a && ./b"),
            ("exec ./a", "exec ./a"),
            ("exit 5", "exit 5"),
            ("echo \"x\"", "echo \"x\""),
        ];
        for (command, expected) in cases {
            let process =
                Process { label: "a".into(), service: ServiceRef::new("a", "b"), command: command.into() };
            assert_eq!(process.shell_command(), expected);
        }
    }

    #[test]
    fn numbers_of_processes_are_limited() {
        assert!(check("web: a\nshop/ledger: b\n", &[("web", 100), ("shop/ledger", 100)]).is_ok());
        let many = check("web: a\ncart: b\nshop/ledger: c\n", &[("web", 100), ("shop/ledger", 100)]);
        assert!(many.unwrap_err()[0].contains("more than"));
    }
}

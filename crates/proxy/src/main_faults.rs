//! `outrider-proxy-faults`: the proxy with the faults of [`outrider_proxy::stamp::faults`], for tests only.

#[path = "main.rs"]
mod program;

fn main() -> std::process::ExitCode {
    program::main()
}

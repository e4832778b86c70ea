//! For end-to-end tests: a whole mesh of real processes, the software it is tried with, and servers and
//! clients that show every byte.
//!
//! Holds: everything started is ended by its process id, and [`Mesh::finish`] fails if anything is left;
//! every wait has a deadline and says what it waited for and what it saw last; ports are reserved against
//! other tests on the machine. Does not: know how the product works inside. It speaks to it through the
//! `outrider` command, sockets and signals, as users do.
//!
//! The suites themselves are in `tests/`, one function per promise.

pub mod builds;
pub mod capture;
pub mod clock;
pub mod hosts;
pub mod http;
pub mod intent;
pub mod load;
pub mod mesh;
pub mod origin;
pub mod peers;
pub mod ports;
pub mod prober;
pub mod process;
pub mod scene;
pub mod shell;
pub mod tls;
pub mod wait;
pub mod websocket;

pub use hosts::Hosts;
pub use mesh::{Engine, Mesh, Pair};
pub use scene::{Scene, Side};
pub use wait::{promised, until};

/// Puts a measurement into the test's output. Numbers are recorded, not judged, unless they are promised.
#[allow(clippy::print_stderr, reason = "test output")]
pub fn report(text: &str) {
    eprintln!("{text}");
}

/// A number from the environment, for tests that have a long form.
pub fn chosen(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Size of the load beside `r1k`: a tenth, or `OUTRIDER_LOAD_PERCENT`.
pub fn scale() -> f64 {
    chosen("OUTRIDER_LOAD_PERCENT", 10) as f64 / 100.0
}

/// Makes one test per pair of engines (calling, called) out of a function that takes a [`Pair`].
///
/// Pairs with Envoy are skipped with a message where no Envoy is found, and fail there if `CI=true`.
#[macro_export]
macro_rules! for_each_pair {
    ($($function:ident),+ $(,)?) => {$(
        mod $function {
            use outrider_testkit::{Engine, Pair, mesh};

            fn check(client: Engine, server: Engine) -> anyhow::Result<()> {
                let pair = Pair { client, server };
                if mesh::can_run(pair)? { super::$function(pair) } else { Ok(()) }
            }

            #[test]
            fn native_native() -> anyhow::Result<()> {
                check(Engine::Native, Engine::Native)
            }

            #[test]
            fn native_envoy() -> anyhow::Result<()> {
                check(Engine::Native, Engine::Envoy)
            }

            #[test]
            fn envoy_native() -> anyhow::Result<()> {
                check(Engine::Envoy, Engine::Native)
            }

            #[test]
            fn envoy_envoy() -> anyhow::Result<()> {
                check(Engine::Envoy, Engine::Envoy)
            }
        }
    )+};
}

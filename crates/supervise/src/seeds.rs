//! Random histories that are the same in every run, so that a red run is news about the change and not about luck.
//!
//! `OUTRIDER_RANDOM_HISTORIES=1 cargo nextest run -p outrider-supervise` takes others each time, and
//! `PROPTEST_RNG_SEED=NUMBER` those of one number; `PROPTEST_CASES` asks for more of them.

use proptest::test_runner::{Config, RngSeed};

/// At least so many histories.
pub(crate) fn same_every_time(cases: u32) -> Config {
    let default = Config::default();
    let random = std::env::var_os("OUTRIDER_RANDOM_HISTORIES").is_some_and(|value| value == "1");
    let rng_seed = match default.rng_seed {
        RngSeed::Random if !random => RngSeed::Fixed(0x0dd5_eed5),
        chosen => chosen,
    };
    Config { cases: default.cases.max(cases), failure_persistence: None, rng_seed, ..default }
}

//! The mix `r1k` through a pair of sidecars of any engines: nothing is lost where nothing happens.

use anyhow::{Result, ensure};
use outrider_testkit::mesh::Options;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Pair, Scene, for_each_pair, report, until};

for_each_pair!(a_quiet_mesh_loses_nothing);

/// A tenth of the mix for as many answers as it gives in about three seconds, or as many as `OUTRIDER_R1K_ANSWERS` says.
fn a_quiet_mesh_loses_nothing(pair: Pair) -> Result<()> {
    let answers =
        std::env::var("OUTRIDER_R1K_ANSWERS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let scene = Scene::of_pair(Options::default(), pair)?;
    let load = scene.load(0.1)?;
    until("the answers", LONG.max(LONG * (answers / 1000)), || match load.complete() {
        complete if complete >= u64::from(answers) => Ok(()),
        complete => Err(format!("{complete} of {answers}")),
    })?;
    let result = load.finish()?;
    report(&result.to_string());
    ensure!(result.is_clean(), "{result}");
    scene.finish()
}

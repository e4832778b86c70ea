//! What each engine has, and the findings about documents that ask for more.
//!
//! Everything compiled is Envoy's own configuration, so Envoy has nearly everything. What an engine lacks is a list; an
//! entry of the native proxy's goes when that reads the fields. What is listed is never sent to an engine by default, and
//! refused by name when it is declared. The native proxy's is empty now: a feature that is declared for Envoy first goes
//! there.

use std::collections::BTreeMap;

use outrider_intent::features::{By, Feature, Use, uses};
use outrider_intent::model::{Engine, Intent, ServiceRef};
use outrider_intent::{Code, Diagnostic, Document, Place};

use crate::view::View;

/// What the native proxy does not have yet.
const NATIVE_LACKS: &[Feature] = &[];

/// What Envoy does not have, or only in builds that are not the usual ones.
const ENVOY_LACKS: &[Feature] = &[Feature::PeakEwma];

/// Most services named in one finding.
const MAX_NAMED: usize = 3;
/// Most findings.
const MAX_FINDINGS: usize = 1_000;

/// Whether an engine has it.
pub(crate) fn has(engine: Engine, feature: Feature) -> bool {
    match engine {
        Engine::Envoy => !ENVOY_LACKS.contains(&feature),
        Engine::Native => !NATIVE_LACKS.contains(&feature),
    }
}

/// A finding for everything that the engine which would carry it out lacks. `documents` are those that `intent` is the
/// meaning of. Nobody carries out what concerns callers only and has none.
pub fn refusals(documents: &[Document], intent: &Intent) -> Vec<Diagnostic> {
    refused(documents, intent, has)
}

/// The same where `has` says which engine has what.
pub(crate) fn refused(
    documents: &[Document],
    intent: &Intent,
    has: impl Fn(Engine, Feature) -> bool,
) -> Vec<Diagnostic> {
    // By engine too, of which a rule may concern both.
    let mut lacking: BTreeMap<(Place, Feature, bool), Vec<ServiceRef>> = BTreeMap::new();
    let uses = uses(documents, intent);
    if uses.is_empty() {
        return Vec::new();
    }
    let view = View::new(intent, "");
    for Use { feature, by, place } in uses {
        let services: Vec<&ServiceRef> = match &by {
            By::Callers(id) => view.callers(id).collect(),
            By::Service(id) => vec![id],
        };
        for id in services {
            let engine = intent.services.get(id).map(|service| service.engine);
            if let Some(engine) = engine.filter(|engine| !has(*engine, feature)) {
                let all = lacking.entry((place.clone(), feature, engine == Engine::Envoy)).or_default();
                if !all.contains(id) {
                    all.push(id.clone());
                }
            }
        }
    }
    let finding = |((place, feature, envoy), services): ((Place, Feature, bool), Vec<ServiceRef>)| {
        let named: Vec<String> = services.iter().take(MAX_NAMED).map(ToString::to_string).collect();
        let more = match services.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (cannot, yet, other) =
            if envoy { ("Envoy", "", "native") } else { ("the native proxy", " yet", "envoy") };
        let message =
            format!("{cannot} cannot {feature}{yet}, and it is the engine of {}{more}", named.join(", "));
        let help = format!(
            "give {} `engine: {other}`, or remove this",
            if services.len() > 1 { "them" } else { "it" }
        );
        Diagnostic::error(Code::EngineCannot, place, message).help(help)
    };
    lacking.into_iter().take(MAX_FINDINGS).map(finding).collect()
}

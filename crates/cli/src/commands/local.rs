//! Commands that need no control plane: `validate`, `schema`, `completions`, `version`.

use clap::CommandFactory;
use outrider_api::http::{DiagnosticView, Source};
use outrider_intent as intent;
use serde::Serialize;

use super::Context;
use crate::args::{Cli, SchemaArgs, ValidateArgs, VersionArgs};
use crate::diagnostics;
use crate::exit::{CliError, Outcome, ok};
use crate::output::{Format, print, show};
use crate::sources;

/// What `validate` found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Validation {
    valid: bool,
    documents: usize,
    diagnostics: Vec<DiagnosticView>,
}

/// `validate -f`.
pub(crate) fn validate(args: &ValidateArgs, context: Context) -> Outcome {
    let sources = sources::read_for("check", &args.files.files, args.files.recursive).map_err(failed)?;
    let (documents, diagnostics) = check(&sources);
    let valid = !diagnostics.iter().any(|view| view.severity == "error");
    let result = Validation { valid, documents, diagnostics };
    diagnostics_or_show(args.output.output, &result, &sources, context)?;
    if valid { ok() } else { Err(CliError::Reported) }
}

fn diagnostics_or_show(
    format: Format,
    result: &Validation,
    sources: &[Source],
    context: Context,
) -> Result<(), CliError> {
    if format == Format::Table {
        diagnostics::report(&result.diagnostics, sources, context.err);
    }
    show(format, result, || {
        if result.valid {
            format!("{}: {} documents\n", context.out.good("valid"), result.documents)
        } else {
            String::new()
        }
    })
}

/// Parses and resolves documents as a complete set: their number, and everything found.
pub(crate) fn check(sources: &[Source]) -> (usize, Vec<DiagnosticView>) {
    let parsed = intent::parse(&diagnostics::intent_sources(sources));
    let resolved = intent::resolve(&parsed.documents, &intent::ResolveOptions::default());
    let mut found = parsed.diagnostics;
    found.extend(resolved.diagnostics);
    if let Some(intent) = &resolved.intent {
        found.extend(outrider_compile::refusals(&parsed.documents, intent));
    }
    (parsed.documents.len(), diagnostics::views(&found))
}

fn failed(error: sources::ReadError) -> CliError {
    CliError::Failed(error.to_string())
}

/// `schema`. A schema has no table: people read it as YAML.
pub(crate) fn schema(args: &SchemaArgs) -> Outcome {
    let schema = intent::schema();
    let format = if args.output == Format::Table { Format::Yaml } else { args.output };
    show(format, &schema, String::new)?;
    ok()
}

/// `completions SHELL`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outrider", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    ok()
}

/// Versions of what this binary speaks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: &'static str,
    api: &'static str,
    intent: [&'static str; 2],
    xds: &'static str,
}

/// `version`.
pub(crate) fn version(args: &VersionArgs) -> Outcome {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        api: "v1",
        intent: [intent::Kind::Service.api_version(), intent::Kind::HttpRoute.api_version()],
        xds: "v3",
    };
    show(args.output.output, &version, || {
        format!(
            "outrider {} (API {}, {}, xDS {})\n",
            version.version,
            version.api,
            version.intent.join(", "),
            version.xds
        )
    })?;
    ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISTAKES: &str = "
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, prot: 80, protocol: http}]}
---
kind: [
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: checkout, namespace: shop}
spec: {role: client, calls: [nowhere, web]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: web}]
  rules: [{backendRefs: [{name: gone, port: 80}]}]
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec: {targetRef: {kind: Service, name: absent}}
";

    #[test]
    fn a_mistake_in_one_document_hides_none_in_another() {
        let (_, found) = check(&[Source { name: "a.yaml".into(), text: MISTAKES.into() }]);
        let codes: Vec<_> = found.iter().map(|one| (one.line, one.code.as_str())).collect();
        assert_eq!(
            codes,
            [
                (5, "missing-field"),
                (5, "unknown-field"),
                (7, "yaml-syntax"),
                (12, "unknown-service"),
                (19, "unknown-service"),
                (24, "unknown-service"),
            ],
            "a service whose document has a mistake is declared all the same"
        );
    }
}

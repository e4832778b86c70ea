//! Showing findings about documents: the control plane's and our own alike, with the lines they are about.

use outrider_api::http::{DiagnosticView, Source};
use outrider_intent as intent;

use crate::output::{Style, note, value};

/// Sources in the shape the intent crate reads.
pub(crate) fn intent_sources(sources: &[Source]) -> Vec<intent::Source> {
    sources
        .iter()
        .map(|source| intent::Source { name: source.name.clone(), text: source.text.clone() })
        .collect()
}

/// Our own findings in the shape of the API.
pub(crate) fn views(diagnostics: &[intent::Diagnostic]) -> Vec<DiagnosticView> {
    diagnostics
        .iter()
        .map(|diagnostic| DiagnosticView {
            severity: diagnostic.severity.as_str().to_owned(),
            code: diagnostic.code.as_str().to_owned(),
            file: diagnostic.place.file.clone(),
            line: diagnostic.place.line,
            column: diagnostic.place.column,
            length: diagnostic.place.length,
            message: diagnostic.message.clone(),
            help: diagnostic.help.clone(),
        })
        .collect()
}

/// The API's findings as text, with snippets where the source is at hand.
pub(crate) fn render(views: &[DiagnosticView], sources: &[Source], style: Style) -> String {
    let (known, others): (Vec<_>, Vec<_>) =
        views.iter().map(|view| (view, from_view(view))).partition(|(_, d)| d.is_some());
    let known: Vec<_> = known.into_iter().filter_map(|(_, diagnostic)| diagnostic).collect();
    let mut text = if known.is_empty() {
        String::new()
    } else {
        intent::render(&known, &intent_sources(sources), style.is_colored())
    };
    // What is no finding about a document's text: refusals of a delete, and codes of a newer control plane.
    for (view, _) in others {
        text.push_str(&other(view, style));
    }
    text
}

/// A finding whose lines are not shown. Without a line, its file is only the name of the object, which the sentence
/// has too.
fn other(view: &DiagnosticView, style: Style) -> String {
    let severity = if view.severity == "error" { style.bad("error") } else { style.warn(&view.severity) };
    let place = match view.line {
        0 => String::new(),
        line => format!("{}:{line}:{}: ", value(&view.file), view.column),
    };
    let mut text = format!("{severity}[{}]: {place}{}\n", value(&view.code), value(&view.message));
    if let Some(help) = &view.help {
        text.push_str(&format!("{}: {}\n", style.bold("help"), value(help)));
    }
    text
}

/// Prints findings on standard error, with a line that counts them.
pub(crate) fn report(views: &[DiagnosticView], sources: &[Source], style: Style) {
    if views.is_empty() {
        return;
    }
    note(render(views, sources, style).trim_end());
    note(&summary(views));
}

/// `2 errors, 1 warning`.
pub(crate) fn summary(views: &[DiagnosticView]) -> String {
    let errors = views.iter().filter(|view| view.severity == "error").count();
    let warnings = views.len() - errors;
    let some = |number: usize, word: &str| {
        (number > 0).then(|| format!("{number} {word}{}", if number == 1 { "" } else { "s" }))
    };
    [some(errors, "error"), some(warnings, "warning")].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn from_view(view: &DiagnosticView) -> Option<intent::Diagnostic> {
    let severity = [intent::Severity::Error, intent::Severity::Warning]
        .into_iter()
        .find(|s| s.as_str() == view.severity)?;
    let code = intent::Code::ALL.iter().copied().find(|code| code.as_str() == view.code)?;
    Some(intent::Diagnostic {
        severity,
        code,
        place: intent::Place {
            file: view.file.clone(),
            line: view.line,
            column: view.column,
            length: view.length,
        },
        message: view.message.clone(),
        help: view.help.clone(),
        related: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(severity: &str, code: &str) -> DiagnosticView {
        DiagnosticView {
            severity: severity.into(),
            code: code.into(),
            file: "a.yaml".into(),
            line: 2,
            column: 3,
            length: 4,
            message: "the sentence".into(),
            help: Some("the help".into()),
        }
    }

    #[test]
    fn views_survive_the_round_trip() {
        let ours = view("error", "unknown-field");
        assert_eq!(views(&[from_view(&ours).unwrap()]), [ours]);
    }

    #[test]
    fn codes_of_a_newer_server_are_still_shown() {
        let mut finding = view("error", "code-of-tomorrow");
        let text = |finding: &DiagnosticView| render(std::slice::from_ref(finding), &[], Style::plain());
        let placed = "error[code-of-tomorrow]: a.yaml:2:3: the sentence\nhelp: the help\n";
        assert_eq!(text(&finding), placed);
        (finding.line, finding.help) = (0, None);
        assert_eq!(text(&finding), "error[code-of-tomorrow]: the sentence\n");
    }

    #[test]
    fn findings_are_counted() {
        let cases = [
            (vec!["error"], "1 error"),
            (vec!["error", "warning", "error"], "2 errors, 1 warning"),
            (vec!["warning"], "1 warning"),
        ];
        for (severities, expected) in cases {
            let all: Vec<_> = severities.iter().map(|s| view(s, "x")).collect();
            assert_eq!(summary(&all), expected);
        }
    }
}

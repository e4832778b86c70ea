//! The result as a page has it: tables, and below them what is missing or failed.

use std::fmt::Write;

use super::{ADDED, CellReport, MemoryReport, Report, ratio, size};
use crate::peers::Proxy;

impl Report {
    /// Tables of CPU by unit, of memory, and of the programs.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        let host = |key: &str| self.host.get(key).map_or("unknown", String::as_str);
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "Commit {}, on {} with Linux {}: {} rounds of {} s, {} in all. Peers: {}.\n",
            host("commit"),
            host("cpu"),
            host("kernel"),
            self.rounds,
            self.seconds,
            crate::plan::minutes(self.took_seconds),
            self.versions(),
        );
        let mut units: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !units.contains(&cell.unit.as_str()) {
                units.push(&cell.unit);
            }
        }
        for unit in units {
            self.cpu(&mut text, unit);
        }
        self.memory(&mut text);
        for line in self.left_out().iter().chain(&self.failures()) {
            let _ = writeln!(text, "- {line}.");
        }
        text
    }

    fn versions(&self) -> String {
        let of = |proxy: &Proxy| self.host.get(proxy.name()).cloned();
        let versions: Vec<String> = Proxy::ALL[1..].iter().filter_map(of).collect();
        if versions.is_empty() { "none".to_owned() } else { versions.join("; ") }
    }

    fn cpu(&self, text: &mut String, unit: &str) {
        let what = if unit == ADDED { unit.to_owned() } else { format!("CPU, {unit}") };
        let _ = writeln!(
            text,
            "| {what} | connections | bytes | ours | Envoy | HAProxy | nginx | ÷ Envoy | ÷ HAProxy | ÷ nginx | goal |\n\
             |---|---|---|---|---|---|---|---|---|---|---|"
        );
        for cell in self.cells.iter().filter(|cell| cell.unit == unit) {
            let cost = |proxy| match cell.of(proxy) {
                Some(reading) if reading.errors > 0 => {
                    reading.cost.map_or("failed".to_owned(), |cost| format!("{} (!)", number(cost.median)))
                }
                Some(reading) => reading.cost.map_or("–".to_owned(), |cost| number(cost.median)),
                None => "–".to_owned(),
            };
            let ratio = |proxy| cell.ratio(proxy).map_or("–".to_owned(), ratio);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                cell.path,
                cell.shape(),
                size(cell.body),
                cost(Proxy::Outrider),
                cost(Proxy::Envoy),
                cost(Proxy::Haproxy),
                cost(Proxy::Nginx),
                ratio(Proxy::Envoy),
                ratio(Proxy::Haproxy),
                ratio(Proxy::Nginx),
                goal(cell),
            );
        }
        text.push('\n');
    }

    fn memory(&self, text: &mut String) {
        let mut whats: Vec<&MemoryReport> = Vec::new();
        for row in &self.memory {
            if !whats.iter().any(|seen| seen.what == row.what) {
                whats.push(row);
            }
        }
        if whats.is_empty() {
            return;
        }
        text.push_str(
            "| memory | unit | ours | Envoy | HAProxy | nginx | goal |\n|---|---|---|---|---|---|---|\n",
        );
        for first in whats {
            let of = |proxy| {
                self.memory
                    .iter()
                    .find(|row| row.what == first.what && row.proxy == proxy && row.missing.is_none())
            };
            let value = |proxy| of(proxy).map_or("–".to_owned(), |row| number(row.value()));
            let goal = match (of(Proxy::Outrider), first.goal) {
                (_, None) => String::new(),
                (Some(row), Some(goal)) if row.value() > goal => format!("≤ {goal}: **missed**"),
                (_, Some(goal)) => format!("≤ {goal}"),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {goal} |",
                first.what,
                if first.connections > 0 { "bytes each" } else { "MiB" },
                value(Proxy::Outrider),
                value(Proxy::Envoy),
                value(Proxy::Haproxy),
                value(Proxy::Nginx),
            );
        }
        text.push('\n');
    }
}

/// As many digits as mean something.
fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn goal(cell: &CellReport) -> String {
    let Some(goal) = cell.goal else { return String::new() };
    let mut text = format!("≤ {:.2}", goal.envoy);
    if let Some(haproxy) = goal.haproxy {
        let _ = write!(text, ", ≤ {haproxy:.1}");
    }
    let missed: Vec<&str> = cell.missed().into_iter().map(Proxy::title).collect();
    if !missed.is_empty() {
        let _ = write!(text, ": **missed** towards {}", missed.join(" and "));
    }
    text
}

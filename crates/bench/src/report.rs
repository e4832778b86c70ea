//! What was read, and how it is printed: columns of text, JSON, or tables for a page.
//!
//! Holds: everything printed comes from the report, so that the file of an earlier run prints the same; a ratio is that
//! of the medians, with the smallest and largest of single rounds beside it. Does not: round away what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::Output;
use crate::measure::median;
use crate::peers::Proxy;
use crate::plan::Goal;

mod markdown;

/// Marks of a page between which the result is put.
const MARKS: (&str, &str) = ("<!-- bench -->", "<!-- /bench -->");

/// The unit of what a proxy adds to the time of the slowest hundredth of requests; all others are of CPU.
pub(crate) const ADDED: &str = "µs added at p99";

/// Smallest, middle and largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of values, if there are any.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        let median = median(&mut values);
        Some(Self { min: *values.first()?, median, max: *values.last()? })
    }

    /// Ours divided by theirs: of the medians, and of the rounds in which both were measured one after the other.
    fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let rounds: Vec<f64> =
            ours.iter().zip(theirs).filter(|(_, theirs)| **theirs > 0.0).map(|(a, b)| a / b).collect();
        let (of_rounds, ours, theirs) = (Self::of(&rounds)?, Self::of(ours)?, Self::of(theirs)?);
        Some(Self { median: ours.median / theirs.median, ..of_rounds })
    }
}

/// What one proxy came to in one cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) proxy: Proxy,
    /// Why it was not measured, if it was not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) missing: Option<String>,
    /// What it cost in the row's unit, in each round.
    pub(crate) costs: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) cost: Option<Spread>,
    /// Ours divided by this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) ours_to_this: Option<Spread>,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) p99_us_median: f64,
    pub(crate) resident_mib: f64,
}

impl Reading {
    /// Nothing, for this reason.
    pub(crate) fn missing(proxy: Proxy, reason: String) -> Self {
        Self {
            proxy,
            missing: Some(reason),
            costs: Vec::new(),
            cost: None,
            ours_to_this: None,
            requests: 0,
            errors: 0,
            p99_us_median: 0.0,
            resident_mib: 0.0,
        }
    }
}

/// A path with connections and a body, by all proxies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CellReport {
    pub(crate) row: String,
    pub(crate) path: String,
    pub(crate) connections: u16,
    pub(crate) streams: u16,
    pub(crate) body: u32,
    pub(crate) unit: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) goal: Option<Goal>,
    pub(crate) proxies: Vec<Reading>,
}

impl CellReport {
    /// Fills in what follows from the costs.
    pub(crate) fn compare(&mut self) {
        let ours = self.of(Proxy::Outrider).map(|reading| reading.costs.clone()).unwrap_or_default();
        for reading in &mut self.proxies {
            reading.cost = Spread::of(&reading.costs);
            if reading.proxy != Proxy::Outrider {
                reading.ours_to_this = Spread::ratio(&ours, &reading.costs);
            }
        }
    }

    fn of(&self, proxy: Proxy) -> Option<&Reading> {
        self.proxies.iter().find(|reading| reading.proxy == proxy)
    }

    fn ratio(&self, proxy: Proxy) -> Option<Spread> {
        self.of(proxy)?.ours_to_this
    }

    /// Peers towards which the goal is missed, by the ratio of medians.
    fn missed(&self) -> Vec<Proxy> {
        let Some(goal) = self.goal else { return Vec::new() };
        let over = |proxy: Proxy, limit: Option<f64>| {
            limit.zip(self.ratio(proxy)).is_some_and(|(limit, ratio)| ratio.median > limit)
        };
        [(Proxy::Envoy, Some(goal.envoy)), (Proxy::Haproxy, goal.haproxy)]
            .into_iter()
            .filter(|(proxy, limit)| over(*proxy, *limit))
            .map(|(proxy, _)| proxy)
            .collect()
    }

    fn shape(&self) -> String {
        if self.streams == 1 {
            self.connections.to_string()
        } else {
            format!("{}×{}", self.connections, self.streams)
        }
    }

    /// One line of progress.
    pub(crate) fn line(&self) -> String {
        let one = |reading: &Reading| match (&reading.missing, reading.cost, reading.ours_to_this) {
            (Some(_), ..) | (None, None, _) => None,
            (_, Some(cost), Some(ratio)) => {
                Some(format!("{} {:.1} (÷ {:.2})", reading.proxy.name(), cost.median, ratio.median))
            }
            (_, Some(cost), None) => Some(format!("{} {:.1}", reading.proxy.name(), cost.median)),
        };
        format!("{} {}", self.proxies.iter().filter_map(one).collect::<Vec<_>>().join(", "), self.unit)
    }
}

/// What one proxy keeps in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemoryReport {
    pub(crate) row: String,
    pub(crate) what: String,
    pub(crate) proxy: Proxy,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) missing: Option<String>,
    /// Silent connections; 0 where it is about resident memory alone.
    pub(crate) connections: usize,
    pub(crate) before_mib: f64,
    pub(crate) after_mib: f64,
    pub(crate) bytes_per_connection: f64,
    /// Of the specification for ours: MiB, or bytes per connection.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) goal: Option<f64>,
}

impl MemoryReport {
    /// What the row is about: bytes of each connection, or MiB.
    fn value(&self) -> f64 {
        if self.connections > 0 { self.bytes_per_connection } else { self.after_mib }
    }
}

/// Everything of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Processor, kernel, commit, versions.
    pub(crate) host: BTreeMap<String, String>,
    pub(crate) rounds: u16,
    pub(crate) seconds: u64,
    pub(crate) took_seconds: u64,
    pub(crate) cells: Vec<CellReport>,
    pub(crate) memory: Vec<MemoryReport>,
}

impl Report {
    /// Reads what [`Report::save`] wrote.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no result", path.display()))
    }

    /// Writes it as JSON.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts it between the marks of a page.
    ///
    /// # Errors
    /// The page has no marks.
    pub(crate) fn put_into(&self, path: &Path) -> Result<()> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parts = text.split_once(MARKS.0).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(MARKS.1)?;
            Some((before, after))
        });
        let Some((before, after)) = parts else {
            bail!("{} has no {} and {}", path.display(), MARKS.0, MARKS.1)
        };
        let text = format!("{before}{}\n\n{}\n{}{after}", MARKS.0, self.markdown().trim_end(), MARKS.1);
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// In the form that was asked for.
    pub(crate) fn print(&self, output: Output) -> Result<String> {
        Ok(match output {
            Output::Table => self.table(),
            Output::Json => serde_json::to_string_pretty(self)?,
            Output::Markdown => self.markdown(),
        })
    }

    /// Who was not measured where, each reason once.
    fn left_out(&self) -> Vec<String> {
        let mut reasons: BTreeMap<(Proxy, &str), BTreeSet<&str>> = BTreeMap::new();
        for cell in &self.cells {
            for reading in &cell.proxies {
                if let Some(reason) = &reading.missing {
                    reasons.entry((reading.proxy, reason)).or_default().insert(&cell.path);
                }
            }
        }
        for row in &self.memory {
            if let Some(reason) = &row.missing {
                reasons.entry((row.proxy, reason)).or_default().insert(&row.what);
            }
        }
        let one = |((proxy, reason), rows): (&(Proxy, &str), &BTreeSet<&str>)| {
            let rows: Vec<&str> = rows.iter().copied().collect();
            format!("{} is not measured at {}: {reason}", proxy.title(), rows.join("; "))
        };
        reasons.iter().map(one).collect()
    }

    fn failures(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for cell in &self.cells {
            for reading in cell.proxies.iter().filter(|reading| reading.errors > 0) {
                lines.push(format!(
                    "{}, {} connections, {} bytes, {}: {} failed beside {} that did not",
                    cell.path,
                    cell.shape(),
                    cell.body,
                    reading.proxy.title(),
                    reading.errors,
                    reading.requests
                ));
            }
        }
        lines
    }

    fn table(&self) -> String {
        let mut text = String::new();
        if !self.cells.is_empty() {
            text.push_str(&format!(
                "{:<38} {:>7} {:>7} {:<9} {:>9} {:<15} {:>22} {:>9} {:>8} {:>7}\n",
                "path",
                "conns",
                "body",
                "proxy",
                "cost",
                "",
                "ours ÷ it (min–max)",
                "p99 µs",
                "RSS MiB",
                "errors"
            ));
        }
        for cell in &self.cells {
            for reading in &cell.proxies {
                let Some(cost) = reading.cost else { continue };
                let ratio = reading.ours_to_this.map(ratio).unwrap_or_default();
                text.push_str(&format!(
                    "{:<38} {:>7} {:>7} {:<9} {:>9.2} {:<15} {:>22} {:>9.0} {:>8.1} {:>7}\n",
                    cell.path,
                    cell.shape(),
                    size(cell.body),
                    reading.proxy.name(),
                    cost.median,
                    cell.unit,
                    ratio,
                    reading.p99_us_median,
                    reading.resident_mib,
                    reading.errors
                ));
            }
        }
        if !self.memory.is_empty() {
            text.push_str(&format!(
                "\n{:<44} {:<9} {:>11} {:>10} {:>10} {:>11}\n",
                "memory", "proxy", "connections", "before MiB", "after MiB", "bytes each"
            ));
        }
        for row in self.memory.iter().filter(|row| row.missing.is_none()) {
            text.push_str(&format!(
                "{:<44} {:<9} {:>11} {:>10.1} {:>10.1} {:>11.0}\n",
                row.what,
                row.proxy.name(),
                row.connections,
                row.before_mib,
                row.after_mib,
                row.bytes_per_connection
            ));
        }
        for cell in self.cells.iter().filter(|cell| cell.goal.is_some()) {
            let missed: Vec<&str> = cell.missed().into_iter().map(Proxy::title).collect();
            if !missed.is_empty() {
                text.push_str(&format!(
                    "goal missed: {}, {} connections, {} bytes: towards {}\n",
                    cell.path,
                    cell.shape(),
                    size(cell.body),
                    missed.join(" and ")
                ));
            }
        }
        for line in self.left_out().iter().chain(&self.failures()) {
            text.push_str(&format!("{line}\n"));
        }
        text
    }
}

/// `0.23 (0.21–0.25)`.
fn ratio(ratio: Spread) -> String {
    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
}

/// Bytes for people.
fn size(bytes: u32) -> String {
    match bytes {
        0 => "0".to_owned(),
        n if n % (1 << 30) == 0 => format!("{} GiB", n >> 30),
        n if n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests;

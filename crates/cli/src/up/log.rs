//! Logs of the tiers that run inside `up`: everything to a file in the state folder, warnings to the view.
//!
//! Holds: the file starts empty each time and is cut off at a limit; a view that is behind loses warnings, never
//! the other way round.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::commands::Context;
use crate::output::note;

/// Name of the file in the state folder.
pub(super) const FILE: &str = "outrider.log";
/// Size at which the file begins anew, in bytes.
const LIMIT: u64 = 32 << 20;

/// Starts logging; without a file the view still gets warnings.
pub(super) fn start(state: &Path, say: mpsc::Sender<String>, context: Context) {
    let path = state.join(FILE);
    let file = File::create(&path)
        .inspect_err(|error| {
            note(&format!(
                "{}: no log: cannot write {}: {error}",
                context.err.warn("warning"),
                path.display()
            ));
        })
        .ok()
        .map(|file| LogFile(Arc::new(Mutex::new(Bounded { file, written: 0 }))));
    let filter = std::env::var("OUTRIDER_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    // What cannot be written would be told on standard error, in the view, and with a panic where that is gone.
    let to_file = file.map(|file| {
        tracing_subscriber::fmt::layer()
            .log_internal_errors(false)
            .with_ansi(false)
            .with_writer(file)
            .with_filter(filter)
    });
    let to_view = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(move || View { say: say.clone(), text: Vec::new() })
        .with_filter(LevelFilter::WARN);
    // Only fails if there is a subscriber already, and then that one logs.
    let _ = tracing_subscriber::registry().with(to_file).with(to_view).try_init();
}

struct Bounded {
    file: File,
    written: u64,
}

#[derive(Clone)]
struct LogFile(Arc<Mutex<Bounded>>);

impl Write for LogFile {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.written + data.len() as u64 > LIMIT {
            log.file.set_len(0)?;
            std::io::Seek::rewind(&mut log.file)?;
            log.written = 0;
        }
        log.file.write_all(data)?;
        log.written += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// One event on its way to the view.
struct View {
    say: mpsc::Sender<String>,
    text: Vec<u8>,
}

impl Write for View {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.text.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text).trim().to_owned();
        if !text.is_empty() {
            let _ = self.say.try_send(text);
        }
    }
}

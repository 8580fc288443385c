//! A progress line on stderr, for work that takes over a second.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::batch_file::BatchFile;
use super::stream::Piece;

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far the reading of a batch has come, while it lives; only where stderr is a terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Of so many bytes, which may be those of several passes.
    pub(super) fn start(bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        let template =
            "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let (done, stop) = channel::<()>();
        let shown = bar.clone();
        // A system that has no thread to spare gets no bar.
        let thread = Builder::new().spawn(move || {
            if stop.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            shown.set_draw_target(ProgressDrawTarget::stderr());
            while stop.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                shown.tick();
            }
            shown.finish_and_clear();
        });
        Self { bar, done: Some(done), thread: thread.ok() }
    }

    /// A piece was worked on.
    pub(super) fn advance(&self, what: &str, batch: &BatchFile, piece: &Piece) {
        let rows = batch.layout.clients();
        self.bar.set_message(format!("{what}, row {} of {rows}", piece.rows.end));
        self.bar.inc((piece.elements() * batch.dtype.bytes()) as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done = None;
        if let Some(thread) = self.thread.take() {
            // It only draws; that it ended is enough.
            drop(thread.join());
        }
    }
}

/// A bar over a known number of steps.
pub(super) fn bar(steps: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg:16} [{bar:40}] {pos}/{len} ({eta} left)") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// A spinner, for steps of which nobody knows how many there will be.
#[cfg(feature = "gpu")]
pub(super) fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

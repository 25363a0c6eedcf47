//! How a model download shows on the terminal; `model pull` and `serve` share it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::model::fetch::Progress;

/// A bar on a terminal; plain lines, one for each source and tenth of the way, elsewhere. Both go to
/// standard error, so that standard output stays the answer's.
#[derive(Debug)]
pub struct DownloadBar {
    bar: ProgressBar,
    plain: bool,
    total: u64,
    done: u64,
    told_tenths: u64,
}

impl DownloadBar {
    /// Draws on standard error, in the way that fits it.
    #[must_use]
    pub fn stderr() -> Self {
        let plain = !std::io::stderr().is_terminal();
        Self { bar: ProgressBar::hidden(), plain, total: 0, done: 0, told_tenths: 0 }
    }

    /// A line of its own, above the bar if there is one.
    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            // Nothing can be said about a standard error that is gone.
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }
}

impl Progress for DownloadBar {
    fn begin(&mut self, model: &str, place: &str, bytes: u64) {
        (self.total, self.done, self.told_tenths) = (bytes, 0, 0);
        self.line(&format!("{model} ({}): from {place}", DecimalBytes(bytes)));
        if self.plain {
            return;
        }
        self.bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let style =
            "  [{bar:24}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        // pip says nothing while it downloads a part; the clock shows that something goes on.
        self.bar.enable_steady_tick(Duration::from_millis(250));
    }

    fn step(&mut self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        self.bar.inc(bytes);
        let tenths = self.done.saturating_mul(10) / self.total.max(1);
        if self.plain && tenths > self.told_tenths {
            self.told_tenths = tenths;
            self.line(&format!("  {} of {}", DecimalBytes(self.done), DecimalBytes(self.total)));
        }
    }

    fn note(&mut self, line: &str) {
        self.line(line);
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }
}

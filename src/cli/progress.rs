//! How work shows on the terminal: a model download, which `model pull` and `serve` share, and a count of things to do.

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

/// How many of so many things are done: a bar on a terminal; elsewhere a line at each tenth of them. On standard error.
#[derive(Debug)]
pub struct Tally {
    bar: ProgressBar,
    plain: bool,
    what: &'static str,
    total: usize,
    told_tenths: usize,
}

impl Tally {
    /// Draws on standard error, in the way that fits it.
    #[must_use]
    pub fn stderr(what: &'static str, total: usize) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(total as u64) };
        if let Ok(style) = ProgressStyle::with_template("  [{bar:24}] {pos}/{len} {msg}  {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Self { bar, plain, what, total, told_tenths: 0 }
    }

    /// So many are done.
    pub fn at(&mut self, done: usize) {
        self.bar.set_position(done as u64);
        if self.plain
            && let Some(line) = self.line(done)
        {
            // Nothing can be said about a standard error that is gone.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// What there is to say of a count; nothing before another tenth is done.
    fn line(&mut self, done: usize) -> Option<String> {
        let tenths = done.saturating_mul(10) / self.total.max(1);
        let new = tenths > self.told_tenths;
        self.told_tenths = self.told_tenths.max(tenths);
        new.then(|| format!("  {done} of {} {}", self.total, self.what))
    }

    /// All are.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_at_each_tenth() {
        let tally =
            |total| Tally { bar: ProgressBar::hidden(), plain: true, what: "texts", total, told_tenths: 0 };
        let mut many = tally(48);
        let lines: Vec<String> = (1..=48).filter_map(|done| many.line(done)).collect();
        assert_eq!(lines.len(), 10);
        assert_eq!([lines[0].as_str(), lines[9].as_str()], ["  5 of 48 texts", "  48 of 48 texts"]);
        let mut few = tally(2);
        assert_eq!((1..=2).filter_map(|done| few.line(done)).count(), 2);
        assert_eq!(tally(0).line(0), None);
    }
}

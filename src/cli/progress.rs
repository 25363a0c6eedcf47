//! How work shows on the terminal: a model download, which `model pull` and `serve` share, and a count of things to do.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

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

/// How many of so many things are done, and when all will be: a bar on a terminal; elsewhere a line at each tenth of them. On standard error.
#[derive(Debug)]
pub struct Tally {
    bar: ProgressBar,
    plain: bool,
    what: String,
    total: usize,
    told_tenths: usize,
    /// What was done before took none of this time.
    before: usize,
    begun: Instant,
}

impl Tally {
    /// Draws on standard error, in the way that fits it. So many are done before it begins.
    #[must_use]
    pub fn stderr(what: &str, total: usize, before: usize) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(total as u64) };
        let bar = bar.with_position(before as u64);
        bar.reset_eta();
        if let Ok(style) = ProgressStyle::with_template("  [{bar:24}] {pos}/{len} {msg}  {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        Self {
            bar,
            plain,
            what: what.to_owned(),
            total,
            told_tenths: tenths(before, total),
            before,
            begun: Instant::now(),
        }
    }

    /// So many are done.
    pub fn at(&mut self, done: usize) {
        self.bar.set_position(done as u64);
        if self.plain
            && let Some(line) = self.line(done, self.begun.elapsed())
        {
            // Nothing can be said about a standard error that is gone.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// What there is to say of a count after so long; nothing before another tenth is done.
    fn line(&mut self, done: usize, took: Duration) -> Option<String> {
        let tenths = tenths(done, self.total);
        if tenths <= self.told_tenths {
            return None;
        }
        self.told_tenths = tenths;
        let each = took.as_secs_f64() / done.saturating_sub(self.before).max(1) as f64;
        let left = (each * self.total.saturating_sub(done) as f64 / 60.0).ceil();
        Some(format!("  {done} of {} {}, {left:.0} min to go", self.total, self.what))
    }

    /// All are.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn tenths(done: usize, total: usize) -> usize {
    done.saturating_mul(10) / total.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_at_each_tenth() {
        let minute = Duration::from_secs(60);
        let mut many = Tally::stderr("texts", 48, 0);
        let lines: Vec<String> = (1..=48).filter_map(|done| many.line(done, minute)).collect();
        assert_eq!(lines.len(), 10);
        let (first, last) = ("  5 of 48 texts, 9 min to go", "  48 of 48 texts, 0 min to go");
        assert_eq!([lines[0].as_str(), lines[9].as_str()], [first, last]);
        let mut few = Tally::stderr("texts", 2, 0);
        assert_eq!((1..=2).filter_map(|done| few.line(done, minute)).count(), 2);
        assert_eq!(Tally::stderr("texts", 0, 0).line(0, minute), None);
        // What was done before is not said again, and took no time.
        let mut later = Tally::stderr("texts", 40, 20);
        assert_eq!(later.line(20, minute), None);
        assert_eq!(later.line(24, minute).unwrap(), "  24 of 40 texts, 4 min to go");
    }
}

//! How much memory the process has, where the system tells.

/// What is in RAM now.
pub(super) fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// Forgets what was in RAM before, where the system can (Linux since 4.0).
pub(super) fn reset_peak() {
    // Where it cannot, the peak is that of the whole run.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most that was in RAM, since the start or [`reset_peak`].
pub(super) fn peak_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// A line of Linux's account of the process.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

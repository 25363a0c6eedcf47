//! How much memory the process has, where the system tells.

/// What is in RAM now.
pub(super) fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// The most that ever was in RAM.
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

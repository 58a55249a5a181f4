//! What the system says of this process: its processor time and its memory. Linux; elsewhere nothing is known.

use std::fs;

/// Processor time of all threads so far.
///
/// **Units**: seconds, in steps of a few milliseconds. Threads that have ended do not count.
pub fn cpu_seconds() -> Option<f64> {
    let tasks = fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Some(nanoseconds.sum::<u64>() as f64 * 1e-9)
}

/// Sets the high-water mark of resident memory to what is resident now; whether that was allowed.
pub fn reset_peak_rss() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// High-water mark of resident memory.
///
/// **Units**: MiB.
pub fn peak_rss_mib() -> Option<f64> {
    parse_peak_rss_mib(&fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_peak_rss_mib(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_mebibytes() {
        assert_eq!(parse_peak_rss_mib("VmPeak:\t 9 kB\nVmHWM:\t  2560 kB\nVmRSS:\t 1 kB\n"), Some(2.5));
        assert_eq!(parse_peak_rss_mib("VmPeak:\t 9 kB\n"), None);
    }
}

//! How much memory this process may use, where the system says so.

use std::fs;

/// Memory of the machine or of the container, whichever is less; `None` where neither is known.
///
/// **Units**: bytes.
pub fn total_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_bytes(&text, "MemTotal"));
    // A container without a limit says "max", which is no number.
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(container).min()
}

/// Memory that could be had now without swapping.
///
/// **Units**: bytes.
pub fn available_bytes() -> Option<u64> {
    fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_bytes(&text, "MemAvailable"))
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_kibibytes() {
        let text = "MemTotal:       24684032 kB\nMemFree:  5 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal"), Some(24_684_032 * 1024));
        assert_eq!(meminfo_bytes(text, "Mem"), None);
        assert_eq!(meminfo_bytes("nonsense", "MemTotal"), None);
    }
}

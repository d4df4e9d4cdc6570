//! The memory that this process holds and may still take, from Linux and the control group.

use std::fs;
use std::path::Path;

/// Available bytes: the lesser of the machine's available memory and the rest under the control
/// group's limit. `None` where the system reports neither.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| kib_field(&text, "MemAvailable:"));
    let group = control_group("/sys/fs/cgroup", "memory.max", "memory.current").or_else(|| {
        control_group(
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        )
    });
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// Resident memory of this process in bytes; 0 where the system does not report it.
#[must_use]
pub fn resident_bytes() -> u64 {
    status_field("VmRSS:")
}

/// Peak resident memory of this process in bytes; 0 where the system does not report it.
#[must_use]
pub fn peak_bytes() -> u64 {
    status_field("VmHWM:")
}

fn status_field(name: &str) -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| kib_field(&text, name))
        .unwrap_or(0)
}

/// A line `Name:   1234 kB` of /proc, in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The rest under a control group's limit. Without a limit the file holds "max" or a number beyond
/// any memory.
fn control_group(folder: &str, limit: &str, used: &str) -> Option<u64> {
    let read = |name: &str| {
        fs::read_to_string(Path::new(folder).join(name))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let limit = read(limit)?;
    (limit < 1 << 60).then(|| limit.saturating_sub(read(used).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_proc_is_read_in_bytes() {
        let text = "MemTotal:  100 kB\nMemAvailable:      12 kB\n";
        assert_eq!(kib_field(text, "MemAvailable:"), Some(12 * 1024));
        assert_eq!(kib_field(text, "Swap:"), None);
    }

    #[test]
    fn no_limit_is_no_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        fs::write(folder.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(control_group(path, "memory.max", "memory.current"), None);
        fs::write(folder.path().join("memory.max"), "1000\n").unwrap();
        fs::write(folder.path().join("memory.current"), "400\n").unwrap();
        assert_eq!(
            control_group(path, "memory.max", "memory.current"),
            Some(600)
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory() {
        assert!(available_bytes().is_some_and(|bytes| bytes > 0));
        assert!(resident_bytes() > 0 && peak_bytes() >= resident_bytes() / 2);
    }
}

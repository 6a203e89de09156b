//! What Linux knows of this process: memory and processor time.

use std::time::Duration;

/// Figures of the process, 0 where Linux doesn't tell them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProcessFigures {
    /// Resident memory.
    pub(super) memory_bytes: u64,
    /// The most that it ever was.
    pub(super) memory_peak_bytes: u64,
    pub(super) cpu_user: Duration,
    pub(super) cpu_system: Duration,
}

impl ProcessFigures {
    pub(super) fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        // The process's name comes second, in parentheses, and may contain anything.
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let time = |ticks_used: u64| Duration::from_millis(ticks_used.saturating_mul(1000) / ticks);
        let kibibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0).saturating_mul(1024)
        };
        Self {
            memory_bytes: kibibytes("VmRSS:"),
            memory_peak_bytes: kibibytes("VmHWM:"),
            cpu_user: time(field(14)),
            cpu_system: time(field(15)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_them() {
        let mut sum = 0_u64;
        let used = loop {
            let figures = ProcessFigures::read();
            if figures.cpu_user + figures.cpu_system > Duration::ZERO {
                break figures;
            }
            sum = (0..1_000_000_u64).fold(sum, |sum, number| sum.wrapping_mul(31).wrapping_add(number));
            std::hint::black_box(sum);
        };
        assert!(used.memory_bytes > 100_000 && used.memory_peak_bytes >= used.memory_bytes / 2);
        assert!(used.cpu_user < Duration::from_secs(3600));
    }
}

//! What a process holds: memory and pipes. Reads /proc only.

use std::fs;
use std::io;

/// Memory in KiB and open pipe ends of one or more processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) rss: u64,
    /// Resident pages divided by the number of processes that share each: what the process adds.
    pub(crate) pss: u64,
    pub(crate) pipes: u64,
}

impl Holdings {
    pub(crate) fn of(processes: &[u32]) -> io::Result<Self> {
        processes.iter().try_fold(Self::default(), |sum, pid| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let (rss, pss) =
                parse_rollup(&rollup).ok_or_else(|| io::Error::other("unreadable /proc/PID/smaps_rollup"))?;
            Ok(Self { rss: sum.rss + rss, pss: sum.pss + pss, pipes: sum.pipes + pipes_of(*pid)? })
        })
    }
}

fn parse_rollup(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((field("Rss:")?, field("Pss:")?))
}

fn pipes_of(pid: u32) -> io::Result<u64> {
    let mut pipes = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor that was closed since the listing is not held.
        let Ok(kind) = fs::read_link(entry?.path()) else { continue };
        pipes += u64::from(kind.to_string_lossy().starts_with("pipe:"));
    }
    Ok(pipes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_and_proportional_memory_are_read() {
        let text =
            "00400000-7fff [rollup]\nRss:    2048 kB\nPss:     512 kB\nPss_Dirty: 9 kB\nPss_Anon: 8 kB\n";
        assert_eq!(parse_rollup(text), Some((2048, 512)));
        assert_eq!(parse_rollup("Rss: 1 kB\n"), None);
    }

    #[test]
    fn an_open_pipe_counts_both_its_ends() {
        let me = [std::process::id()];
        let before = Holdings::of(&me).unwrap();
        let _pipe = io::pipe().unwrap();
        let after = Holdings::of(&me).unwrap();
        assert!(after.pipes >= before.pipes + 2, "{before:?} {after:?}");
        assert!(after.rss >= after.pss && after.pss > 0);
    }
}

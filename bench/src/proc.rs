//! Reads CPU, context switches, memory and descriptors of processes from /proc. It can also reset the
//! kernel's peak RSS.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Counters of one process, or the sum of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Exact CPU time of all live threads.
    pub(crate) on_cpu: Duration,
    pub(crate) user_ticks: u64,
    pub(crate) system_ticks: u64,
    /// Voluntary and involuntary context switches of all live threads.
    pub(crate) switches: u64,
    pub(crate) peak_kib: u64,
    pub(crate) descriptors: u64,
}

impl Process {
    /// Sums over the processes; ended ones count as zero, as old processes end at any time after a reload.
    pub(crate) fn sum(processes: &[u32]) -> io::Result<Self> {
        processes.iter().try_fold(Self::default(), |sum, pid| {
            let one = match Self::read(*pid) {
                Err(error) if has_ended(&error) => return Ok(sum),
                read => read?,
            };
            Ok(Self {
                on_cpu: sum.on_cpu + one.on_cpu,
                user_ticks: sum.user_ticks + one.user_ticks,
                system_ticks: sum.system_ticks + one.system_ticks,
                switches: sum.switches + one.switches,
                peak_kib: sum.peak_kib + one.peak_kib,
                descriptors: sum.descriptors + one.descriptors,
            })
        })
    }

    /// CPU time of all threads, including ended ones, in ticks.
    pub(crate) fn ticked(&self) -> Duration {
        let ticks = u32::try_from(self.user_ticks + self.system_ticks).unwrap_or(u32::MAX);
        let rate = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(u32::MAX).max(1);
        Duration::from_secs(1) / rate * ticks
    }

    fn read(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (user_ticks, system_ticks) = parse_ticks(&stat).ok_or_else(|| unreadable(pid, "stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak_kib = field(&status, "VmHWM:").ok_or_else(|| unreadable(pid, "status"))?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        let mut process = Self { user_ticks, system_ticks, peak_kib, descriptors, ..Self::default() };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may have ended since the listing.
            let Ok((on_cpu, switches)) = read_task(&task?.path()) else { continue };
            process.on_cpu += on_cpu;
            process.switches += switches;
        }
        Ok(process)
    }
}

fn read_task(task: &Path) -> io::Result<(Duration, u64)> {
    let schedstat = fs::read_to_string(task.join("schedstat"))?;
    let on_cpu = schedstat.split_whitespace().next().and_then(|first| first.parse().ok());
    let on_cpu = on_cpu.ok_or_else(|| io::Error::other("unreadable /proc/PID/task/TID/schedstat"))?;
    let status = fs::read_to_string(task.join("status"))?;
    let switches = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
    let switches = switches.into_iter().filter_map(|name| field(&status, name)).sum();
    Ok((Duration::from_nanos(on_cpu), switches))
}

/// Resets the peak RSS to the current RSS.
pub(crate) fn forget_peak(pid: u32) -> io::Result<()> {
    match fs::write(format!("/proc/{pid}/clear_refs"), "5") {
        Err(error) if has_ended(&error) => Ok(()),
        done => done,
    }
}

/// Whether the process has ended: its files are gone, or ESRCH if it ended during the read.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// RSS and PSS in KiB and open pipe ends of one or more processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) rss: u64,
    /// Resident pages divided by the number of processes that share each.
    pub(crate) pss: u64,
    pub(crate) pipes: u64,
}

impl Holdings {
    pub(crate) fn read(processes: &[u32]) -> io::Result<Self> {
        processes.iter().try_fold(Self::default(), |sum, pid| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let (Some(rss), Some(pss)) = (field(&rollup, "Rss:"), field(&rollup, "Pss:")) else {
                return Err(unreadable(*pid, "smaps_rollup"));
            };
            Ok(Self { rss: sum.rss + rss, pss: sum.pss + pss, pipes: sum.pipes + pipes_of(*pid)? })
        })
    }
}

fn pipes_of(pid: u32) -> io::Result<u64> {
    let mut pipes = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may have been closed since the listing.
        let Ok(kind) = fs::read_link(entry?.path()) else { continue };
        pipes += u64::from(kind.to_string_lossy().starts_with("pipe:"));
    }
    Ok(pipes)
}

/// Start time of a process in ticks since boot: distinguishes it from a later process with the same ID.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    after_name(&stat)?.nth(19)?.parse().ok()
}

/// A process and its descendants; nginx works in a child.
pub(crate) fn family_of(root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children: Vec<u32> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        family.extend(children);
        next += 1;
    }
    family
}

/// User and system ticks of a process and all its threads, including ended ones.
fn parse_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = after_name(stat)?.skip(11).map(|field| field.parse().ok());
    Some((fields.next()??, fields.next()??))
}

/// The fields after the name, which is in parentheses and may contain spaces and parentheses.
fn after_name(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace())
}

/// The number on the line with this prefix.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn unreadable(pid: u32, file: &str) -> io::Error {
    io::Error::other(format!("unreadable /proc/{pid}/{file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_parses_any_process_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 900 900 20 0 4 0 1 2 3";
        assert_eq!(parse_ticks(stat), Some((7, 5)));
        assert_eq!(parse_ticks("42 (short) S 1"), None);
    }

    #[test]
    fn proc_status_fields_match_by_whole_name() {
        let rollup = "00400000-7fff [rollup]\nRss:    2048 kB\nPss:     512 kB\nPss_Dirty: 9 kB\n";
        assert_eq!((field(rollup, "Rss:"), field(rollup, "Pss:")), (Some(2048), Some(512)));
        assert_eq!(field(rollup, "Swap:"), None);
    }

    #[test]
    fn descriptor_count_includes_both_pipe_ends() {
        let me = [std::process::id()];
        let before = Holdings::read(&me).unwrap();
        let _pipe = io::pipe().unwrap();
        let after = Holdings::read(&me).unwrap();
        assert!(after.pipes >= before.pipes + 2, "{before:?} {after:?}");
        assert!(after.rss >= after.pss && after.pss > 0);
    }

    #[test]
    fn memory_peak_persists_until_reset() {
        let me = std::process::id();
        let peak = || Process::sum(&[me]).unwrap().peak_kib;
        forget_peak(me).unwrap();
        let before = peak();
        drop(std::hint::black_box(vec![1_u8; 64 << 20]));
        assert!(peak() >= before + (60 << 10), "64 MiB were resident");
        forget_peak(me).unwrap();
        assert!(peak() < before + (60 << 10), "and no longer are");
    }
}

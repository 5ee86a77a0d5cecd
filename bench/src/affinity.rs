//! A core for the proxy and the others for the load generator, while something is measured that depends on
//! it: left to itself, the kernel puts the few threads of a round trip on one core or on two, for as long as
//! the processes live, and a trip takes 40 µs or 75.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// While it lives, a proxy and this program share no core.
#[derive(Debug)]
pub(crate) struct Apart {
    proxy: Vec<u32>,
    before: CpuSet,
}

impl Apart {
    /// The proxy gets the last core that this program may use. On a single core nothing changes.
    pub(crate) fn new(proxy: &[u32]) -> io::Result<Self> {
        let before = sched_getaffinity(None)?;
        let apart = Self { proxy: proxy.to_vec(), before };
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| before.is_set(*core)).collect();
        if let Some((last, others @ [_, ..])) = cores.split_last() {
            apart.put(proxy, std::slice::from_ref(last))?;
            apart.put(&[std::process::id()], others)?;
        }
        Ok(apart)
    }

    fn put(&self, processes: &[u32], cores: &[usize]) -> io::Result<()> {
        let mut set = CpuSet::new();
        cores.iter().for_each(|core| set.set(*core));
        processes.iter().try_for_each(|process| confine(*process, &set))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for process in self.proxy.iter().chain(&[std::process::id()]) {
            // What was allowed before is allowed again.
            let _ = confine(*process, &self.before);
        }
    }
}

/// All threads of a process; those that they start later inherit it.
fn confine(process: u32, set: &CpuSet) -> io::Result<()> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return Ok(()) };
    for task in tasks {
        let id = task?.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        match sched_setaffinity(id, set) {
            // A thread that ended since the listing needs no core.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn reserved_core_is_the_proxys_until_guard_drops() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let id = Pid::from_child(&child);
        let cores = |of: Option<Pid>| {
            let set = sched_getaffinity(of).unwrap();
            (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect::<Vec<_>>()
        };
        let all = cores(None);
        let apart = Apart::new(&[child.id()]).unwrap();
        let (proxy, own) = (cores(Some(id)), cores(None));
        drop(apart);
        let after = (cores(Some(id)), cores(None));
        child.kill().unwrap();
        child.wait().unwrap();
        if all.len() > 1 {
            assert_eq!(proxy, all[all.len() - 1..]);
            assert_eq!(own, all[..all.len() - 1]);
        }
        assert_eq!(after, (all.clone(), all));
    }
}

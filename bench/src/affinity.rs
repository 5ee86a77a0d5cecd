//! Reserves a core for the proxy, and the others for the load generator, during measurements that depend on
//! it: otherwise the kernel places the few threads of a round trip on one core or on two, for the life of the
//! processes, and a trip takes 40 µs or 75 µs.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Keeps a proxy and this program on separate cores until dropped.
#[derive(Debug)]
pub(crate) struct Apart {
    proxy: Vec<u32>,
    before: CpuSet,
}

impl Apart {
    /// Gives the proxy the last core that this program may use. Does nothing on a single core.
    pub(crate) fn new(proxy: &[u32]) -> io::Result<Self> {
        let before = sched_getaffinity(None)?;
        let apart = Self { proxy: proxy.to_vec(), before };
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| before.is_set(*core)).collect();
        if let Some((last, others @ [_, ..])) = cores.split_last() {
            apart.pin(proxy, std::slice::from_ref(last))?;
            apart.pin(&[std::process::id()], others)?;
        }
        Ok(apart)
    }

    fn pin(&self, processes: &[u32], cores: &[usize]) -> io::Result<()> {
        let mut set = CpuSet::new();
        cores.iter().for_each(|core| set.set(*core));
        processes.iter().try_for_each(|process| confine(*process, &set))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for process in self.proxy.iter().chain(&[std::process::id()]) {
            // Restores the previous affinity.
            let _ = confine(*process, &self.before);
        }
    }
}

/// Sets the affinity of all threads of a process; later threads inherit it.
fn confine(process: u32, set: &CpuSet) -> io::Result<()> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return Ok(()) };
    for task in tasks {
        let id = task?.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        match sched_setaffinity(id, set) {
            // A thread may have ended since the listing.
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

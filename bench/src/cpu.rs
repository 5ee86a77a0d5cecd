//! Measures CPU time during a measurement, from /proc.
//!
//! There are two totals, each with its own error. `machine` is all time that was not idle (/proc/stat):
//! complete, but it includes other programs, and the kernel samples it by ticks. `processes` is this program
//! (load and backend) plus the proxy: exact and without other programs, but it lacks the kernel's own
//! threads. On loopback the sender of a packet also processes its arrival, so the two agree on a quiet
//! machine, except under loads of many short sleeps, which ticks sample badly.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::proc::{self, Process};
use crate::sample::number;

/// CPU seconds of an interval.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) wall: f64,
    /// The whole machine without idle, iowait and steal.
    pub(crate) machine: f64,
    /// This program and the proxy.
    pub(crate) processes: f64,
    /// The proxy alone; `None` without a proxy.
    pub(crate) proxy: Option<ProxyUsage>,
    pub(crate) cores: f64,
}

/// Resource use of a proxy in an interval.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProxyUsage {
    /// User and system time in seconds.
    pub(crate) cpu: f64,
    pub(crate) user: f64,
    pub(crate) switches: f64,
    /// Highest value in the interval, in MiB.
    pub(crate) peak_rss: f64,
    /// Open descriptors at the end of the interval.
    pub(crate) descriptors: f64,
}

impl Usage {
    /// `machine` minus `processes`, as a share of the machine. Positive: other programs or the kernel's own
    /// threads. Negative: sampling missed work that sleeps between ticks.
    pub(crate) fn gap(&self) -> f64 {
        (self.machine - self.processes) / (self.wall * self.cores)
    }
}

/// Measures from `start` to `stop`.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    proxy: &'a [u32],
    began: Instant,
    machine: f64,
    own: Duration,
    before: Process,
    cores: usize,
}

impl<'a> Meter<'a> {
    /// Starts measuring; `proxy` lists the processes of the proxy, if any.
    pub(crate) fn start(proxy: &'a [u32]) -> io::Result<Self> {
        for pid in proxy {
            proc::forget_peak(*pid)?;
        }
        let (machine, cores) = machine_ticks()?;
        let before = Process::sum(proxy)?;
        Ok(Self { proxy, machine: seconds(machine), before, own: own_cpu(), cores, began: Instant::now() })
    }

    pub(crate) fn stop(self) -> io::Result<Usage> {
        let wall = self.began.elapsed().as_secs_f64();
        let own = own_cpu().saturating_sub(self.own).as_secs_f64();
        let after = Process::sum(self.proxy)?;
        let machine = seconds(machine_ticks()?.0) - self.machine;
        let proxy = (!self.proxy.is_empty()).then(|| usage_between(&self.before, &after));
        let processes = own + proxy.map_or(0.0, |proxy| proxy.cpu);
        Ok(Usage { wall, machine, processes, proxy, cores: count(self.cores) })
    }
}

fn usage_between(before: &Process, after: &Process) -> ProxyUsage {
    let cpu = after.on_cpu.saturating_sub(before.on_cpu).as_secs_f64();
    let user = after.user_ticks.saturating_sub(before.user_ticks);
    let ticks = user + after.system_ticks.saturating_sub(before.system_ticks);
    // Ticks are coarse; they only split the exact sum into user and system.
    let share = if ticks == 0 { 0.0 } else { number(user) / number(ticks) };
    ProxyUsage {
        cpu,
        user: cpu * share,
        switches: number(after.switches.saturating_sub(before.switches)),
        peak_rss: number(after.peak_kib) / 1024.0,
        descriptors: number(after.descriptors),
    }
}

fn own_cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn machine_ticks() -> io::Result<(u64, usize)> {
    let text = fs::read_to_string("/proc/stat")?;
    parse_machine(&text).ok_or_else(|| io::Error::other("/proc/stat has no cpu line"))
}

/// Busy ticks of all cores, and the number of cores.
fn parse_machine(stat: &str) -> Option<(u64, usize)> {
    let total = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = total.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; user includes guest time.
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields.as_slice() else { return None };
    let cores = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    Some((user + nice + system + irq + softirq, cores))
}

fn seconds(ticks: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "ticks of 10 ms stay exact for millions of years")]
    let (ticks, rate) = (ticks as f64, rustix::param::clock_ticks_per_second() as f64);
    ticks / rate
}

#[expect(clippy::cast_precision_loss, reason = "a number of cores is small")]
fn count(cores: usize) -> f64 {
    cores as f64
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn machine_busy_time_excludes_idle_iowait_steal_and_guest() {
        let stat = "cpu  10 20 30 1000 2000 40 50 3000 4000 5000\ncpu0 1 2 3\ncpu1 4 5 6\nintr 7\n";
        assert_eq!(parse_machine(stat), Some((150, 2)));
        assert_eq!(parse_machine("cpu  1 2 3\n"), None, "truncated line");
        assert_eq!(parse_machine("intr 7\n"), None);
    }

    #[test]
    fn cpu_measurement_sees_known_work() {
        let meter = Meter::start(&[]).unwrap();
        let before = own_cpu();
        let mut sum = 0_u64;
        while own_cpu() < before + Duration::from_millis(200) {
            sum = std::hint::black_box(sum + 1);
        }
        let usage = meter.stop().unwrap();
        assert!(usage.processes >= 0.2, "{usage:?}");
        assert!(usage.proxy.is_none());
    }

    #[test]
    fn cpu_measurement_matches_proxy_of_known_cost() {
        // On request it spends 0.3 s in user code, by the kernel's own count.
        let script = "import sys, time
sys.stdin.readline()
began = time.process_time()
while time.process_time() < began + 0.3: sum(range(100000))
print('done', flush=True)
sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let processes = [child.id()];
        let meter = Meter::start(&processes).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let usage = meter.stop().unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        let proxy = usage.proxy.unwrap();
        // May include the interpreter's start.
        assert!((0.3..0.6).contains(&proxy.cpu), "{proxy:?}");
        assert!(proxy.user > proxy.cpu / 2.0 && proxy.user <= proxy.cpu, "mostly user time: {proxy:?}");
        assert!(proxy.peak_rss > 1.0 && proxy.descriptors >= 3.0, "{proxy:?}");
        assert!(usage.processes >= proxy.cpu, "{usage:?}");
    }

    #[test]
    fn cpu_gap_is_positive_for_other_processes_and_negative_for_missed_work() {
        let usage = Usage { wall: 2.0, machine: 3.0, processes: 2.0, proxy: None, cores: 2.0 };
        assert!((usage.gap() - 0.25).abs() < 1e-9);
        let sampled_low = Usage { machine: 1.0, ..usage };
        assert!((sampled_low.gap() + 0.25).abs() < 1e-9);
    }
}

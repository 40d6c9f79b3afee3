//! Clocks, memory and load of this Linux machine, and the secrets stored on it.

mod scopes;
mod secrets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;
use rustix::time::{ClockId, Timespec, clock_gettime};

pub use self::scopes::{Scope, Scopes};
pub use self::secrets::MountedSecrets;
use crate::ports::Host;

/// This machine as seen by this process, including the limits of its control groups.
#[derive(Debug, Clone)]
pub struct Linux {
    proc: PathBuf,
    cgroup: PathBuf,
}

impl Default for Linux {
    fn default() -> Self {
        Self { proc: "/proc".into(), cgroup: "/sys/fs/cgroup".into() }
    }
}

impl Host for Linux {
    fn now(&self) -> Millis {
        let now = clock_gettime(ClockId::Realtime);
        Millis(now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000))
    }

    fn since_boot(&self) -> Duration {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
        // The kernel returns neither negative times nor more than a second of nanoseconds.
        let (secs, nanos) = (u64::try_from(tv_sec), u32::try_from(tv_nsec));
        Duration::new(secs.unwrap_or_default(), nanos.unwrap_or_default())
    }

    fn memory(&self) -> NodeMemory {
        let text = read(&self.proc.join("meminfo")).unwrap_or_default();
        let kib = |name: &str| field(&text, name).map(|kib| kib.saturating_mul(1024));
        let mut memory = NodeMemory {
            free: kib("MemAvailable:").or_else(|| kib("MemFree:")).unwrap_or(0),
            total: kib("MemTotal:").unwrap_or(0),
        };
        for group in self.memory_groups() {
            group.bound(&mut memory);
        }
        memory
    }

    fn cpu(&self) -> NodeCpu {
        let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        NodeCpu { count: u32::try_from(usable).unwrap_or(u32::MAX), load: self.load() }
    }

    fn name(&self) -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }
}

/// A control group that can limit memory, with the file names of its version.
struct MemoryGroup {
    dir: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// Field with the reclaimable part of the usage: page cache not used recently.
    reclaimable: &'static str,
}

impl MemoryGroup {
    fn bound(&self, memory: &mut NodeMemory) {
        // `max`, or no file in the root group, means unlimited.
        let Some(limit) = number(&self.dir.join(self.limit)) else { return };
        memory.total = memory.total.min(limit);
        let Some(usage) = number(&self.dir.join(self.usage)) else { return };
        let stat = read(&self.dir.join("memory.stat")).unwrap_or_default();
        let used = usage.saturating_sub(field(&stat, self.reclaimable).unwrap_or(0));
        memory.free = memory.free.min(limit.saturating_sub(used));
    }
}

impl Linux {
    /// The control groups of this process and their ancestors. Each can have a limit.
    fn memory_groups(&self) -> Vec<MemoryGroup> {
        let mut groups = Vec::new();
        for line in read(&self.proc.join("self/cgroup")).unwrap_or_default().lines() {
            // `hierarchy:controllers:path`. In version 2, the list of controllers is empty.
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let path = Path::new(path.trim_start_matches('/'));
            let v1 = controllers.split(',').any(|controller| controller == "memory");
            if !v1 && !controllers.is_empty() {
                continue;
            }
            let root = if v1 { self.cgroup.join("memory") } else { self.cgroup.clone() };
            // In a container with its own cgroup namespace, the path might not exist. Its limits
            // are then at the root of the visible tree.
            for dir in path.ancestors().map(|part| root.join(part)) {
                groups.push(if v1 {
                    MemoryGroup {
                        dir,
                        limit: "memory.limit_in_bytes",
                        usage: "memory.usage_in_bytes",
                        reclaimable: "total_inactive_file",
                    }
                } else {
                    MemoryGroup {
                        dir,
                        limit: "memory.max",
                        usage: "memory.current",
                        reclaimable: "inactive_file",
                    }
                });
            }
        }
        groups
    }

    /// The one-minute load average as a share of all processors, or -1 if unknown.
    fn load(&self) -> f64 {
        let stat = read(&self.proc.join("stat")).unwrap_or_default();
        let is_processor = |line: &&str| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let processors = u32::try_from(stat.lines().filter(is_processor).count()).unwrap_or(1);
        let average = read(&self.proc.join("loadavg"))
            .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        average.map_or(-1.0, |average| average / f64::from(processors.max(1)))
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine with 1000 MiB of memory, 600 MiB of them available, and the given files.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Linux) {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal: 1024000 kB\nMemFree: 102400 kB\nMemAvailable: 614400 kB\n";
        for (path, text) in [("proc/meminfo", meminfo)].iter().chain(files) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Linux { proc: dir.path().join("proc"), cgroup: dir.path().join("cgroup") };
        (dir, host)
    }

    fn mib(files: &[(&str, &str)]) -> (u64, u64) {
        let (_dir, host) = machine(files);
        let NodeMemory { free, total } = host.memory();
        (free / MIB, total / MIB)
    }

    #[test]
    fn without_a_limit_memory_is_that_of_the_machine() {
        assert_eq!(mib(&[]), (600, 1000));
        let unlimited =
            [("proc/self/cgroup", "0::/user.slice\n"), ("cgroup/user.slice/memory.max", "max\n")];
        assert_eq!(mib(&unlimited), (600, 1000));
    }

    #[test]
    fn the_tightest_control_group_up_to_the_root_limits_memory() {
        let files = [
            ("proc/self/cgroup", "0::/a.slice/b.scope\n"),
            ("cgroup/a.slice/memory.max", "314572800\n"),
            ("cgroup/a.slice/memory.current", "104857600\n"),
            ("cgroup/a.slice/memory.stat", "anon 1\ninactive_file 52428800\n"),
            ("cgroup/a.slice/b.scope/memory.max", "524288000\n"),
            ("cgroup/a.slice/b.scope/memory.current", "0\n"),
        ];
        assert_eq!(mib(&files), (250, 300), "what the kernel gives back is not used");
    }

    #[test]
    fn the_limit_of_a_hidden_control_group_is_read_at_the_root() {
        let files = [
            ("proc/self/cgroup", "0::/machine/not/here\n"),
            ("cgroup/memory.max", "209715200\n"),
            ("cgroup/memory.current", "314572800\n"),
        ];
        assert_eq!(mib(&files), (0, 200), "more than all is nothing left");
    }

    #[test]
    fn version_1_control_groups_limit_memory() {
        let files = [
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x/y\n1:name=systemd:/x\n"),
            ("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cgroup/memory/x/y/memory.limit_in_bytes", "104857600\n"),
            ("cgroup/memory/x/y/memory.usage_in_bytes", "52428800\n"),
            ("cgroup/memory/x/y/memory.stat", "inactive_file 1\ntotal_inactive_file 10485760\n"),
        ];
        assert_eq!(mib(&files), (60, 100));
    }

    #[test]
    fn load_is_a_share_of_all_processors_and_negative_if_unknown() {
        let files = [
            ("proc/loadavg", "3.00 1.00 0.50 2/345 6789\n"),
            ("proc/stat", "cpu  1 2 3\ncpu0 1\ncpu1 1\ncpu2 1\ncpu3 1\nintr 5\n"),
        ];
        let (_dir, host) = machine(&files);
        assert!((host.cpu().load - 0.75).abs() < 1e-9);
        let (_dir, host) = machine(&[]);
        assert!(host.cpu().load < 0.0);
    }

    #[test]
    fn this_machine_has_clocks_memory_processors_and_a_name() {
        let host = Linux::default();
        let (boot, now) = (host.since_boot(), host.now());
        assert!(boot > Duration::ZERO && host.since_boot() >= boot);
        assert!(now.0 > 1_700_000_000_000, "{now:?} is not in this decade");
        let memory = host.memory();
        assert!(0 < memory.free && memory.free <= memory.total, "{memory:?}");
        assert!(host.cpu().count >= 1);
        assert!(!host.name().is_empty());
    }
}

//! Test hosts delegate no controllers, so most tests write to plain directories laid out like a
//! delegated group. They show which values are written where, not that the kernel enforces a limit.
//! On hosts with a writable group of version 2, groups are really created, entered, killed and
//! removed, but without a controller.

use std::process::{Command, Stdio};

use super::*;

const MOUNTS: &str = "\
25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw
36 25 0:31 /user.slice /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
";

/// A plain directory laid out like a delegated group.
fn delegated(controllers: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
    for file in [PROCESSES, HANDED_ON] {
        std::fs::write(dir.path().join(file), "").unwrap();
    }
    dir
}

fn run(id: &str) -> RunId {
    id.parse().unwrap()
}

#[test]
fn the_own_group_is_found_by_its_mount_and_a_leaf_of_a_worker_is_not_taken_for_it() {
    let of = |group: &str| find(&format!("3:cpu:/x\n0::{group}\n"), MOUNTS);
    let unit = Some(PathBuf::from("/sys/fs/cgroup/a.service"));
    assert_eq!(of("/user.slice/a.service"), unit);
    assert_eq!(of("/user.slice/a.service/bob-runner"), unit);
    assert_eq!(of("/system.slice/a.service"), None, "it lies outside of what is mounted");
    let whole = of("/user.slice").unwrap();
    assert_eq!(whole.to_str(), Some("/sys/fs/cgroup"));
    assert_eq!(find("3:cpu:/x\n", MOUNTS), None);
    assert_eq!(find("0::/\n", "25 30 0:23 / /sys rw - sysfs sysfs rw\n"), None);
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let whole = delegated("cpuset cpu io memory pids");
    assert_eq!(refused(Some(whole.path())), None);
    let poor = delegated("pids hugetlb");
    let said = refused(Some(poor.path())).unwrap();
    assert!(said.contains("has no cpu and no memory controller (set Delegate=yes"), "{said}");
    std::fs::remove_file(whole.path().join(HANDED_ON)).unwrap();
    assert!(refused(Some(whole.path())).unwrap().contains("is not its own to change"));
    assert!(refused(None).unwrap().contains("no control groups of version 2"));
}

#[test]
fn a_group_with_processes_of_others_is_not_taken_unless_it_hands_on_already() {
    let own = delegated("cpu memory pids");
    std::fs::write(own.path().join(PROCESSES), format!("{}\n", std::process::id())).unwrap();
    assert_eq!(refused(Some(own.path())), None);
    std::fs::write(own.path().join(PROCESSES), "1\n").unwrap();
    assert!(refused(Some(own.path())).unwrap().contains("other processes"));
    std::fs::write(own.path().join(HANDED_ON), "cpu memory pids\n").unwrap();
    assert_eq!(refused(Some(own.path())), None);
}

#[test]
fn a_step_has_a_group_with_its_limits_beside_the_leaf_of_the_worker() {
    let own = delegated("cpu memory pids");
    let limits = Limits { cpu: "0.5".parse().ok(), mem: "64M".parse().ok() };
    let group = Group::make(own.path(), (&run("r-a.b"), "0-1"), &limits, Some(9)).unwrap();
    let read = |file: &str| std::fs::read_to_string(own.path().join(file)).unwrap();
    assert_eq!(read(HANDED_ON), "+cpu +memory +pids");
    // Each write moves one process, so a plain file holds the last one.
    assert!(ours().contains(&read("bob-runner/cgroup.procs")));
    assert_eq!(group.dir(), own.path().join("r-a.b.0-1"));
    assert_eq!(read("r-a.b.0-1/memory.max"), "67108864");
    assert_eq!(read("r-a.b.0-1/memory.swap.max"), "0");
    assert_eq!(read("r-a.b.0-1/memory.oom.group"), "1");
    assert_eq!(read("r-a.b.0-1/pids.max"), "9");
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(read("r-a.b.0-1/cpu.max"), format!("{} 100000", cores * 50_000));
    assert!(!group.is_out_of_memory());
    std::fs::write(group.dir().join("memory.events"), "low 0\noom 3\noom_kill 0\n").unwrap();
    assert!(!group.is_out_of_memory());
    std::fs::write(group.dir().join("memory.events"), "oom 3\noom_kill 1\n").unwrap();
    assert!(group.is_out_of_memory());
}

#[test]
fn a_share_of_all_processors_is_no_less_than_the_kernel_takes() {
    assert_eq!((quota(1.0, 4), quota(0.25, 2), quota(0.000_1, 1)), (400_000, 50_000, 1000));
}

#[test]
fn what_a_run_has_left_is_removed_and_nothing_of_another_one() {
    let own = tempfile::tempdir().unwrap();
    for group in ["r-a.0-1/below", "r-a.12-2", "r-a.b.0-1", "bob-runner"] {
        std::fs::create_dir_all(own.path().join(group)).unwrap();
    }
    // In a plain directory, a written `cgroup.kill` file would block the removal. Make it a
    // directory, so that writing to it fails.
    let killed = own.path().join("r-a.0-1/cgroup.kill");
    std::fs::create_dir(killed).unwrap();
    std::fs::create_dir(own.path().join("r-a.12-2/cgroup.kill")).unwrap();
    forget(own.path(), &run("r-a")).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(own.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["bob-runner", "r-a.b.0-1"]);
    forget(own.path(), &run("r-a")).unwrap();
    forget(Path::new("/nowhere"), &run("r-a")).unwrap();
}

#[test]
fn a_real_group_is_killed_with_what_is_below_it_and_removed() {
    // Skip if this host does not allow creating groups.
    let Some(own) = own().filter(|own| access(own, Access::WRITE_OK).is_ok()) else { return };
    let group = Group::of(own.join(format!("bob-test-{}.0-1", std::process::id())));
    let inner = Group::of(group.dir().join("inner"));
    if std::fs::create_dir_all(inner.dir()).is_err() {
        return;
    }
    let enter = "echo $$ > \"$0/cgroup.procs\" && echo in && exec sleep 1000";
    let mut inside: Vec<_> = [&group, &inner]
        .map(|group| {
            let mut command = Command::new("sh");
            command.args(["-c", enter]).arg(group.dir()).stdout(Stdio::piped());
            command.spawn().unwrap()
        })
        .into();
    for process in &mut inside {
        let mut said = [0; 3];
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut said).unwrap();
    }
    assert_eq!(words(&inner.dir().join(PROCESSES)), [inside[1].id().to_string()]);
    // A zombie stays in its group until its parent has waited for it.
    let ending = group.clone();
    let ends = std::thread::spawn(move || ending.end());
    for process in &mut inside {
        assert!(!process.wait().unwrap().success());
    }
    ends.join().unwrap().unwrap();
    assert!(!group.dir().exists());
    group.end().unwrap();
}

//! Checks the programs, the user and the disks of this host.

use std::path::{Path, PathBuf};

use super::check::Check;
use crate::config::{self, Config};
use crate::ports::Disk;

/// Checks the requirements of rootless podman for this user. Called if no engine answers.
pub(super) fn rootless(engine: &config::Engine) -> Vec<Check> {
    let mut checks = vec![match &engine.program {
        Some(path) => Check::ok("podman", format!("found {}", path.display())),
        None => Check::fail(
            "podman",
            "podman is not in PATH",
            "install it: `apt install podman uidmap slirp4netns`",
        ),
    }];
    if rustix::process::geteuid().is_root() {
        checks.push(Check::warn(
            "user",
            "the user is root, but podman must be rootless",
            "run bob-runner as an ordinary user, or set CONTAINER_ENGINE_URL to the socket of one",
        ));
        return checks;
    }
    checks.push(match &engine.uid_mapper {
        Some(path) => Check::ok("newuidmap", format!("found {}", path.display())),
        None => {
            Check::fail("newuidmap", "newuidmap is not in PATH", "install it: `apt install uidmap`")
        }
    });
    let user = user_name();
    for (name, file) in [("subuid", "/etc/subuid"), ("subgid", "/etc/subgid")] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let uid = rustix::process::getuid().as_raw();
        checks.push(if has_range(&text, user.as_deref(), uid) {
            Check::ok(name, format!("{file} has a range for this user"))
        } else {
            let login = user.clone().unwrap_or_else(|| uid.to_string());
            Check::fail(
                name,
                format!("{file} has no range for {login}"),
                format!(
                    "run as root: `usermod --add-subuids 100000-165535 --add-subgids \
                     100000-165535 {login}`"
                ),
            )
        });
    }
    checks
}

fn user_name() -> Option<String> {
    let uid = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    find_user_name(&users, uid)
}

/// Finds the name of a user ID in the text of `/etc/passwd`.
fn find_user_name(users: &str, uid: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    })
}

/// Returns whether the text of `/etc/subuid` or `/etc/subgid` has a line for the user, by name or ID.
fn has_range(text: &str, user: Option<&str>, uid: u32) -> bool {
    text.lines().filter_map(|line| line.split(':').next()).any(|owner| {
        user.is_some_and(|user| user == owner)
            || owner.parse::<u32>().is_ok_and(|number| number == uid)
    })
}

/// Reports whether limits of steps on this host are enforced. `rejection` is the reason if they are
/// rejected.
pub(super) fn limits(rejection: Option<String>) -> Check {
    match rejection {
        None => Check::ok("local limits", "`quotas.limits` of steps on this host are enforced"),
        Some(why) => {
            // The reason is also the message of rejected steps, so its advice is in parentheses.
            let (cause, advice) = why.split_once(" (").unwrap_or((&why, ""));
            Check::warn(
                "local limits",
                format!("`quotas.limits` of steps on this host are rejected: {cause}"),
                match advice.trim_end_matches(')') {
                    "" => "do nothing, unless a pipeline needs such limits".to_owned(),
                    advice => format!("only if a pipeline needs such limits: {advice}"),
                },
            )
        }
    }
}

/// The name of the check for the engine's disk. Workers watch the usage of this disk themselves.
const IMAGES_DISK: &str = "disk of images";

/// Checks the free space of the disks that a worker fills. `images` is the engine's directory for
/// images, if it is on this host.
pub(super) fn disks(config: &Config, images: Option<&Path>) -> Vec<Check> {
    let mut directories = vec![("disk of events", config.spill.dir.clone())];
    match config.mode {
        config::Mode::Embedded => directories.push(("disk of the store", config.data_dir.clone())),
        config::Mode::Cluster => {}
    }
    directories.extend(images.map(|dir| (IMAGES_DISK, dir.to_owned())));
    let checks = directories.into_iter().filter_map(|(name, path)| {
        let path = closest_existing(&path)?;
        let stat = rustix::fs::statvfs(&path).ok()?;
        let disk = Disk::of_blocks(stat.f_frsize, stat.f_blocks, stat.f_bfree, stat.f_bavail);
        let (used, free) = (disk.percent(), disk.free);
        if disk.total == 0 {
            return None;
        }
        let found = format!("{} is {used}% full, {} MiB free", path.display(), free >> 20);
        Some(if used >= 98 {
            Check::fail(name, found, "free some space: nothing more can be stored on this disk")
        } else if used >= config.worker.disk_high && name == IMAGES_DISK {
            let low = config.worker.disk_low;
            let advice =
                format!("free some space: workers accept no new runs until usage is below {low}%");
            Check::warn(name, found, advice)
        } else if used >= config.worker.disk_high {
            Check::warn(name, found, "free some space")
        } else {
            Check::ok(name, found)
        })
    });
    checks.collect()
}

/// Returns the path if it exists, or else its closest existing ancestor.
fn closest_existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|ancestor| ancestor.exists()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_user_name_and_by_user_id() {
        let text = "alice:100000:65536\n1001:165536:65536\n";
        assert!(has_range(text, Some("alice"), 1000));
        assert!(has_range(text, None, 1001));
        assert!(!has_range(text, Some("bob"), 1002));
        assert!(!has_range("", Some("bob"), 1002));
    }

    #[test]
    fn the_reason_for_rejected_limits_is_split_into_finding_and_advice() {
        let check = limits(Some("the group /x has no cpu controller (start it with y)".into()));
        assert!(check.found.ends_with("are rejected: the group /x has no cpu controller"));
        assert_eq!(
            check.advice.as_deref(),
            Some("only if a pipeline needs such limits: start it with y")
        );
        assert!(limits(Some("a reason without advice".into())).advice.is_some());
    }

    #[test]
    fn user_names_are_found_by_user_id() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nbroken\n";
        assert_eq!(find_user_name(users, 1000).as_deref(), Some("alice"));
        assert_eq!(find_user_name(users, 7), None);
    }

    #[test]
    fn a_missing_directory_is_on_the_disk_of_its_closest_existing_ancestor() {
        assert_eq!(
            closest_existing(Path::new("/nonexistent/a/b")).as_deref(),
            Some(Path::new("/"))
        );
    }
}

//! Checks programs, users and disks of this host.

use std::path::{Path, PathBuf};

use super::check::Check;
use crate::config::{self, Config};
use crate::ports::Disk;

/// The requirements of rootless podman for this user, checked if no engine answers.
pub(super) fn rootless(engine: &config::Engine) -> Vec<Check> {
    let mut checks = vec![match &engine.program {
        Some(path) => Check::ok("podman", format!("{} is there", path.display())),
        None => Check::fail(
            "podman",
            "podman is not in PATH",
            "install it: `apt install podman uidmap slirp4netns`",
        ),
    }];
    if rustix::process::geteuid().is_root() {
        checks.push(Check::warn(
            "user",
            "this is root, and podman is to be rootless",
            "run bob-runner as an ordinary user, or set CONTAINER_ENGINE_URL to the socket of one",
        ));
        return checks;
    }
    checks.push(match &engine.uid_mapper {
        Some(path) => Check::ok("newuidmap", format!("{} is there", path.display())),
        None => {
            Check::fail("newuidmap", "newuidmap is not in PATH", "install it: `apt install uidmap`")
        }
    });
    let user = user_name();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let name = if file == "/etc/subuid" { "subuid" } else { "subgid" };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let uid = rustix::process::getuid().as_raw();
        checks.push(if has_range(&text, user.as_deref(), uid) {
            Check::ok(name, format!("{file} has a range for this user"))
        } else {
            let whom = user.clone().unwrap_or_else(|| uid.to_string());
            Check::fail(
                name,
                format!("{file} has no range for {whom}"),
                format!("as root: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {whom}`"),
            )
        });
    }
    checks
}

fn user_name() -> Option<String> {
    let uid = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    name_in(&users, uid)
}

/// The name of a user id in the text of `/etc/passwd`.
fn name_in(users: &str, uid: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    })
}

/// Whether a file such as `/etc/subuid` has a line for the user, by name or id.
fn has_range(text: &str, user: Option<&str>, uid: u32) -> bool {
    text.lines().filter_map(|line| line.split(':').next()).any(|whose| {
        user.is_some_and(|user| user == whose)
            || whose.parse::<u32>().is_ok_and(|number| number == uid)
    })
}

/// Whether limits of steps on this host would be enforced for this command.
pub(super) fn limits(refused: Option<String>) -> Check {
    match refused {
        None => Check::ok("local limits", "`quotas.limits` of steps on this host are enforced"),
        Some(why) => {
            // The advice is in parentheses, because the message is also used for rejected steps.
            let (cause, advice) = why.split_once(" (").unwrap_or((&why, ""));
            Check::warn(
                "local limits",
                format!("`quotas.limits` of steps on this host are rejected: {cause}"),
                match advice.trim_end_matches(')') {
                    "" => "nothing, unless a pipeline needs such limits".to_owned(),
                    advice => format!("only if a pipeline needs such limits: {advice}"),
                },
            )
        }
    }
}

/// The disk that workers watch themselves.
const IMAGES: &str = "disk of images";

/// The free space of the disks that a worker fills.
pub(super) fn disks(config: &Config, images: Option<&Path>) -> Vec<Check> {
    let mut places = vec![("disk of events", config.spill.dir.clone())];
    match config.mode {
        config::Mode::Embedded => places.push(("disk of the store", config.data_dir.clone())),
        config::Mode::Cluster => {}
    }
    places.extend(images.map(|dir| (IMAGES, dir.to_owned())));
    let judged = places.into_iter().filter_map(|(name, path)| {
        let path = existing(&path)?;
        let stat = rustix::fs::statvfs(&path).ok()?;
        let disk = Disk::of_blocks(stat.f_frsize, stat.f_blocks, stat.f_bfree, stat.f_bavail);
        let (used, free) = (disk.percent(), disk.free);
        if disk.total == 0 {
            return None;
        }
        let found = format!("{} is {used}% full, {} MiB are free", path.display(), free >> 20);
        Some(if used >= 98 {
            Check::fail(name, found, "make room: nothing can be committed or kept here")
        } else if used >= config.worker.disk_high && name == IMAGES {
            let low = config.worker.disk_low;
            let hint = format!("make room: a worker takes nothing new until it is below {low}%");
            Check::warn(name, found, hint)
        } else if used >= config.worker.disk_high {
            Check::warn(name, found, "make room")
        } else {
            Check::ok(name, found)
        })
    });
    judged.collect()
}

/// The path, or its closest existing ancestor.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|part| part.exists()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "alice:100000:65536\n1001:165536:65536\n";
        assert!(has_range(text, Some("alice"), 1000));
        assert!(has_range(text, None, 1001));
        assert!(!has_range(text, Some("bob"), 1002));
        assert!(!has_range("", Some("bob"), 1002));
    }

    #[test]
    fn refused_limits_give_a_short_finding_and_short_advice() {
        let check = limits(Some("the group /x has no cpu controller (start it with y)".into()));
        assert!(check.found.ends_with("are rejected: the group /x has no cpu controller"));
        assert_eq!(
            check.advice.as_deref(),
            Some("only if a pipeline needs such limits: start it with y")
        );
        assert!(limits(Some("odd".into())).advice.is_some());
    }

    #[test]
    fn users_are_found_by_their_number() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nbroken\n";
        assert_eq!(name_in(users, 1000).as_deref(), Some("alice"));
        assert_eq!(name_in(users, 7), None);
    }

    #[test]
    fn a_missing_directory_is_on_the_disk_of_its_parent() {
        assert_eq!(existing(Path::new("/nonexistent/a/b")).as_deref(), Some(Path::new("/")));
    }
}

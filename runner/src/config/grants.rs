//! Access that the operator grants to everyone who can start a run: networks, directories, volumes.

use std::path::{Path, PathBuf};

use protocol::pipeline::{Mount, MountSource, Network, NetworkGrant};

use super::SharedDir;
use super::parse::{Parsed, items, path};

/// Suffix of a directory that steps can mount only read-only.
const READ_ONLY: &str = "ro";

/// A network, in the syntax of a step.
pub(super) fn network(text: &str) -> Parsed<String> {
    match text.parse::<Network>() {
        Ok(_) => Ok(text.to_owned()),
        Err(why) => Err(format!(
            "none, bridge, private, host, slirp4netns or pasta with their options, or the name of a network; this {why}"
        )),
    }
}

/// Networks that steps can use, separated by commas.
pub(super) fn networks(text: &str) -> Parsed<Vec<NetworkGrant>> {
    let one = |text: &str| {
        text.parse().map_err(|_bad| {
            format!(
                "host, host-loopback or names of networks, with commas between them, and {text} is none of these; none, bridge, private, slirp4netns and pasta are open to all steps"
            )
        })
    };
    items(text).map(one).collect()
}

/// Volumes, separated by commas.
pub(super) fn volumes(text: &str) -> Parsed<Vec<String>> {
    let one = |name: &str| match format!("{name}:/x").parse() {
        Ok(Mount { source: MountSource::Volume(name), .. }) => Ok(name),
        Ok(_) | Err(_) => Err(format!(
            "names of volumes that do not begin with `bob-`, with commas between them, and {name} is not one"
        )),
    };
    items(text).map(one).collect()
}

/// Existing directories, separated by colons. `:ro` after a directory makes it read-only.
pub(super) fn shared_dirs(text: &str) -> Parsed<Vec<SharedDir>> {
    let mut dirs: Vec<SharedDir> = Vec::new();
    for part in text.split(':').filter(|part| !part.is_empty()) {
        if part == READ_ONLY {
            let before = dirs.last_mut().filter(|dir| !dir.is_read_only);
            before.ok_or("`ro` after the directory that it is for")?.is_read_only = true;
            continue;
        }
        let dir = directory(part)?;
        if dirs.iter().any(|other| other.path == dir) {
            return Err(format!("each directory once, and {part} is named twice"));
        }
        dirs.push(SharedDir { path: dir, is_read_only: false });
    }
    // A step with write access to the outer directory could replace the inner one with a link.
    let inside = dirs.iter().find_map(|inner| {
        let holds = |outer: &&SharedDir| {
            !outer.is_read_only && outer.path != inner.path && inner.path.starts_with(&outer.path)
        };
        dirs.iter().find(holds).map(|outer| (inner, outer))
    });
    match inside {
        None => Ok(dirs),
        Some((inner, outer)) => Err(format!(
            "no directory inside a writable one, and {} is inside {}: share the outer one as {}:ro, or only one of them",
            inner.path.display(),
            outer.path.display(),
            outer.path.display()
        )),
    }
}

fn directory(text: &str) -> Parsed<PathBuf> {
    if !Path::new(text).is_absolute() {
        return Err(
            "absolute paths of directories, with colons between them, each with `:ro` after it if steps can only read it"
                .to_owned(),
        );
    }
    let real = std::fs::canonicalize(path(text)?)
        .map_err(|cause| format!("directories that can be read; {text}: {cause}"))?;
    if real.is_dir() { Ok(real) } else { Err(format!("directories, and {text} is none")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_grant_keywords_or_names() {
        let names = |text| {
            let grants = networks(text)?;
            Ok::<_, String>(
                grants.iter().map(|grant| grant.as_str().to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(names("host, mine,host-loopback").unwrap(), ["host", "mine", "host-loopback"]);
        assert_eq!(names("").unwrap(), Vec::<String>::new());
        for bad in ["none", "pasta:-T,80", "container:x", "a b"] {
            assert!(names(bad).unwrap_err().contains("host-loopback"), "{bad}");
        }
    }

    #[test]
    fn a_network_of_the_operator_can_have_any_option() {
        for good in ["none", "host", "my-net", "pasta:-T,80", "pasta:--pcap,/path"] {
            assert_eq!(network(good).as_deref(), Ok(good));
        }
        for bad in ["", "a b", "a\tb", "container:x", "ns:/proc/1/ns/net", "none:x"] {
            assert!(network(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn volumes_are_names_that_the_runner_does_not_use_itself() {
        assert_eq!(volumes("data, cache").unwrap(), ["data", "cache"]);
        for bad in ["/srv", "a/b", "bob-r-1-0-7-1", "a:ro"] {
            assert!(volumes(bad).unwrap_err().contains("names of volumes"), "{bad}");
        }
    }

    #[test]
    fn a_shared_directory_can_be_read_only_but_not_inside_a_writable_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        for name in ["a/in", "b"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let at = |name: &str| root.join(name).display().to_string();
        let read = |text: &str| {
            let dirs = shared_dirs(text)?;
            let shown = dirs.iter().map(|dir| (dir.path.display().to_string(), dir.is_read_only));
            Ok::<_, String>(shown.collect::<Vec<_>>())
        };
        let (a, b, inner) = (at("a"), at("b"), at("a/in"));
        assert_eq!(read(&format!("{a}:ro:{b}")).unwrap(), [(a.clone(), true), (b.clone(), false)]);
        assert_eq!(read(&format!("{a}/../b")).unwrap(), [(b.clone(), false)]);
        assert_eq!(read(&format!("{a}:ro:{inner}")).unwrap().len(), 2);
        for (bad, told) in [
            (format!("{a}:{inner}"), "is inside"),
            (format!("{inner}:ro:{a}"), "is inside"),
            (format!("{a}:{b}/../a"), "named twice"),
            ("ro".to_owned(), "after the directory"),
            (format!("{a}:ro:ro"), "after the directory"),
            ("relative".to_owned(), "absolute"),
            (at("none"), "can be read"),
        ] {
            assert!(read(&bad).unwrap_err().contains(told), "{bad}");
        }
    }
}

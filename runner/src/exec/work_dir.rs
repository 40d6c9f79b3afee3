//! Resolves a path inside a container that is not running, one component at a time.
//!
//! podman 3.0 to 5.7 looks up an image's working directory on the host. A symbolic link in it leads
//! out of the container, and a missing directory is created there (CVE-2026-55686). So the engine
//! only ever receives a path without links, and is never asked to create one.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// The kernel's limit for symbolic links in one path.
const MOST_LINKS: u32 = 40;
/// `ModeSymlink` and `ModeDir` of Go's `fs.FileMode`, as engines send it.
const GO_SYMLINK: u32 = 1 << 27;
const GO_DIR: u32 = 1 << 31;
/// The header in which engines describe a path.
pub(super) const STAT_HEADER: &str = "x-docker-container-path-stat";

/// The entry at one path of a container, without following links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Missing,
    Directory,
    /// A symbolic link with its target.
    Link(String),
    Other,
}

/// An engine's answer about a path.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathStat {
    mode: u32,
    #[serde(default)]
    link_target: String,
}

impl Entry {
    /// Parses the response to `HEAD` of an archive: its status and its [`STAT_HEADER`]. `None` if
    /// the engine could not inspect the path.
    pub(super) fn answered(status: u16, stat: Option<&[u8]>) -> Option<Result<Self, String>> {
        match (status, stat) {
            // A dangling link is described in a 404.
            (_, Some(stat)) => Some(Self::described(stat)),
            (404, None) => Some(Ok(Self::Missing)),
            (_, None) => None,
        }
    }

    fn described(stat: &[u8]) -> Result<Self, String> {
        let json = STANDARD.decode(stat).map_err(|cause| cause.to_string())?;
        let stat: PathStat = serde_json::from_slice(&json).map_err(|cause| cause.to_string())?;
        Ok(if stat.mode & GO_SYMLINK != 0 {
            Self::Link(stat.link_target)
        } else if stat.mode & GO_DIR != 0 {
            Self::Directory
        } else {
            Self::Other
        })
    }

    /// Whether an engine could not look at a path because it is a link to itself.
    pub(super) fn is_circle(said: &str) -> bool {
        said.contains("too many levels of symbolic links")
    }
}

/// The result of resolving a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ResolvedPath {
    /// To a path without links. The directories below `missing` of its components do not exist.
    Path { path: String, missing: Vec<String> },
    /// To something that is not a directory.
    NotDirectory(String),
    /// To a link that leads to itself.
    Circle,
}

impl ResolvedPath {
    /// The path, if it exists or may be created.
    pub(super) fn into_path(
        self,
        asked: &str,
        may_create: bool,
    ) -> Result<(String, Vec<String>), String> {
        match self {
            Self::Path { path, missing } if missing.is_empty() || may_create => Ok((path, missing)),
            Self::Path { path, .. } if path == asked => {
                Err(format!("there is no working directory {asked} in its container"))
            }
            Self::Path { path, .. } => Err(format!(
                "there is no working directory {asked} in its container: it leads to {path}, which does not exist"
            )),
            Self::NotDirectory(path) if path == asked => {
                Err(format!("its working directory {asked} is not a directory"))
            }
            Self::NotDirectory(path) => Err(format!(
                "its working directory {asked} leads through {path}, which is not a directory"
            )),
            Self::Circle => Err(format!(
                "its working directory {asked} leads through symbolic links in a circle"
            )),
        }
    }
}

/// Whether the engine or its runtime could not enter the working directory. A missing program whose
/// name looks like that does not count.
pub(super) fn is_about_work_dir(said: &str) -> bool {
    !is_about_program(said) && ["workdir", "chdir"].iter().any(|word| said.contains(word))
}

fn is_about_program(said: &str) -> bool {
    said.contains("not found in $PATH") || said.contains("exec container process")
}

/// Resolves a path from the root of a container. The caller looks up each path that [`next`]
/// returns, and passes the entry to [`answer`].
///
/// [`next`]: Self::next
/// [`answer`]: Self::answer
#[derive(Debug)]
pub(super) struct PathWalk {
    ahead: VecDeque<String>,
    /// The resolved components so far; none of them is a link.
    real: Vec<String>,
    /// How many of them exist, set when the first missing one is found.
    exist: Option<usize>,
    links: u32,
    end: Option<ResolvedPath>,
}

impl PathWalk {
    /// Starts at the root of the container.
    pub(super) fn along(path: &str) -> Self {
        let ahead = components(path).collect();
        Self { ahead, real: Vec::new(), exist: None, links: 0, end: None }
    }

    /// The next path to look at. No directory above it is a link.
    pub(super) fn next(&mut self) -> Option<String> {
        while self.end.is_none() {
            let next = self.ahead.pop_front()?;
            if next == ".." {
                self.real.pop();
                let depth = self.real.len();
                self.exist = self.exist.filter(|exist| *exist < depth);
                continue;
            }
            self.real.push(next);
            // Nothing exists below a missing directory.
            if self.exist.is_none() {
                return Some(joined(&self.real));
            }
        }
        None
    }

    /// Takes the entry at the path returned last.
    pub(super) fn answer(&mut self, entry: Entry) {
        match entry {
            Entry::Directory => {}
            Entry::Missing => self.exist = Some(self.real.len().saturating_sub(1)),
            Entry::Other => self.end = Some(ResolvedPath::NotDirectory(joined(&self.real))),
            Entry::Link(target) => {
                self.links += 1;
                if self.links > MOST_LINKS || target.is_empty() {
                    self.end = Some(ResolvedPath::Circle);
                    return;
                }
                if target.starts_with('/') {
                    self.real.clear();
                } else {
                    self.real.pop();
                }
                for component in components(&target).rev() {
                    self.ahead.push_front(component);
                }
            }
        }
    }

    /// The result, once [`next`](Self::next) has returned `None`.
    pub(super) fn found(self) -> ResolvedPath {
        if let Some(end) = self.end {
            return end;
        }
        let exist = self.exist.unwrap_or(self.real.len());
        let missing = (exist..self.real.len()).map(|at| joined(&self.real[..=at])).collect();
        ResolvedPath::Path { path: joined(&self.real), missing }
    }
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned)
}

fn joined(components: &[String]) -> String {
    format!("/{}", components.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Resolves a path in a container with these entries.
    fn of(path: &str) -> ResolvedPath {
        let link = |target: &str| Entry::Link(target.to_owned());
        let there = HashMap::from([
            ("/a", Entry::Directory),
            ("/a/b", Entry::Directory),
            ("/file", Entry::Other),
            ("/out", link("/tmp/host")),
            ("/in", link("a")),
            ("/up", link("../../../a/b")),
            ("/loop", link("/loop")),
            ("/to-file", link("file")),
        ]);
        let mut walk = PathWalk::along(path);
        while let Some(at) = walk.next() {
            walk.answer(there.get(at.as_str()).cloned().unwrap_or(Entry::Missing));
        }
        walk.found()
    }

    fn to(path: &str, missing: &[&str]) -> ResolvedPath {
        let missing = missing.iter().map(|path| (*path).to_owned()).collect();
        ResolvedPath::Path { path: path.to_owned(), missing }
    }

    #[test]
    fn a_path_leads_through_links_and_never_out() {
        assert_eq!(of("/"), to("/", &[]));
        assert_eq!(of("/a/./b/"), to("/a/b", &[]));
        assert_eq!(of("/in/b"), to("/a/b", &[]));
        assert_eq!(of("/up"), to("/a/b", &[]));
        assert_eq!(of("/../../a"), to("/a", &[]));
        assert_eq!(of("/out/sub"), to("/tmp/host/sub", &["/tmp", "/tmp/host", "/tmp/host/sub"]));
        assert_eq!(of("/in/new/../x"), to("/a/x", &["/a/x"]));
        assert_eq!(of("/no/../a/b"), to("/a/b", &[]));
    }

    #[test]
    fn a_path_that_cannot_be_a_directory_is_told_from_a_missing_one() {
        assert_eq!(of("/file/x"), ResolvedPath::NotDirectory("/file".to_owned()));
        assert_eq!(of("/to-file"), ResolvedPath::NotDirectory("/file".to_owned()));
        assert_eq!(of("/loop/x"), ResolvedPath::Circle);
        let said = |path| of(path).into_path(path, false).unwrap_err();
        assert_eq!(said("/no"), "there is no working directory /no in its container");
        assert!(said("/out").contains("it leads to /tmp/host, which does not exist"));
        assert!(said("/to-file").contains("leads through /file, which is not a directory"));
        assert!(said("/loop").contains("in a circle"));
        let (path, missing) = of("/no").into_path("/no", true).unwrap();
        assert_eq!((path.as_str(), missing.len()), ("/no", 1));
    }

    #[test]
    fn an_entry_is_read_from_an_engines_answer() {
        let answered = |status, json: &str| {
            Entry::answered(status, Some(STANDARD.encode(json).as_bytes())).unwrap()
        };
        let of = |json: &str| answered(200, json).unwrap();
        let link = r#"{"name":"real","size":4,"mode":134218239,"mtime":"1970-01-01T00:00:00Z","isDir":true,"linkTarget":"/real"}"#;
        assert_eq!(of(link), Entry::Link("/real".to_owned()));
        assert_eq!(of(r#"{"mode":2147484141,"linkTarget":"/real/"}"#), Entry::Directory);
        assert_eq!(of(r#"{"mode":420,"linkTarget":""}"#), Entry::Other);
        let dangling = r#"{"mode":134218239,"linkTarget":"/nowhere"}"#;
        assert_eq!(answered(404, dangling), Ok(Entry::Link("/nowhere".to_owned())));
        assert!(answered(200, "{}").is_err());
        assert_eq!(Entry::answered(404, None), Some(Ok(Entry::Missing)));
        assert_eq!(Entry::answered(500, None), None);
    }

    #[test]
    fn a_working_directory_is_told_from_a_program_in_the_words_of_every_runtime() {
        for said in [
            "workdir \"/l/sub\" does not exist on container 37752366",
            "workdir \"/file\" exists on container 769a79ea, but is not a directory",
            "detecting workdir \"/file/x\" on container f05e: stat /merged/file/x: not a directory",
            "crun: chdir `/l/sub`: No such file or directory: OCI runtime attempted to invoke a command that was not found",
            "crun: chdir to `/loop`: Too many levels of symbolic links: OCI runtime error",
            "runc: chdir to cwd (\"/x\") set in config.json failed: no such file or directory",
        ] {
            assert!(is_about_work_dir(said), "{said}");
        }
        let program = "crun: executable file `chdir` not found in $PATH: No such file or directory";
        assert!(!is_about_work_dir(program));
    }
}

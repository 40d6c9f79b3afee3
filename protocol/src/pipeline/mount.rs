//! Mounts of a step that has an image of its own, as written in `mounts` of `with`.

use std::str::FromStr;

use thiserror::Error;

/// `SOURCE:TARGET[:OPTIONS]`: a host path or a volume that is mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The source.
    pub source: MountSource,
    /// The absolute target path in the container.
    pub target: String,
    /// Options, at most one of each kind.
    pub options: Vec<MountOption>,
}

/// The source of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A host path, absolute or relative to the directory in which `run` is called.
    Path(String),
    /// A named volume of the engine.
    Volume(String),
}

/// An option of a mount. All other options of the engines are rejected, because they can overlay,
/// remap or replace the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountOption {
    /// Mounts the source read-only.
    ReadOnly,
    /// Mounts the source writable. This is the default.
    ReadWrite,
    /// Leaves a new volume empty instead of copying the image's content at that path.
    NoCopy,
    /// Includes what is mounted below the directory. This is the default.
    Recursive,
    /// How later mounts propagate.
    Propagation(Propagation),
    /// `z`: the engine relabels the content so that every container can use it.
    RelabelShared,
    /// `Z`: the engine relabels the content for this container alone.
    RelabelPrivate,
    /// `U`: the engine gives the content to the container's user.
    Chown,
}

/// How later mounts propagate between host and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "mount_namespaces(7) explains each word")]
pub enum Propagation {
    Private,
    RecursivePrivate,
    Shared,
    RecursiveShared,
    Slave,
    RecursiveSlave,
}

/// The reason why a text is not a mount. Each message continues a sentence that begins with the
/// text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadMount {
    /// The text does not have the form of a mount.
    #[error("is not SOURCE:TARGET[:OPTIONS] with an absolute target")]
    Form,
    /// The target is the root directory or contains `..`.
    #[error("has a target that is the root directory or contains `..`")]
    Target,
    /// The text contains a control character.
    #[error("has a control character")]
    Control,
    /// The source is neither a path nor a volume name.
    #[error("has a source that is neither a path nor the name of a volume")]
    Source,
    /// The volume name is reserved for the runner.
    #[error("names a volume of bob-runner: volume names that begin with `bob-` are reserved")]
    Reserved,
    /// The option is unknown.
    #[error("has the unknown option {0:?}: the options are {OPTIONS}")]
    Option(String),
    /// The option does not apply to this kind of source.
    #[error("has the option {0:?}, which is only for {1}")]
    Misplaced(String, &'static str),
    /// Two options exclude each other.
    #[error("has the options {0:?} and {1:?}, which exclude each other")]
    Conflict(&'static str, &'static str),
}

/// The options, as listed in messages.
const OPTIONS: &str =
    "ro, rw, nocopy, z, Z, U, rbind, private, rprivate, shared, rshared, slave and rslave";

/// Name prefix of the runner's own volumes, which hold the secrets of steps.
const RESERVED: &str = "bob-";

impl MountOption {
    const ALL: [Self; 13] = [
        Self::ReadOnly,
        Self::ReadWrite,
        Self::NoCopy,
        Self::Recursive,
        Self::RelabelShared,
        Self::RelabelPrivate,
        Self::Chown,
        Self::Propagation(Propagation::Private),
        Self::Propagation(Propagation::RecursivePrivate),
        Self::Propagation(Propagation::Shared),
        Self::Propagation(Propagation::RecursiveShared),
        Self::Propagation(Propagation::Slave),
        Self::Propagation(Propagation::RecursiveSlave),
    ];

    /// The option as engines spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
            Self::NoCopy => "nocopy",
            Self::Recursive => "rbind",
            Self::RelabelShared => "z",
            Self::RelabelPrivate => "Z",
            Self::Chown => "U",
            Self::Propagation(Propagation::Private) => "private",
            Self::Propagation(Propagation::RecursivePrivate) => "rprivate",
            Self::Propagation(Propagation::Shared) => "shared",
            Self::Propagation(Propagation::RecursiveShared) => "rshared",
            Self::Propagation(Propagation::Slave) => "slave",
            Self::Propagation(Propagation::RecursiveSlave) => "rslave",
        }
    }

    /// The kind of an option. A mount has at most one option of each kind.
    fn kind(self) -> u8 {
        match self {
            Self::ReadOnly | Self::ReadWrite => 0,
            Self::Propagation(_) => 1,
            Self::RelabelShared | Self::RelabelPrivate => 2,
            Self::NoCopy => 3,
            Self::Recursive => 4,
            Self::Chown => 5,
        }
    }

    /// The kind of source that the option requires, if `source` is of the other kind.
    fn required_source(self, source: &MountSource) -> Option<&'static str> {
        match (self, source) {
            (Self::NoCopy, MountSource::Path(_)) => Some("volumes"),
            (Self::Propagation(_) | Self::Recursive, MountSource::Volume(_)) => Some("directories"),
            (_, _) => None,
        }
    }
}

impl Mount {
    /// Whether the mount is read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.contains(&MountOption::ReadOnly)
    }
}

impl FromStr for Mount {
    type Err = BadMount;

    fn from_str(text: &str) -> Result<Self, BadMount> {
        if text.chars().any(char::is_control) {
            return Err(BadMount::Control);
        }
        let mut parts = text.split(':');
        let (Some(source), Some(target), options, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadMount::Form);
        };
        if source.is_empty() || !target.starts_with('/') {
            return Err(BadMount::Form);
        }
        let is_root = target.split('/').all(|part| matches!(part, "" | "."));
        if is_root || target.split('/').any(|part| part == "..") {
            return Err(BadMount::Target);
        }
        let source = parse_source(source)?;
        let options = parse_options(options.unwrap_or_default(), &source)?;
        Ok(Self { source, target: target.to_owned(), options })
    }
}

fn parse_source(text: &str) -> Result<MountSource, BadMount> {
    if text.starts_with(['/', '.']) {
        return Ok(MountSource::Path(text.to_owned()));
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(is_allowed) {
        return Err(BadMount::Source);
    }
    if text.starts_with(RESERVED) {
        return Err(BadMount::Reserved);
    }
    Ok(MountSource::Volume(text.to_owned()))
}

fn parse_options(text: &str, source: &MountSource) -> Result<Vec<MountOption>, BadMount> {
    let mut options: Vec<MountOption> = Vec::new();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let option = MountOption::ALL.into_iter().find(|option| option.as_str() == word);
        let option = option.ok_or_else(|| BadMount::Option(word.to_owned()))?;
        if let Some(required) = option.required_source(source) {
            return Err(BadMount::Misplaced(word.to_owned(), required));
        }
        match options.iter().find(|other| other.kind() == option.kind()) {
            Some(other) if *other == option => {}
            Some(other) => return Err(BadMount::Conflict(other.as_str(), option.as_str())),
            None => options.push(option),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Mount, BadMount> {
        text.parse()
    }

    #[test]
    fn a_mount_is_a_path_or_a_volume_with_known_options() {
        let dir = parse("/srv/cache:/cache:ro,rslave,z").unwrap();
        assert_eq!(dir.source, MountSource::Path("/srv/cache".into()));
        assert_eq!(dir.target, "/cache");
        let words: Vec<&str> = dir.options.iter().map(|option| option.as_str()).collect();
        assert_eq!(words, ["ro", "rslave", "z"]);
        assert!(dir.is_read_only());
        let volume = parse("data:/data:nocopy").unwrap();
        assert_eq!(volume.source, MountSource::Volume("data".into()));
        assert!(!volume.is_read_only());
        assert_eq!(parse("./here:/x:").unwrap().options, []);
        for option in MountOption::ALL {
            let source = if option == MountOption::NoCopy { "data" } else { "/data" };
            let text = format!("{source}:/x:{}", option.as_str());
            assert_eq!(parse(&text).unwrap().options, [option], "{text}");
        }
    }

    #[test]
    fn an_option_that_could_overlay_or_remap_the_host_is_rejected() {
        for options in [
            "O,upperdir=/home/u/.config,workdir=/home/u/w",
            "O",
            "upperdir=/home/u",
            "ro,O",
            "idmap",
            "idmap=uids=0-1-10",
            "exec",
            "dev",
            "suid",
            "volume-opt=device=/etc",
            "RO",
        ] {
            for source in ["v", "/srv"] {
                let error = parse(&format!("{source}:/x:{options}")).unwrap_err();
                assert!(matches!(error, BadMount::Option(_)), "{source} {options}: {error}");
            }
        }
    }

    #[test]
    fn conflicting_options_and_options_for_another_kind_of_source_are_rejected() {
        for (text, why) in [
            ("/a:/b:ro,rw", BadMount::Conflict("ro", "rw")),
            ("/a:/b:z,Z", BadMount::Conflict("z", "Z")),
            ("/a:/b:shared,slave", BadMount::Conflict("shared", "slave")),
            ("/a:/b:nocopy", BadMount::Misplaced("nocopy".into(), "volumes")),
            ("v:/b:rshared", BadMount::Misplaced("rshared".into(), "directories")),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn an_invalid_mount_is_reported_with_the_reason() {
        for bad in ["", "a", "a:b", ":/b", "/a:/b:ro:z", "/tmp:rel"] {
            assert_eq!(parse(bad), Err(BadMount::Form), "{bad:?}");
        }
        for bad in ["/a:/", "/a://", "/a:/.", "/a:/b/../run/secrets"] {
            assert_eq!(parse(bad), Err(BadMount::Target), "{bad:?}");
        }
        for bad in ["~/x:/b", "a b:/b", "-v:/b", "a/b:/b", "_x:/b"] {
            assert_eq!(parse(bad), Err(BadMount::Source), "{bad:?}");
        }
        assert_eq!(parse("/a:/b\n"), Err(BadMount::Control));
        assert_eq!(parse("bob-r-1-0-7-1:/x"), Err(BadMount::Reserved));
    }
}

//! The disk of an engine, and the images on it that are nobody's work but take the most of it.

use protocol::time::Millis;

/// The disk that an engine keeps everything on, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// The size without root's reserve, which ordinary users cannot write to.
    pub total: u64,
    /// What can still be written.
    pub free: u64,
}

impl Disk {
    /// A disk as the system counts it, in blocks of `size` bytes: those of it, those that nothing is in,
    /// and those of them that an ordinary user can write to.
    #[must_use]
    pub fn of_blocks(size: u64, blocks: u64, free: u64, available: u64) -> Self {
        let used = blocks.saturating_sub(free);
        let bytes = |blocks: u64| blocks.saturating_mul(size);
        Self { total: bytes(used.saturating_add(available)), free: bytes(available) }
    }

    /// How full it is, in percent, rounded up: the number that `df` shows.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let used = u128::from(self.total.saturating_sub(self.free));
        let total = u128::from(self.total);
        let percent = if total == 0 { 0 } else { (used * 100).div_ceil(total) };
        u8::try_from(percent).unwrap_or(100)
    }

    /// Whether nothing fits any more: who failed here has probably failed for that.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free <= self.total / 1000
    }
}

/// An image that the executor has pulled itself, for runs to stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// Its id.
    pub id: String,
    /// The names that it was pulled by, in full; none where they are another image's by now.
    pub names: Vec<String>,
    /// Its size in bytes; what it shares with others is counted in each.
    pub bytes: u64,
    /// When a run last began on it, to the hour.
    pub used: Millis,
    /// Something stands on it, or somebody else has given it a name.
    pub in_use: bool,
}

impl BaseImage {
    /// Whether a reference as pipelines have it means this image.
    #[must_use]
    pub fn answers_to(&self, reference: &str) -> bool {
        self.names.iter().any(|name| is_meant(name, reference))
    }
}

/// Whether a reference as pipelines have it means what an engine knows by this full name: a short one
/// is the end of the name, and no tag is `latest`.
#[must_use]
pub fn is_meant(name: &str, reference: &str) -> bool {
    if name == reference {
        return true;
    }
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if reference.contains('@') || last.contains(':') {
        return name.strip_suffix(reference).is_some_and(|rest| rest.ends_with('/'));
    }
    let whole = format!("{reference}:latest");
    name == whole || name.strip_suffix(&whole).is_some_and(|rest| rest.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_as_full_as_what_cannot_be_written_any_more() {
        let disk = |total, free| Disk { total, free };
        assert_eq!([disk(100, 15), disk(100, 0), disk(0, 0)].map(|d| d.percent()), [85, 100, 0]);
        assert_eq!(disk(u64::MAX, u64::MAX / 2).percent(), 51);
        // `df` shows 85% for 100 blocks of which 20 are free, 15 of them for ordinary users.
        let reserved = Disk::of_blocks(4096, 100, 20, 15);
        assert_eq!((reserved.percent(), reserved.free), (85, 15 * 4096));
        assert_eq!(Disk::of_blocks(1, 1000, 500, 500).percent(), 50);
        assert_eq!(Disk::of_blocks(1, 1000, 499, 499).percent(), 51);
        assert!(disk(1 << 30, 1 << 20).is_full() && !disk(1 << 30, 1 << 21).is_full());
    }

    #[test]
    fn a_reference_means_the_image_of_its_full_name() {
        for (name, reference) in [
            ("docker.io/library/alpine:3", "docker.io/library/alpine:3"),
            ("docker.io/library/alpine:3", "alpine:3"),
            ("docker.io/library/alpine:latest", "alpine"),
            ("h:5000/a/b:latest", "h:5000/a/b"),
            ("quay.io/a/b@sha256:0a", "a/b@sha256:0a"),
        ] {
            assert!(is_meant(name, reference), "{reference}");
        }
        for (name, reference) in [
            ("docker.io/library/alpine:3", "alpine"),
            ("docker.io/library/my-alpine:3", "alpine:3"),
            ("h:5000/a/b:v1", "h:5000/a/b"),
            ("docker.io/library/alpine:latest", "latest"),
        ] {
            assert!(!is_meant(name, reference), "{reference}");
        }
    }
}

//! The disk of a container engine, and the pulled base images on it, which take most of its space.

use protocol::time::Millis;

/// The disk with an engine's storage, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// The size without root's reserve, which ordinary users cannot write to.
    pub total: u64,
    /// The space that ordinary users can still write to.
    pub free: u64,
}

impl Disk {
    /// Creates a `Disk` from the counters of `statvfs`. All are in blocks of `size` bytes: `blocks`
    /// in total, `free` for root, and `available` to ordinary users.
    #[must_use]
    pub fn of_blocks(size: u64, blocks: u64, free: u64, available: u64) -> Self {
        let used = blocks.saturating_sub(free);
        let bytes = |blocks: u64| blocks.saturating_mul(size);
        Self { total: bytes(used.saturating_add(available)), free: bytes(available) }
    }

    /// Returns the used space in percent, rounded up, as `df` shows it.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let used = u128::from(self.total.saturating_sub(self.free));
        let total = u128::from(self.total);
        let percent = if total == 0 { 0 } else { (used * 100).div_ceil(total) };
        u8::try_from(percent).unwrap_or(100)
    }

    /// Returns true if the disk is full for practical purposes, which explains a failure on it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free <= self.total / 1000
    }
}

/// A base image that the executor pulled itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// The image's ID.
    pub id: String,
    /// The full names it was pulled by, without those that now belong to another image.
    pub names: Vec<String>,
    /// The size in bytes. Layers shared by several images count for each of them.
    pub bytes: u64,
    /// The time at which a run last started from it, to the hour.
    pub used: Millis,
    /// Whether a container or another image uses it, or another user has given it a name.
    pub in_use: bool,
}

impl BaseImage {
    /// Returns true if an image reference from a pipeline resolves to this image.
    #[must_use]
    pub fn answers_to(&self, reference: &str) -> bool {
        self.names.iter().any(|name| matches_reference(name, reference))
    }
}

/// Returns true if an image reference from a pipeline resolves to an image with this full name. A
/// short reference matches the end of the name. A missing tag means `latest`.
#[must_use]
pub fn matches_reference(name: &str, reference: &str) -> bool {
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
    fn disk_usage_counts_reserved_space_as_used() {
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
    fn a_reference_resolves_to_the_image_with_its_full_name() {
        for (name, reference) in [
            ("docker.io/library/alpine:3", "docker.io/library/alpine:3"),
            ("docker.io/library/alpine:3", "alpine:3"),
            ("docker.io/library/alpine:latest", "alpine"),
            ("h:5000/a/b:latest", "h:5000/a/b"),
            ("quay.io/a/b@sha256:0a", "a/b@sha256:0a"),
        ] {
            assert!(matches_reference(name, reference), "{reference}");
        }
        for (name, reference) in [
            ("docker.io/library/alpine:3", "alpine"),
            ("docker.io/library/my-alpine:3", "alpine:3"),
            ("h:5000/a/b:v1", "h:5000/a/b"),
            ("docker.io/library/alpine:latest", "latest"),
        ] {
            assert!(!matches_reference(name, reference), "{reference}");
        }
    }
}

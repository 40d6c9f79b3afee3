//! Finds a set of words in a stream of chunks.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// The maximum total size of the words for a DFA. It is the fastest search, but takes about 512
/// bytes of memory per byte.
const FAST_BYTES: usize = 32 * 1024;

/// The secrets are too large to search for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secrets are too large to be masked: {0}")]
pub struct TooLarge(String);

/// A set of words.
pub(super) struct WordSet {
    sorted: Vec<Vec<u8>>,
    search: AhoCorasick,
    shortest: usize,
    longest: usize,
}

impl WordSet {
    pub(super) fn new(words: BTreeSet<Vec<u8>>) -> Result<Self, TooLarge> {
        let bytes: usize = words.iter().map(Vec::len).sum();
        let kind =
            if bytes <= FAST_BYTES { AhoCorasickKind::DFA } else { AhoCorasickKind::ContiguousNFA };
        let search = AhoCorasick::builder()
            // Report overlapping matches, because the union of all matches is masked.
            .match_kind(MatchKind::Standard)
            .kind(Some(kind))
            .build(&words)
            .map_err(|cause| TooLarge(cause.to_string()))?;
        let lengths = || words.iter().map(Vec::len);
        let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        Ok(Self { sorted: words.into_iter().collect(), search, shortest, longest })
    }

    /// Returns the length of the shortest word.
    pub(super) fn shortest(&self) -> usize {
        self.shortest
    }

    /// Returns the length of the longest word.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Returns true if the set is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Returns the ranges of words in `bytes`, sorted by end.
    pub(super) fn find<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (usize, usize)> {
        self.search.find_overlapping_iter(bytes).map(|found| (found.start(), found.end()))
    }

    /// Returns true if `bytes` contains a word.
    pub(super) fn are_in(&self, bytes: &[u8]) -> bool {
        self.search.is_match(bytes)
    }

    /// Returns true if `beginning` is a proper prefix of a word.
    pub(super) fn any_begins_with(&self, beginning: &[u8]) -> bool {
        let at = self.sorted.partition_point(|word| word.as_slice() <= beginning);
        self.sorted.get(at).is_some_and(|word| word.starts_with(beginning))
    }
}

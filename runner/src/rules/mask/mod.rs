//! Takes secrets out of what steps say, in every form in which they usually come along, and finds them
//! in what steps leave. Bytes come in pieces of any size: where they are cut makes no difference.

mod forms;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

pub use self::forms::SHORTEST;

/// What stands in the place of a secret.
pub const MASK: &[u8] = b"***";

/// Secrets that are too large to be looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secrets are too large to be masked: {0}")]
pub struct TooLarge(String);

/// What must not be seen, in all its forms.
pub struct Mask {
    /// What output is masked with.
    output: Forms,
    /// What files are searched with.
    files: Forms,
}

impl std::fmt::Debug for Mask {
    /// Nothing of what it hides.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mask").finish_non_exhaustive()
    }
}

/// Texts, and what finds them.
struct Forms {
    sorted: Vec<Vec<u8>>,
    search: AhoCorasick,
    longest: usize,
}

impl Forms {
    fn new(forms: BTreeSet<Vec<u8>>) -> Result<Self, TooLarge> {
        let search = AhoCorasick::builder()
            // Those that overlap are all found: what any of them covers is masked.
            .match_kind(MatchKind::Standard)
            .build(&forms)
            .map_err(|cause| TooLarge(cause.to_string()))?;
        let longest = forms.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Self { sorted: forms.into_iter().collect(), search, longest })
    }

    /// Whether one of them goes on where this ends.
    fn goes_on(&self, beginning: &[u8]) -> bool {
        let at = self.sorted.partition_point(|form| form.as_slice() <= beginning);
        self.sorted.get(at).is_some_and(|form| form.starts_with(beginning))
    }

    /// Where the longest end of `bytes` begins that may become one of them.
    fn beginning(&self, bytes: &[u8]) -> usize {
        let first = (bytes.len() + 1).saturating_sub(self.longest);
        let begins = |at: &usize| bytes.get(*at..).is_some_and(|rest| self.goes_on(rest));
        (first..bytes.len()).find(begins).unwrap_or(bytes.len())
    }
}

impl Mask {
    /// A mask for these values. Those that are shorter than [`SHORTEST`] bytes are not masked: they
    /// would be found everywhere.
    ///
    /// # Errors
    /// [`TooLarge`] where there are too many bytes of them.
    pub fn new<'a>(values: impl Iterator<Item = &'a [u8]> + Clone) -> Result<Self, TooLarge> {
        let output = Forms::new(forms::in_output(values.clone()))?;
        Ok(Self { output, files: Forms::new(forms::in_files(values))? })
    }

    /// A text without what must not be seen.
    #[must_use]
    pub fn text(self: &Arc<Self>, text: &str) -> String {
        let mut masker = Masker::new(Arc::clone(self));
        let mut bytes = masker.push(text.as_bytes());
        bytes.extend(masker.finish());
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Masks one stream of bytes.
#[derive(Debug)]
pub struct Masker {
    mask: Arc<Mask>,
    /// The end of what came, which may be the beginning of a secret.
    held: Vec<u8>,
    /// So many bytes of it are covered by a secret whose mask is out already.
    covered: usize,
}

impl Masker {
    /// For a new stream.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self { mask, held: Vec::new(), covered: 0 }
    }

    /// Takes bytes, and returns what is known to be no secret, masked. What may be the beginning of one
    /// waits for more: the most is one byte less than the longest form of a secret.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let until = self.mask.output.beginning(&self.held);
        self.release(until)
    }

    /// Returns what is left: the stream has ended.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        self.release(self.held.len())
    }

    /// Lets go of the bytes before `until`: nothing that is yet to come begins there.
    fn release(&mut self, until: usize) -> Vec<u8> {
        let mask = Arc::clone(&self.mask);
        let found = mask.output.search.find_overlapping_iter(&self.held);
        let mut found: Vec<(usize, usize)> =
            found.map(|found| (found.start(), found.end())).collect();
        found.sort_unstable();
        let mut out = Vec::with_capacity(until);
        // Everything before `at` is out, or covered by a mask that is.
        let mut at = self.covered;
        for (start, end) in found.into_iter().take_while(|(start, _)| *start < until) {
            // One that overlaps with the one before is hidden by the same mask.
            if start >= at {
                out.extend_from_slice(self.held.get(at..start).unwrap_or_default());
                out.extend_from_slice(MASK);
            }
            at = at.max(end);
        }
        out.extend_from_slice(self.held.get(at..until).unwrap_or_default());
        self.held.drain(..until);
        self.covered = at.saturating_sub(until);
        out
    }
}

/// Looks for secrets in one stream of bytes.
#[derive(Debug)]
pub struct Finder {
    mask: Arc<Mask>,
    /// The end of what came.
    seen: Vec<u8>,
}

impl Finder {
    /// For a new stream.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self { mask, seen: Vec::new() }
    }

    /// Whether a secret ends in these bytes.
    #[must_use]
    pub fn finds(&mut self, bytes: &[u8]) -> bool {
        let files = &self.mask.files;
        self.seen.extend_from_slice(bytes);
        let found = files.search.is_match(&self.seen);
        let over = (self.seen.len() + 1).saturating_sub(files.longest.max(1));
        self.seen.drain(..over);
        found
    }
}

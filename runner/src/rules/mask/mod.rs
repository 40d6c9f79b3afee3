//! Takes secrets out of what steps say, in every form in which they usually come along, and finds them
//! in what steps leave. Bytes come in pieces of any size: where they are cut makes no difference.

mod forms;
#[cfg(test)]
mod real_shells;
mod rows;
mod shell;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;

pub use self::forms::SHORTEST;
use self::forms::Texts;
use self::rows::Known;
use self::words::Words;

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

/// All forms of some secrets.
struct Forms {
    plain: Words,
    rows: Words,
}

impl Forms {
    fn new(texts: Texts) -> Result<Self, TooLarge> {
        Ok(Self { plain: Words::new(texts.plain)?, rows: Words::new(texts.rows)? })
    }

    /// The places of secrets, ordered by their starts.
    fn find(&self, known: Known<'_>) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = self.plain.find(known.bytes).collect();
        found.extend(known.find(&self.rows));
        found.sort_unstable();
        found
    }

    /// Whether there is a secret.
    fn are_in(&self, known: Known<'_>) -> bool {
        self.plain.are_in(known.bytes) || !known.find(&self.rows).is_empty()
    }

    /// The start of the longest suffix that may be the beginning of a secret.
    fn beginning(&self, known: Known<'_>) -> usize {
        let bytes = known.bytes;
        let first = (bytes.len() + 1).saturating_sub(self.plain.longest());
        let begins = |at: &usize| bytes.get(*at..).is_some_and(|rest| self.plain.begin_with(rest));
        let plain = (first..bytes.len()).find(begins).unwrap_or(bytes.len());
        plain.min(known.beginning(&self.rows))
    }
}

/// The bytes at the end of a stream that may be the beginning of a secret.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    begins_line: bool,
}

impl Default for Held {
    fn default() -> Self {
        Self { bytes: Vec::new(), begins_line: true }
    }
}

impl Held {
    fn known(&self) -> Known<'_> {
        Known { bytes: &self.bytes, begins_line: self.begins_line }
    }

    fn let_go(&mut self, until: usize) {
        if let Some(last) = until.checked_sub(1).and_then(|last| self.bytes.get(last)) {
            self.begins_line = *last == b'\n';
        }
        self.bytes.drain(..until);
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
    held: Held,
    /// The number of held bytes that belong to a secret whose mask was already returned.
    covered: usize,
}

impl Masker {
    /// For a new stream.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self { mask, held: Held::default(), covered: 0 }
    }

    /// Switches to another mask, because the run was given more secrets.
    pub fn renew(&mut self, mask: &Arc<Mask>) {
        if !Arc::ptr_eq(&self.mask, mask) {
            self.mask = Arc::clone(mask);
        }
    }

    /// Takes bytes, and returns what is known to be no secret, masked. What may be the beginning of one
    /// waits for more: at most as many bytes as three times the longest form of a secret.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.bytes.extend_from_slice(bytes);
        let until = self.mask.output.beginning(self.held.known());
        self.release(until)
    }

    /// Returns what is left: the stream has ended.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        self.release(self.held.bytes.len())
    }

    /// Lets go of the bytes before `until`: nothing that is yet to come begins there.
    fn release(&mut self, until: usize) -> Vec<u8> {
        let found = self.mask.output.find(self.held.known());
        let held = &self.held.bytes;
        let mut out = Vec::with_capacity(until);
        // Everything before `at` is out, or covered by a mask that is.
        let mut at = self.covered;
        for (start, end) in found.into_iter().take_while(|(start, _)| *start < until) {
            // One that overlaps with the one before is hidden by the same mask.
            if start >= at {
                out.extend_from_slice(held.get(at..start).unwrap_or_default());
                out.extend_from_slice(MASK);
            }
            at = at.max(end);
        }
        out.extend_from_slice(held.get(at..until).unwrap_or_default());
        self.held.let_go(until);
        self.covered = at.saturating_sub(until);
        out
    }
}

/// Looks for secrets in one stream of bytes.
#[derive(Debug)]
pub struct Finder {
    mask: Arc<Mask>,
    held: Held,
}

impl Finder {
    /// For a new stream.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self { mask, held: Held::default() }
    }

    /// Whether a secret ends in these bytes.
    #[must_use]
    pub fn finds(&mut self, bytes: &[u8]) -> bool {
        let files = &self.mask.files;
        self.held.bytes.extend_from_slice(bytes);
        let found = files.are_in(self.held.known());
        let until = files.beginning(self.held.known());
        self.held.let_go(until);
        found
    }

    /// The number of last bytes that may be the beginning of a secret.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.held.bytes.len()
    }
}

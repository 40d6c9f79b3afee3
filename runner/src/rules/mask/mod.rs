//! Masks secrets in the output of steps, in all common encodings, and finds them in stored files.
//! The result does not depend on how a stream is split into chunks.

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
use self::rows::UnreleasedBytes;
pub use self::words::TooLarge;
use self::words::WordSet;

/// Replaces a secret in output.
pub const MASK: &[u8] = b"***";

/// A set of secrets in all their forms.
pub struct Mask {
    /// The forms to mask in output.
    output: SecretForms,
    /// The forms to search for in files.
    files: SecretForms,
}

impl std::fmt::Debug for Mask {
    /// Omits the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mask").finish_non_exhaustive()
    }
}

/// The search for all forms of a set of secrets.
struct SecretForms {
    plain: WordSet,
    rows: WordSet,
}

impl SecretForms {
    fn new(texts: Texts) -> Result<Self, TooLarge> {
        Ok(Self { plain: WordSet::new(texts.plain)?, rows: WordSet::new(texts.rows)? })
    }

    /// Returns the ranges of secrets, sorted by start.
    fn find(&self, known: UnreleasedBytes<'_>) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = self.plain.find(known.bytes).collect();
        found.extend(known.find(&self.rows));
        found.sort_unstable();
        found
    }

    /// Returns true if the bytes contain a secret.
    fn are_in(&self, known: UnreleasedBytes<'_>) -> bool {
        self.plain.are_in(known.bytes) || !known.find(&self.rows).is_empty()
    }

    /// Returns the start of the longest suffix that may be the start of a secret.
    fn beginning(&self, known: UnreleasedBytes<'_>) -> usize {
        let bytes = known.bytes;
        let first = (bytes.len() + 1).saturating_sub(self.plain.longest());
        let begins =
            |at: &usize| bytes.get(*at..).is_some_and(|rest| self.plain.any_begins_with(rest));
        let plain = (first..bytes.len()).find(begins).unwrap_or(bytes.len());
        plain.min(known.beginning(&self.rows))
    }
}

/// The end of a stream that may be the start of a secret.
#[derive(Debug)]
struct HeldBytes {
    bytes: Vec<u8>,
    begins_line: bool,
}

impl Default for HeldBytes {
    fn default() -> Self {
        Self { bytes: Vec::new(), begins_line: true }
    }
}

impl HeldBytes {
    fn known(&self) -> UnreleasedBytes<'_> {
        UnreleasedBytes { bytes: &self.bytes, begins_line: self.begins_line }
    }

    fn release(&mut self, until: usize) {
        if let Some(last) = until.checked_sub(1).and_then(|last| self.bytes.get(last)) {
            self.begins_line = *last == b'\n';
        }
        self.bytes.drain(..until);
    }
}

impl Mask {
    /// Creates a mask for a set of values. Values shorter than [`SHORTEST`] bytes are not masked,
    /// because they would match everywhere.
    ///
    /// # Errors
    /// [`TooLarge`] if the values have too many bytes in total.
    pub fn new<'a>(values: impl Iterator<Item = &'a [u8]> + Clone) -> Result<Self, TooLarge> {
        let output = SecretForms::new(forms::in_output(values.clone()))?;
        Ok(Self { output, files: SecretForms::new(forms::in_files(values))? })
    }

    /// Returns a text with its secrets masked.
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
    held: HeldBytes,
    /// The number of held bytes that belong to a secret whose mask was already returned.
    covered: usize,
}

impl Masker {
    /// Creates a masker for a new stream.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self { mask, held: HeldBytes::default(), covered: 0 }
    }

    /// Switches to another mask, because the run was given more secrets.
    pub fn renew(&mut self, mask: &Arc<Mask>) {
        if !Arc::ptr_eq(&self.mask, mask) {
            self.mask = Arc::clone(mask);
        }
    }

    /// Adds bytes and returns masked output. Withholds bytes that may be the start of a secret: at
    /// most three times the longest form of a secret.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.bytes.extend_from_slice(bytes);
        let until = self.mask.output.beginning(self.held.known());
        self.release(until)
    }

    /// Returns the remaining output at the end of the stream.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        self.release(self.held.bytes.len())
    }

    /// Releases the bytes before `until`. No secret that is still incomplete starts before it.
    fn release(&mut self, until: usize) -> Vec<u8> {
        let found = self.mask.output.find(self.held.known());
        let held = &self.held.bytes;
        let mut out = Vec::with_capacity(until);
        // Bytes before `at` are released, or are covered by a mask that is.
        let mut at = self.covered;
        for (start, end) in found.into_iter().take_while(|(start, _)| *start < until) {
            // Overlapping secrets share one mask.
            if start >= at {
                out.extend_from_slice(held.get(at..start).unwrap_or_default());
                out.extend_from_slice(MASK);
            }
            at = at.max(end);
        }
        out.extend_from_slice(held.get(at..until).unwrap_or_default());
        self.held.release(until);
        self.covered = at.saturating_sub(until);
        out
    }
}

/// Searches one stream of bytes for secrets.
#[derive(Debug)]
pub struct SecretSearch {
    mask: Arc<Mask>,
    held: HeldBytes,
}

impl SecretSearch {
    /// Creates a finder for a new stream.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self { mask, held: HeldBytes::default() }
    }

    /// Returns true if a secret ends in these bytes.
    #[must_use]
    pub fn finds(&mut self, bytes: &[u8]) -> bool {
        let files = &self.mask.files;
        self.held.bytes.extend_from_slice(bytes);
        let found = files.are_in(self.held.known());
        let until = files.beginning(self.held.known());
        self.held.release(until);
        found
    }

    /// Returns the number of trailing bytes that may be the start of a secret.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.held.bytes.len()
    }
}

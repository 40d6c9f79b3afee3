//! The mask of a run: replaces its secrets in texts, and finds them in data that leaves the worker.

use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;

use crate::ports::{Search, SecretMatcher};
use crate::rules::mask::{Mask, SecretSearch};

/// The mask of one run, shared by all its tasks. It grows when a step receives secrets.
#[derive(Debug, Clone, Default)]
pub(super) struct RunMask(Arc<RwLock<Option<Arc<Mask>>>>);

impl RunMask {
    /// Returns the current mask, or `None` if the run has no secrets yet.
    pub(super) fn current(&self) -> Option<Arc<Mask>> {
        self.0.read().clone()
    }

    pub(super) fn set(&self, mask: Mask) {
        *self.0.write() = Some(Arc::new(mask));
    }

    /// Masks the secrets in a text.
    pub(super) fn text(&self, text: &str) -> String {
        self.current().map_or_else(|| text.to_owned(), |mask| mask.text(text))
    }

    /// Masks the secrets in every string of a value.
    pub(super) fn value(&self, value: &mut Value) {
        let Some(mask) = self.current() else { return };
        mask_in(&mask, value);
    }

    /// Returns a search for secrets in data that leaves the worker.
    pub(super) fn forbidden(&self) -> Option<Arc<dyn SecretMatcher>> {
        self.current().map(|mask| Arc::new(MaskMatcher(mask)) as _)
    }
}

/// Masks every string in a value, except the keys of objects. The recursion is bounded because the
/// depth of documents is limited.
fn mask_in(mask: &Arc<Mask>, value: &mut Value) {
    match value {
        Value::String(text) => *text = mask.text(text),
        Value::Array(items) => items.iter_mut().for_each(|item| mask_in(mask, item)),
        Value::Object(entries) => entries.values_mut().for_each(|entry| mask_in(mask, entry)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A [`Mask`] as a [`SecretMatcher`].
#[derive(Debug)]
struct MaskMatcher(Arc<Mask>);

impl SecretMatcher for MaskMatcher {
    fn search(&self) -> Box<dyn Search> {
        Box::new(MaskSearch(SecretSearch::new(Arc::clone(&self.0))))
    }
}

/// A [`SecretSearch`] as a [`Search`].
struct MaskSearch(SecretSearch);

impl Search for MaskSearch {
    fn finds(&mut self, bytes: &[u8]) -> bool {
        self.0.finds(bytes)
    }

    fn pending(&self) -> usize {
        self.0.pending()
    }
}

//! The mask of a run: replaces its secrets in texts, and finds them in data that leaves the worker.

use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;

use crate::ports::{Search, SecretMatcher};
use crate::rules::mask::{Mask, SecretSearch};

/// The mask of one run, shared by all its tasks. It grows when a step is given secrets.
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

    /// Masks a text.
    pub(super) fn text(&self, text: &str) -> String {
        self.current().map_or_else(|| text.to_owned(), |mask| mask.text(text))
    }

    /// Masks all texts of a value.
    pub(super) fn value(&self, value: &mut Value) {
        let Some(mask) = self.current() else { return };
        mask_in(&mask, value);
    }

    /// Returns a search for secrets in data that leaves the worker.
    pub(super) fn forbidden(&self) -> Option<Arc<dyn SecretMatcher>> {
        self.current().map(|mask| Arc::new(Masked(mask)) as _)
    }
}

/// The recursion is bounded because the depth of documents is limited.
fn mask_in(mask: &Arc<Mask>, value: &mut Value) {
    match value {
        Value::String(text) => *text = mask.text(text),
        Value::Array(items) => items.iter_mut().for_each(|item| mask_in(mask, item)),
        Value::Object(entries) => entries.values_mut().for_each(|entry| mask_in(mask, entry)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Adapts the mask to the port.
#[derive(Debug)]
struct Masked(Arc<Mask>);

impl SecretMatcher for Masked {
    fn search(&self) -> Box<dyn Search> {
        Box::new(Finding(SecretSearch::new(Arc::clone(&self.0))))
    }
}

struct Finding(SecretSearch);

impl Search for Finding {
    fn finds(&mut self, bytes: &[u8]) -> bool {
        self.0.finds(bytes)
    }

    fn pending(&self) -> usize {
        self.0.pending()
    }
}

//! A look at what a step left, for people: which files it changed.

use serde::Deserialize;

use super::Podman;
use super::call::Ask;
use crate::ports::ExecError;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It, or what is in it where it is a directory, is not what it was.
    Changed,
    /// It is gone.
    Deleted,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Line {
    path: String,
    kind: u8,
}

impl Line {
    pub(super) fn change(self) -> (String, Change) {
        let Self { path, kind } = self;
        match kind {
            // podman's `archive.ChangeType`.
            1 => (path, Change::Added),
            2 => (path, Change::Deleted),
            _ => (path, Change::Changed),
        }
    }
}

impl Podman {
    /// What an image changes in the files of another one, in the order of their paths; of the image
    /// below it where none is named. `None`: the engine does not have it.
    ///
    /// # Errors
    /// [`ExecError`] where the engine does not answer.
    pub async fn changes(
        &self,
        image: &str,
        since: Option<&str>,
    ) -> Result<Option<Vec<(String, Change)>>, ExecError> {
        let failed = |fault: super::call::Fault| fault.at("comparing images", &self.http);
        let mut link = self.http.link();
        for wanted in [Some(image), since].into_iter().flatten() {
            if link.image(wanted).await.map_err(failed)?.is_none() {
                return Ok(None);
            }
        }
        let parent = since.map(|since| format!("?parent={since}")).unwrap_or_default();
        let ask = Ask::get(format!("/images/{image}/changes{parent}"));
        let reply = link.call(ask).await.and_then(super::call::Reply::good).map_err(failed)?;
        let lines: Option<Vec<Line>> = reply.json().map_err(failed)?;
        let mut changes: Vec<(String, Change)> =
            lines.into_iter().flatten().map(Line::change).collect();
        changes.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Some(changes))
    }
}

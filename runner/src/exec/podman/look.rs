//! Lists the files that a step changed, for display.

use serde::Deserialize;

use super::Podman;
use super::call::EngineCall;
use crate::ports::ExecError;

/// How a file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was added.
    Added,
    /// It was modified, or something in the directory changed.
    Changed,
    /// It was deleted.
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
            // The values of podman's `archive.ChangeType`.
            1 => (path, Change::Added),
            2 => (path, Change::Deleted),
            _ => (path, Change::Changed),
        }
    }
}

impl Podman {
    /// The changes between `since`, by default the parent image, and an image, in path order.
    /// `None` if the engine does not have the image.
    ///
    /// # Errors
    /// [`ExecError`] if the engine does not answer.
    pub async fn changes(
        &self,
        image: &str,
        since: Option<&str>,
    ) -> Result<Option<Vec<(String, Change)>>, ExecError> {
        let failed = |fault: super::call::Fault| fault.at("comparing images", &self.http);
        let mut link = self.http.link();
        let Some(found) = link.image(image).await.map_err(failed)? else { return Ok(None) };
        if let Some(since) = since
            && link.image(since).await.map_err(failed)?.is_none()
        {
            return Ok(None);
        }
        let parent = since.map(|since| format!("?parent={since}")).unwrap_or_default();
        let ask = EngineCall::get(format!("/images/{image}/changes{parent}"));
        let reply = link.call(ask).await.and_then(super::call::Reply::good).map_err(failed)?;
        let lines: Option<Vec<Line>> = reply.json().map_err(failed)?;
        let mut changes: Vec<(String, Change)> =
            lines.into_iter().flatten().map(Line::change).collect();
        changes.sort_by(|(a, _), (b, _)| a.cmp(b));
        let before = since.or_else(|| found.parent());
        Ok(Some(self.without_the_engines_own(changes, before, image).await))
    }
}

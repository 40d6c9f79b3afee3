//! Creates the directories that a container needs before it starts, with the engine's archive call.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hyper::Method;
use tokio::time::timeout;

use super::call::{Fault, Reply, empty, read};
use super::{Podman, path};
use crate::exec::archive::directories;
use crate::exec::work_dir::{Entry, PathWalk, ResolvedPath, STAT_HEADER};
use crate::ports::ExecError;

/// The timeout for inspecting one path.
const WITHIN: Duration = Duration::from_secs(60);

impl Podman {
    /// Resolves a path in a container that is not running.
    pub(super) async fn find_dir(&self, id: &str, path: &str) -> Result<ResolvedPath, ExecError> {
        let mut walk = PathWalk::along(path);
        while let Some(at) = walk.next() {
            let looked = timeout(WITHIN, self.entry(id, &at)).await;
            let entry = looked.unwrap_or(Err(Fault::TimedOut(WITHIN)));
            walk.answer(entry.map_err(|fault| fault.at("looking for a directory", &self.http))?);
        }
        Ok(walk.found())
    }

    async fn entry(&self, id: &str, at: &str) -> Result<Entry, Fault> {
        let query = path::query(&[("path", at)]);
        let path = format!("/containers/{id}/archive?{query}");
        let answer = self.http.open(&Method::HEAD, &path, &[], empty()).await?;
        let stat = answer.headers().get(STAT_HEADER).map(|value| value.as_bytes());
        if let Some(entry) = Entry::answered(answer.status().as_u16(), stat) {
            return entry.map_err(Fault::Malformed);
        }
        // A HEAD response has no message, so repeat the request with GET.
        let answer = self.http.open(&Method::GET, &path, &[], empty()).await?;
        let status = answer.status().as_u16();
        if answer.status().is_success() {
            return Err(Fault::Malformed(format!("{at} is there and cannot be looked at")));
        }
        match read(answer).await.and_then(Reply::good) {
            Err(fault) if Entry::is_circle(fault.refusal()) => Ok(Entry::Link(String::new())),
            Err(fault) => Err(fault),
            Ok(_) => Err(Fault::Malformed(format!("status {status}"))),
        }
    }

    /// Creates directories. Each parent must be an existing directory that is not a link, or an
    /// earlier entry of the list.
    pub(super) async fn make_dirs(
        &self,
        id: &str,
        missing: &[String],
        mode: u32,
    ) -> Result<(), ExecError> {
        let Some(last) = missing.last() else { return Ok(()) };
        let inside = missing.iter().map(|path| format!("{}/", path.trim_matches('/')));
        let inside: Vec<String> = inside.collect();
        let tar = directories(inside, mode).await.map_err(|cause| {
            ExecError::Input(format!("the directory {last} cannot be made in a container: {cause}"))
        })?;
        let tar = futures::stream::iter([Ok(Bytes::from(tar))]).boxed();
        self.put(id, "/", tar).await
    }
}

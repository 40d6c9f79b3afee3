//! Copies files into and out of workspaces.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use parking_lot::Mutex;

use super::call::{ANSWERS, Body, Fault, Reply, bytes_of, empty, no_space, read};
use super::create::Create;
use super::{Podman, path};
use crate::exec::archive::whole_archive;
use crate::exec::deadline::Flow;
use crate::ports::{ByteStream, ExecError, RunScope, Workspace};

impl Podman {
    /// Unpacks a tar into a directory of a workspace.
    pub(super) async fn unpack(
        &self,
        run: &RunScope,
        on: &Workspace,
        at: &str,
        tar: ByteStream,
    ) -> Result<Workspace, ExecError> {
        let (image, known) = self.known(run, on).await?;
        let mut link = self.http.link();
        let mut create = Create::mount(run, &known.base, &image);
        let id = self.create(&mut link, run, &image, &mut create, None).await?;
        let done = async {
            let found = self.find_dir(&id, at).await?;
            let (at, missing) = found.into_path(at, true).map_err(ExecError::Input)?;
            self.make_dirs(&id, &missing, 0o700).await?;
            self.put(&id, &at, tar).await?;
            self.keep(&mut link, run, &id, &image, &known, "mount").await
        };
        let done = done.await;
        self.reaper.soon(&self.http, &run.run, id);
        done
    }

    pub(super) async fn put(&self, id: &str, at: &str, tar: ByteStream) -> Result<(), ExecError> {
        // The source's own error is more useful than that of the broken request.
        let source: Arc<Mutex<Option<String>>> = Arc::default();
        let noted = Arc::clone(&source);
        let flow = Arc::new(Flow::default());
        let tar = stream::unfold((tar, Arc::clone(&flow)), |(mut tar, flow)| async move {
            // The source can be slow, which is not the engine's fault.
            let hold = flow.hold();
            let bytes = tar.next().await;
            drop(hold);
            bytes.map(|bytes| (bytes, (tar, flow)))
        });
        let frames = tar.map_ok(Frame::data).inspect_err(move |cause| {
            *noted.lock() = Some(cause.to_string());
        });
        let query = path::query(&[("path", at)]);
        let path = format!("/containers/{id}/archive?{query}");
        let headers = [("content-type", "application/x-tar".to_owned())];
        let body: Body = StreamBody::new(frames).boxed_unsync();
        let put = async {
            // The response begins once everything is unpacked.
            let opened = self.http.open_within(Duration::MAX, &Method::PUT, &path, &headers, body);
            read(opened.await?).await?.good()
        };
        let put = tokio::select! {
            biased;
            put = put => put,
            () = flow.stalled(ANSWERS) => Err(Fault::TimedOut(ANSWERS)),
        };
        let broke_off = source.lock().take();
        if let Some(cause) = broke_off {
            return Err(ExecError::Input(format!(
                "what was to be unpacked at {at} broke off: {cause}"
            )));
        }
        match put {
            Ok(_) => Ok(()),
            Err(Fault::Refused { message, .. }) if !no_space(&message) => {
                Err(ExecError::Input(format!("it cannot be unpacked at {at}: {message}")))
            }
            Err(fault) => Err(fault.at("unpacking files", &self.http)),
        }
    }

    /// A tar of a path in a step's container.
    pub(super) async fn pack(
        &self,
        run: &RunScope,
        left: &Workspace,
        wanted: &str,
    ) -> Result<ByteStream, ExecError> {
        let Workspace::Container { id, .. } = left else {
            return Err(ExecError::NoSuchPath { path: wanted.to_owned() });
        };
        let failed = |fault: Fault| fault.at("reading an artifact", &self.http);
        let mut link = self.http.link();
        link.mount(id).await.map_err(failed)?;
        let dir = match self.memory.container(&run.run, id) {
            Some(made) => made.work_dir,
            None => {
                let looked = link.inspect(id, Duration::from_secs(5)).await;
                let looked = looked.map_err(|fault| fault.at("looking at a step", &self.http))?;
                looked.map_or_else(|| "/".to_owned(), |container| container.work_dir().to_owned())
            }
        };
        let whole = if wanted.starts_with('/') {
            wanted.to_owned()
        } else {
            format!("{}/{wanted}", dir.trim_end_matches('/'))
        };
        let query = path::query(&[("path", &whole)]);
        let path = format!("/containers/{id}/archive?{query}");
        let answer = self.http.open(&Method::GET, &path, &[], empty()).await.map_err(failed)?;
        if !answer.status().is_success() {
            let said = read(answer).await.and_then(Reply::good);
            return Err(match said {
                Err(fault) if fault.status() == Some(404) => ExecError::NoSuchPath { path: whole },
                Err(fault) => failed(fault),
                Ok(reply) => failed(Fault::Malformed(format!("status {}", reply.status))),
            });
        }
        Ok(whole_archive(bytes_of(answer.into_body())))
    }
}

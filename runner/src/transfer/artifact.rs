//! Artifacts: uploads a tar to a store as fast as the store accepts it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use protocol::names;
use reqwest::Body;
use tokio::sync::watch;

use super::address::Service;
use super::answer::{accepted, reason};
use super::http::Http;
use super::progress::Stalled;
use super::progress::Timeouts;
use crate::ports::{ByteStream, Origin, TransferError};

impl Http {
    /// Uploads a tar to a store.
    pub(super) async fn send(
        &self,
        registered: &str,
        [group, name, run, artifact]: [&str; 4],
        tar: ByteStream,
        origin: &Origin,
    ) -> Result<(), TransferError> {
        let service = Service::at("artifact store", registered)?;
        let url = service.path(&[names::ARTIFACT_PATH, group, name, run, artifact])?;
        // Does not follow redirects. They would turn the request into a GET without a body, whose
        // response says nothing about the upload.
        let client = self.clients.to(&url).await;
        let client = client.map_err(|cause| service.unreachable(cause))?;
        let moved = watch::Sender::new(0);
        let mut moves = moved.subscribe();
        let broken = Arc::new(Mutex::new(None));
        let request = client
            .post(url)
            .header(reqwest::header::CONTENT_TYPE, "application/x-tar")
            .header(names::HEADER_RUN, origin.run.as_str())
            .header(names::HEADER_EPOCH, origin.epoch.0)
            .header(names::HEADER_ATTEMPT, origin.attempt)
            .body(watched(tar, moved, Arc::clone(&broken)));

        let Timeouts { idle, progress_bytes: least, .. } = self.timeouts;
        let stalled = async {
            loop {
                let from = *moves.borrow();
                let enough = moves.wait_for(|total| *total >= from + least);
                match tokio::time::timeout(idle, enough).await.map(|more| more.is_ok()) {
                    Ok(true) => {}
                    // The sender is dropped once the body is sent. The response may take as long.
                    Ok(false) => {
                        tokio::time::sleep(idle).await;
                        return 0;
                    }
                    Err(_) => return *moves.borrow() - from,
                }
            }
        };
        let answer = tokio::select! {
            answer = request.send() => answer,
            moved = stalled => {
                let stalled = Stalled::new(&self.timeouts, moved);
                return Err(service.unreachable(format!("it took {stalled}")));
            }
        };
        // If reading the bytes failed, report that, whatever the store answered.
        if let Some(cause) = broken.lock().take() {
            return Err(TransferError::Input(format!(
                "what was to be uploaded broke off: {cause}"
            )));
        }
        let response = answer.map_err(|error| service.unreachable(reason(&error)))?;
        accepted(&service, response, idle).await.map(drop)
    }
}

/// The same bytes. Counts them in `moved` and stores a read error in `broken`.
fn watched(tar: ByteStream, moved: watch::Sender<u64>, broken: Arc<Mutex<Option<String>>>) -> Body {
    let bytes = tar.map(move |chunk| {
        let bytes = chunk.as_ref().map_or(0, Bytes::len);
        moved.send_modify(|total| *total += bytes as u64);
        chunk.inspect_err(|error: &io::Error| {
            *broken.lock() = Some(error.to_string());
        })
    });
    Body::wrap_stream(bytes)
}

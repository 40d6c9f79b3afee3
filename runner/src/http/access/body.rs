//! The body of a request, limited in size.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use http_body_util::Limited;
use hyper::body::{Frame, SizeHint};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Whether a body announces more bytes than the limit.
pub(super) fn is_too_large(headers: &HeaderMap, limit: usize) -> bool {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    announced.and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > limit as u64)
}

/// Limits a body. Reading more fails with [`http_body_util::LengthLimitError`]. Also returns
/// whether the body was received completely.
pub(super) fn limited(body: Body, limit: usize) -> (Body, Received) {
    let received = Received(Arc::new(AtomicBool::new(body.is_end_stream())));
    let body = Watched { body: Limited::new(body, limit), received: received.clone() };
    (Body::new(body), received)
}

/// Whether a body was received completely.
#[derive(Debug, Clone)]
pub(super) struct Received(Arc<AtomicBool>);

impl Received {
    pub(super) fn is_complete(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Watched {
    body: Limited<Body>,
    received: Received,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // The last frame of a body of known length is not followed by another poll.
        if frame.is_none() || self.body.is_end_stream() {
            self.received.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

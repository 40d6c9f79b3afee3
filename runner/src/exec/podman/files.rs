//! Files in and out of what steps leave.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Method;
use hyper::body::Frame;

use super::call::{Ask, Body, Fault, Reply, empty, no_space, read};
use super::create::Create;
use super::http::Link;
use super::{Podman, path};
use crate::ports::{ByteStream, ExecError, RunScope, Workspace};

impl Podman {
    /// Unpacks a tar at a directory of a workspace.
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
            self.directory(&mut link, &id, at).await?;
            self.put(&id, at, tar).await?;
            self.keep(&mut link, run, &id, &image, &known, "mount").await
        };
        let done = done.await;
        self.reaper.soon(&self.http, &run.run, id);
        done
    }

    /// Makes a directory where it is missing.
    async fn directory(&self, link: &mut Link, id: &str, at: &str) -> Result<(), ExecError> {
        let query = path::query(&[("path", at)]);
        let ask = Ask::new(Method::HEAD, format!("/containers/{id}/archive?{query}"));
        let looked = link.call(ask).await.and_then(Reply::good);
        match looked {
            Ok(_) => return Ok(()),
            Err(fault) if fault.status() == Some(404) => {}
            Err(fault) => return Err(fault.at("looking for a directory", &self.http)),
        }
        let inside = at.trim_matches('/');
        let tar = directory_tar(inside).await.map_err(|cause| {
            ExecError::Input(format!("the directory {at} cannot be made in a container: {cause}"))
        })?;
        let tar = futures::stream::iter([Ok(Bytes::from(tar))]).boxed();
        self.put(id, "/", tar).await
    }

    pub(super) async fn put(&self, id: &str, at: &str, tar: ByteStream) -> Result<(), ExecError> {
        // What the source of the bytes failed with says more than that the request broke off.
        let source: Arc<Mutex<Option<String>>> = Arc::default();
        let noted = Arc::clone(&source);
        let frames = tar.map_ok(Frame::data).inspect_err(move |cause| {
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause.to_string());
        });
        let query = path::query(&[("path", at)]);
        let path = format!("/containers/{id}/archive?{query}");
        let headers = [("content-type", "application/x-tar".to_owned())];
        let body: Body = StreamBody::new(frames).boxed_unsync();
        let put = async {
            let answer = self.http.open(&Method::PUT, &path, &headers, body).await?;
            read(answer).await?.good()
        };
        let put = put.await;
        let broke_off = source.lock().unwrap_or_else(PoisonError::into_inner).take();
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

    /// A tar of what lies at a path of a step's container.
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
                Ok(reply) => failed(Fault::Garbled(format!("status {}", reply.status))),
            });
        }
        let body = http_body_util::BodyStream::new(answer.into_body());
        let bytes = body.filter_map(|frame| async {
            match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(cause) => Some(Err(io::Error::other(cause))),
            }
        });
        Ok(whole_archive(bytes.boxed()))
    }
}

/// The same bytes, and an error after them where they are no whole archive. The engine answers 200
/// before it reads: where it fails later it only logs that, and ends its answer as if all were well.
fn whole_archive(bytes: ByteStream) -> ByteStream {
    let ending = Arc::new(Mutex::new(Ending::default()));
    let seen = Arc::clone(&ending);
    let watched = bytes.inspect_ok(move |chunk| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).see(chunk);
    });
    let last = futures::stream::once(async move {
        let ending = *ending.lock().unwrap_or_else(PoisonError::into_inner);
        (!ending.is_of_a_tar()).then(|| {
            let cause = format!("the engine's archive breaks off after {} bytes", ending.len);
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause))
        })
    });
    watched.chain(last.filter_map(|error| async { error })).boxed()
}

/// What can be told from the end of an archive.
#[derive(Debug, Default, Clone, Copy)]
struct Ending {
    len: u64,
    /// The zero bytes that it ends with.
    zeros: u64,
}

impl Ending {
    const BLOCK: u64 = 512;

    fn see(&mut self, chunk: &[u8]) {
        let zeros = chunk.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        let len = chunk.len() as u64;
        self.len += len;
        self.zeros = if zeros == len { self.zeros + len } else { zeros };
    }

    /// Entries, and two blocks of zeros.
    fn is_of_a_tar(self) -> bool {
        self.len.is_multiple_of(Self::BLOCK)
            && self.zeros >= 2 * Self::BLOCK
            && self.len > self.zeros
    }
}

/// A tar that holds a directory, and those above it.
async fn directory_tar(inside: &str) -> io::Result<Vec<u8>> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    let mut path = String::new();
    for part in inside.split('/').filter(|part| !part.is_empty()) {
        path = format!("{path}{part}/");
        let mut header = tokio_tar::Header::new_gnu();
        header.set_entry_type(tokio_tar::EntryType::Directory);
        header.set_mode(0o700);
        header.set_size(0);
        tar.append_data(&mut header, &path, tokio::io::empty()).await?;
    }
    tar.into_inner().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(pieces: Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
        let bytes = futures::stream::iter(pieces.into_iter().map(|piece| Ok(Bytes::from(piece))));
        let read: Vec<Bytes> = whole_archive(bytes.boxed()).try_collect().await?;
        Ok(read.concat())
    }

    #[tokio::test]
    async fn a_whole_archive_comes_as_it_is_in_pieces_of_any_size() {
        let tar = directory_tar("a/b").await.unwrap();
        for size in [1, 511, 512, 513, tar.len()] {
            let pieces = tar.chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(read(pieces).await.unwrap(), tar, "pieces of {size} bytes");
        }
    }

    #[tokio::test]
    async fn an_archive_that_breaks_off_or_is_empty_is_an_error() {
        let tar = directory_tar("a/b").await.unwrap();
        let empty = vec![0; 1024];
        let first = tar.get(..512).unwrap().to_vec();
        let cut = tar.get(..tar.len() - 512).unwrap().to_vec();
        for pieces in [vec![], vec![empty], vec![first], vec![cut]] {
            let said = read(pieces).await.unwrap_err().to_string();
            assert!(said.contains("breaks off after"), "{said}");
        }
    }
}

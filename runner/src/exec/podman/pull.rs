//! Pulls and pushes images. Concurrent pulls of one image are merged. The engine answers 200 before
//! it starts, and can report an error later. So its response is always read to the end.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use hyper::Method;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio_util::task::TaskTracker;

use super::call::{Fault, empty, next_bytes, no_space, read, saw_a_removal};
use super::http::Http;
use super::path::query;
use crate::exec::auth::{self, Credentials};
use crate::ports::{ExecError, Pauses};

/// The longest pause in the progress of a pull or push. The engine reports a layer only at its
/// start.
const PROGRESS: Duration = Duration::from_secs(30 * 60);
/// The maximum length of a response line, in bytes.
const LONGEST_LINE: usize = 1 << 20;
/// How often a pull is retried after a layer that the engine meant to reuse was removed meanwhile.
const AGAIN: u32 = 5;

/// Registry settings and credentials.
#[derive(Debug, Clone, Default)]
pub(super) struct Registries {
    /// Credential files. The first file with an entry for a registry is used.
    pub(super) auth_files: Vec<PathBuf>,
    /// Whether the user named the first file, so that it must exist.
    pub(super) auth_asked_for: bool,
    /// Hosts accessed without TLS or without verifying their certificate.
    pub(super) insecure: Vec<String>,
}

impl Registries {
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|insecure| insecure == host)
    }

    /// The credentials for an image.
    pub(super) fn credentials(&self, image: &str) -> Result<Option<Credentials>, String> {
        auth::find(&self.auth_files, self.auth_asked_for, image)
    }
}

/// Why a pull failed, for everyone who waited for it.
#[derive(Debug, Clone)]
enum Failed {
    Image(String),
    NoSpace(String),
    Away(String),
}

impl Failed {
    fn of(self, image: &str, http: &Http) -> ExecError {
        match self {
            Self::Image(cause) => ExecError::Image { image: image.to_owned(), cause },
            Self::NoSpace(cause) => ExecError::NoSpace { cause },
            Self::Away(cause) => ExecError::Unreachable { at: http.address.clone(), cause },
        }
    }
}

type Flight = Shared<BoxFuture<'static, Result<String, Failed>>>;

/// Pulls in progress, by image reference.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    flights: Arc<Mutex<HashMap<String, Flight>>>,
    tasks: TaskTracker,
}

impl Pulls {
    /// Pulls an image, or waits for a pull of it that is in progress. Returns its id.
    ///
    /// # Cancel safety
    /// The pull continues, because others might wait for it.
    pub(super) async fn pull(
        &self,
        http: &Arc<Http>,
        registries: &Registries,
        image: &str,
    ) -> Result<String, ExecError> {
        let flight = self.join(http, registries, image);
        flight.await.map_err(|failed| failed.of(image, http))
    }

    fn join(&self, http: &Arc<Http>, registries: &Registries, image: &str) -> Flight {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(image) {
            return flight.clone();
        }
        let (http, registries, image) = (Arc::clone(http), registries.clone(), image.to_owned());
        let (all, key) = (Arc::clone(&self.flights), image.clone());
        let task = self.tasks.spawn(async move {
            // Also after a panic, so that the next step can pull the image.
            scopeguard::defer! { all.lock().remove(&image); }
            fetch(&http, &registries, &image).await
        });
        let flight = async move {
            task.await.unwrap_or_else(|cause| Err(Failed::Away(format!("the pull ended: {cause}"))))
        };
        let flight = flight.boxed().shared();
        flights.insert(key, flight.clone());
        flight
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    id: Option<String>,
}

/// The result of a pull, collected line by line.
#[derive(Debug, Default)]
struct Answer {
    line: Vec<u8>,
    id: Option<String>,
    error: Option<String>,
}

impl Answer {
    fn feed(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() <= LONGEST_LINE {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        // Other lines are progress or unknown, and are ignored.
        if let Ok(line) = serde_json::from_slice::<Line>(&self.line) {
            self.id = line.id.filter(|id| !id.is_empty()).or_else(|| self.id.take());
            self.error = line.error.filter(|text| !text.is_empty()).or_else(|| self.error.take());
        }
        self.line.clear();
    }

    /// Returns the error that the engine reported.
    fn end(mut self) -> Result<(), String> {
        self.end_line();
        self.error.map_or(Ok(()), Err)
    }

    fn result(mut self) -> Result<String, String> {
        self.end_line();
        match (self.error, self.id) {
            (Some(error), _) => Err(error),
            (None, Some(id)) => Ok(id),
            (None, None) => Err("the engine's answer names no image".to_owned()),
        }
    }
}

async fn fetch(http: &Http, registries: &Registries, image: &str) -> Result<String, Failed> {
    let path = format!("/images/pull?{}", query(&[("reference", image), ("policy", "always")]));
    let mut pauses = Pauses::doubling(Duration::from_millis(100), Duration::from_secs(2));
    let mut tries = 0;
    loop {
        let said = converse(http, registries, image, path.clone()).await?;
        match said.result() {
            Ok(id) => return Ok(id),
            Err(cause) if saw_a_removal(&cause) && tries < AGAIN => {
                tries += 1;
                tracing::debug!(image, cause, "pulling once more");
                pauses.wait().await;
            }
            Err(cause) => return Err(failed(cause, image)),
        }
    }
}

/// Pushes an image to a registry under the given name.
pub(super) async fn push(
    http: &Http,
    registries: &Registries,
    image: &str,
    to: &str,
) -> Result<(), ExecError> {
    // A quiet push reports nothing before its end, and not always then.
    let query = query(&[("destination", to), ("quiet", "false")]);
    let path = format!("/images/{image}/push?{query}");
    let said = converse(http, registries, to, path).await;
    let pushed = said.and_then(|said| said.end().map_err(|cause| failed(cause, to)));
    pushed.map_err(|failed| failed.of(to, http))
}

fn failed(cause: String, image: &str) -> Failed {
    if no_space(&cause) {
        return Failed::NoSpace(cause);
    }
    Failed::Image(reason(&cause, &ContactedRegistries::of(&cause, image)))
}

/// The registries that the engine contacted for an image.
#[derive(Debug, PartialEq, Eq)]
struct ContactedRegistries<'s>(Vec<&'s str>);

impl<'s> ContactedRegistries<'s> {
    /// For a name without a registry, the engine searches several registries and lists them in its
    /// error.
    fn of(said: &'s str, image: &'s str) -> Self {
        let (host, full) = auth::registry_of(image);
        let name = image.strip_prefix("docker://").unwrap_or(image);
        if full.split('/').next() == name.split('/').next() {
            return Self(vec![host]);
        }
        let mut hosts = Vec::new();
        let marks = ["docker://", "pinging container registry "];
        for after in marks.iter().flat_map(|mark| said.split(mark).skip(1)) {
            let host = after.split(['/', ' ', '"']).next().unwrap_or_default();
            let host = host.trim_end_matches(':');
            if !host.is_empty() && !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        Self(hosts)
    }
}

impl std::fmt::Display for ContactedRegistries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("the registry that the engine searches"),
            [one] => write!(f, "registry {one}"),
            several => write!(f, "each of the registries {}", several.join(", ")),
        }
    }
}

/// Makes a pull or push call and reads the response to its end.
async fn converse(
    http: &Http,
    registries: &Registries,
    image: &str,
    mut path: String,
) -> Result<Answer, Failed> {
    let (host, _) = auth::registry_of(image);
    let credentials = registries.credentials(image).map_err(Failed::Image)?;
    if registries.is_insecure(host) {
        path.push_str("&tlsVerify=false");
    }
    let headers: Vec<_> =
        credentials.iter().map(|credentials| ("x-registry-auth", credentials.header())).collect();
    let conversed = async {
        let answer = http.open_within(PROGRESS, &Method::POST, &path, &headers, empty()).await?;
        if !answer.status().is_success() {
            return read(answer).await?.good().map(|_| Answer::default());
        }
        let mut said = Answer::default();
        let mut body = answer.into_body();
        while let Some(bytes) = next_bytes(&mut body, PROGRESS).await? {
            said.feed(&bytes);
        }
        Ok(said)
    };
    match conversed.await {
        Ok(said) => Ok(said),
        Err(Fault::Refused { message, .. }) => Err(failed(message, image)),
        Err(fault @ (Fault::Unreachable(_) | Fault::Broken(_))) => {
            Err(Failed::Away(fault.to_string()))
        }
        // An engine that is late waits for the registry.
        Err(fault @ (Fault::Malformed(_) | Fault::TimedOut(_))) => {
            Err(Failed::Image(fault.to_string()))
        }
    }
}

/// A one-sentence error: the problem, if a user can fix it, and the engine's message.
fn reason(said: &str, asked: &ContactedRegistries<'_>) -> String {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let words = lines.join(" ");
    let words = words.trim_start_matches("Error: ");
    if has(&["server gave HTTP response to HTTPS client"]) {
        format!("{asked} does not speak TLS: add it to BOB_REGISTRY_INSECURE ({words})")
    } else if has(&["x509:", "tls: "]) {
        format!("the certificate of {asked} is not trusted here ({words})")
    } else if has(&[
        "unauthorized",
        "authentication required",
        "denied",
        "invalid username/password",
    ]) {
        format!(
            "{asked} refuses the credentials, or needs some: see BOB_REGISTRY_AUTH_FILE ({words})"
        )
    } else if has(&["manifest unknown", "name unknown", "repository name not known", "not found"]) {
        format!("{asked} has no such image or tag ({words})")
    } else if has(&["connection refused", "no such host", "i/o timeout", "dial tcp", "EOF"]) {
        format!("{asked} cannot be reached ({words})")
    } else if has(&["cannot prompt without a TTY"]) {
        format!(
            "it names no registry, and the engine searches several: write the name with its registry \
             ({words})"
        )
    } else if has(&["short-name", "unqualified-search registries"]) {
        format!(
            "it names no registry, and the engine has none to search: write the name with its \
             registry ({words})"
        )
    } else {
        words.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_its_last_error_whatever_came_before() {
        let of = |text: &str, cut: usize| {
            let mut answer = Answer::default();
            text.as_bytes().chunks(cut).for_each(|part| answer.feed(part));
            answer.result()
        };
        let good = "{\"stream\":\"Trying\\n\"}\n{\"images\":[\"i\"],\"id\":\"i\"}\n";
        let bad = "{\"stream\":\"Trying\\n\"}\n{\"error\":\"no\"}\n{\"images\":[],\"id\":\"i\"}";
        for cut in [1, 7, 1000] {
            assert_eq!(of(good, cut), Ok("i".to_owned()));
            assert_eq!(of(bad, cut), Err("no".to_owned()));
        }
        assert!(of("", 1).is_err());
        assert!(of("nonsense\n[1]\n", 3).is_err());
        assert_eq!(of("{\"id\":\"i\"}", 4), Ok("i".to_owned()));
    }

    #[test]
    fn a_line_without_end_does_not_grow() {
        let mut answer = Answer::default();
        for _ in 0..40 {
            answer.feed(&[b'x'; 100_000]);
        }
        assert!(answer.line.len() <= LONGEST_LINE);
    }

    #[test]
    fn what_can_be_put_right_is_told_apart() {
        for (said, told) in [
            (
                "initializing source docker://h/x: reading manifest t in h/x: manifest unknown: manifest unknown",
                "no such image",
            ),
            (
                "reading manifest t in h/x: unauthorized: authentication required",
                "BOB_REGISTRY_AUTH_FILE",
            ),
            (
                "pinging container registry h: Get \"http://h/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                "cannot be reached",
            ),
            (
                "pinging container registry h: Get \"https://h/v2/\": http: server gave HTTP response to HTTPS client",
                "BOB_REGISTRY_INSECURE",
            ),
            (
                "short-name \"x\" did not resolve to an alias and no unqualified-search registries are defined",
                "the engine has none to search",
            ),
            (
                "short-name resolution enforced but cannot prompt without a TTY",
                "the engine searches several",
            ),
        ] {
            let sentence = reason(said, &ContactedRegistries::of(said, "h.example/x"));
            assert!(sentence.contains(told), "{sentence}");
        }
    }

    #[test]
    fn the_registries_that_were_asked_are_named_and_no_other() {
        // The answer of podman for a short name in permissive mode.
        let said = "2 errors occurred while pulling:\n * initializing source docker://one.example/x:latest: \
                    reading manifest latest in one.example/x: manifest unknown\n * initializing source \
                    docker://two.example:5000/x:latest: pinging container registry two.example:5000: dial tcp: no such host";
        assert_eq!(
            ContactedRegistries::of(said, "x"),
            ContactedRegistries(vec!["one.example", "two.example:5000"])
        );
        let sentence = reason(said, &ContactedRegistries::of(said, "x"));
        assert!(
            sentence.starts_with("each of the registries one.example, two.example:5000 has no")
        );
        assert!(!sentence.contains("docker.io") && !sentence.contains('\n'), "{sentence}");
        assert_eq!(
            ContactedRegistries::of(said, "docker://h.example/x"),
            ContactedRegistries(vec!["h.example"])
        );
        assert_eq!(
            ContactedRegistries::of("unauthorized", "docker.io/x"),
            ContactedRegistries(vec!["docker.io"])
        );
        assert_eq!(ContactedRegistries::of("unauthorized", "me/x"), ContactedRegistries(vec![]));
    }
}

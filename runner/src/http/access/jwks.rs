//! The public keys of tokens: a JSON Web Key Set in a file or at a URL.
//!
//! The set is read again when it is older than a while, and when a token names an unknown key, but
//! not more often than [`Pace`] allows. If that fails, the old keys stay.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, Shared};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use reqwest::redirect::Policy as Redirects;
use reqwest::{Client, Url};
use serde::Deserialize;
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// The largest accepted key set.
const MAX_BYTES: usize = 1 << 20;

/// How long a read can take.
const READ_TIME: Duration = Duration::from_secs(5);

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// A file. A change applies after a second.
    File(PathBuf),
    /// A URL.
    Url(Url),
}

impl std::fmt::Display for JwksSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// Why the keys cannot be read.
#[derive(Debug, Error)]
pub enum JwksError {
    /// The file cannot be read.
    #[error("cannot read the key set {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// The server does not answer, or rejects the request.
    #[error("cannot fetch the key set: {}", crate::ports::with_causes(.0))]
    Fetch(reqwest::Error),
    /// The read took too long.
    #[error("cannot read the key set {0}: no complete answer within {seconds} s", seconds = READ_TIME.as_secs())]
    Slow(JwksSource),
    /// The set is too large.
    #[error("cannot use the key set {0}: it is larger than {MAX_BYTES} bytes")]
    TooLarge(JwksSource),
    /// The content is not a key set.
    #[error("cannot use the key set {origin}: {cause}")]
    Malformed {
        /// Where it was read.
        origin: JwksSource,
        /// What is wrong with it.
        cause: String,
    },
}

/// How often a source is read.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The age at which the set is read again.
    max_age: Duration,
    /// The shortest time between two reads.
    min_pause: Duration,
}

impl Pace {
    fn of(source: &JwksSource) -> Self {
        match source {
            JwksSource::File(_) => {
                Self { max_age: Duration::from_secs(1), min_pause: Duration::from_secs(1) }
            }
            JwksSource::Url(_) => {
                Self { max_age: Duration::from_secs(300), min_pause: Duration::from_secs(10) }
            }
        }
    }
}

/// A public key, and the one algorithm that it is used with.
#[derive(Debug, Clone)]
pub(super) struct PublicKey {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// The keys of a source.
pub(super) struct KeySet {
    source: JwksSource,
    pace: Pace,
    client: Client,
    state: Mutex<State>,
    tasks: TaskTracker,
}

struct State {
    keys: Arc<[PublicKey]>,
    /// The text of these keys, once they have been read.
    text: Option<Vec<u8>>,
    /// The start of the last read.
    last_read: Option<Instant>,
    /// The read in progress.
    reading: Option<Shared<BoxFuture<'static, ()>>>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("source", &self.source).finish_non_exhaustive()
    }
}

impl KeySet {
    /// Reads the keys. A URL that cannot be read now is read again later.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub(super) async fn open(source: JwksSource) -> Result<Arc<Self>, JwksError> {
        let client = Client::builder()
            .redirect(Redirects::none())
            .referer(false)
            .timeout(READ_TIME)
            .user_agent(concat!("bob-runner/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(JwksError::Fetch)?;
        let pace = Pace::of(&source);
        let state = State { keys: Arc::new([]), text: None, last_read: None, reading: None };
        let set =
            Self { source, pace, client, state: Mutex::new(state), tasks: TaskTracker::new() };
        let is_file = matches!(set.source, JwksSource::File(_));
        set.state.lock().last_read = Some(Instant::now());
        match set.read().await {
            Ok(()) => {}
            Err(error) if is_file => return Err(error),
            Err(error) => warn!(%error, "tokens of the key set are rejected until it can be read"),
        }
        Ok(Arc::new(set))
    }

    /// The key that a token names. A token without a key id uses the only key of its algorithm.
    pub(super) async fn find(
        self: &Arc<Self>,
        id: Option<&str>,
        of: Algorithm,
    ) -> Option<PublicKey> {
        if let Some(reading) = self.read_if_older_than(self.pace.max_age) {
            reading.await;
        }
        if let Some(known) = self.known(id, of) {
            return Some(known);
        }
        self.read_if_older_than(self.pace.min_pause)?.await;
        self.known(id, of)
    }

    fn known(&self, id: Option<&str>, of: Algorithm) -> Option<PublicKey> {
        let keys = Arc::clone(&self.state.lock().keys);
        let Some(id) = id else {
            let mut fitting = keys.iter().filter(|key| key.algorithm == of);
            return fitting.next().filter(|_first| fitting.next().is_none()).cloned();
        };
        keys.iter().find(|key| key.id.as_deref() == Some(id)).cloned()
    }

    /// Starts to read the keys if the last read is older than `age`. Returns the read in progress.
    ///
    /// The read is a task of its own, so that it ends even if the request that caused it does not.
    fn read_if_older_than(
        self: &Arc<Self>,
        age: Duration,
    ) -> Option<Shared<BoxFuture<'static, ()>>> {
        let mut state = self.state.lock();
        if let Some(reading) = &state.reading {
            return Some(reading.clone());
        }
        let now = Instant::now();
        if state.last_read.is_some_and(|last| now.duration_since(last) < age) {
            return None;
        }
        state.last_read = Some(now);
        let set = Arc::clone(self);
        let reading = async move {
            if let Err(error) = set.read().await {
                warn!(%error, "the last keys that were read stay in use");
            }
            set.state.lock().reading = None;
        };
        let reading = reading.boxed().shared();
        state.reading = Some(reading.clone());
        self.tasks.spawn(reading.clone());
        Some(reading)
    }

    async fn read(&self) -> Result<(), JwksError> {
        let reading = async {
            match &self.source {
                JwksSource::File(path) => read_file(path)
                    .await
                    .map_err(|cause| JwksError::File { path: path.clone(), cause }),
                JwksSource::Url(url) => self.fetch(url).await,
            }
        };
        let read = tokio::time::timeout(READ_TIME, reading).await;
        let text = read.map_err(|_elapsed| JwksError::Slow(self.source.clone()))??;
        if text.len() > MAX_BYTES {
            return Err(JwksError::TooLarge(self.source.clone()));
        }
        if self.state.lock().text.as_ref() == Some(&text) {
            return Ok(());
        }
        let keys = keys_of(&text)
            .map_err(|cause| JwksError::Malformed { origin: self.source.clone(), cause })?;
        info!(source = %self.source, keys = keys.len(), "read the public keys of tokens");
        let mut state = self.state.lock();
        state.keys = keys.into();
        state.text = Some(text);
        Ok(())
    }

    /// Fetches at most one byte more than is accepted.
    async fn fetch(&self, url: &Url) -> Result<Vec<u8>, JwksError> {
        let response = self.client.get(url.clone()).send().await;
        let response = response.and_then(reqwest::Response::error_for_status);
        let mut response = response.map_err(JwksError::Fetch)?;
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(JwksError::Fetch)? {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_BYTES {
                break;
            }
        }
        Ok(text)
    }
}

async fn read_file(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text).await?;
    Ok(text)
}

/// The members of a key set. Each is parsed by itself, so that one of an unknown kind does not make
/// the others unusable.
#[derive(Deserialize)]
struct Members {
    keys: Vec<serde_json::Value>,
}

/// The usable keys of a set. If two have the same id, the first one counts.
fn keys_of(text: &[u8]) -> Result<Vec<PublicKey>, String> {
    let members: Members =
        serde_json::from_slice(text).map_err(|cause| format!("not a JSON Web Key Set: {cause}"))?;
    let keys: Vec<PublicKey> = members.keys.into_iter().filter_map(public_key).collect();
    if keys.is_empty() {
        return Err("it has no key for RS256, ES256 or EdDSA".into());
    }
    Ok(keys)
}

fn public_key(member: serde_json::Value) -> Option<PublicKey> {
    let jwk: Jwk = serde_json::from_value(member).ok()?;
    let algorithm = algorithm_of(&jwk)?;
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(PublicKey { id: jwk.common.key_id, algorithm, key })
}

/// The only algorithm that a key is used with. `None` if it cannot be used: other algorithms, and
/// shared secrets, which do not belong into a set of public keys.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let (algorithm, name) = if let AlgorithmParameters::RSA(_) = &jwk.algorithm {
        (Algorithm::RS256, KeyAlgorithm::RS256)
    } else if let AlgorithmParameters::EllipticCurve(key) = &jwk.algorithm
        && key.curve == EllipticCurve::P256
    {
        (Algorithm::ES256, KeyAlgorithm::ES256)
    } else if let AlgorithmParameters::OctetKeyPair(key) = &jwk.algorithm
        && key.curve == EllipticCurve::Ed25519
    {
        (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
    } else {
        return None;
    };
    let fits = jwk.common.key_algorithm.is_none_or(|named| named == name);
    (signs && fits).then_some(algorithm)
}

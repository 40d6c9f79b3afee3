//! Loads definitions of pipelines from files, and keeps the stored ones up to date.
//!
//! | module | duty |
//! |---|---|
//! | `files` | finds and reads the files of a directory |
//! | `loaded` | turns files into definitions, all of them or none; pure |
//! | `compare` | compares them with the stored ones; pure |
//! | `store` | writes the changes |
//!
//! If a file has a fault, or a name is taken, nothing is changed. A fault is reported once, and again
//! only on request or after a change.

mod compare;
mod files;
mod loaded;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::id::NodeId;
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::files::{Files, Fingerprint};
pub use self::files::{FindError, find_files};
use self::loaded::{Literals, Loaded, load};
use self::store::{Applied, Rejected, Shelf};
use crate::config::{Config, LiteralSecrets, Mode};
use crate::ports::Ports;

/// The source of all definitions from files in embedded mode, where one process owns the store.
const EMBEDDED: &str = "files";
/// When definitions that could not be stored are tried again, if the files are not watched.
const AGAIN: Duration = Duration::from_secs(30);
/// The shortest time between two looks at the files.
const LEAST: Duration = Duration::from_secs(1);

/// Definitions that cannot be used. The program exits with 65 if they are those of its start.
#[derive(Debug, Error)]
#[error("the definitions in {} cannot be used:\n{}", .dir.display(), .faults.join("\n"))]
pub struct UnusableDefinitions {
    dir: PathBuf,
    faults: Vec<String>,
}

/// The directory of definitions of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    dir: PathBuf,
    pattern: String,
    source: String,
    /// Whether the directory was set. An empty one is then probably not mounted.
    is_named: bool,
    literals: Literals,
}

impl Place {
    /// `None` if this process loads no definitions.
    fn of(config: &Config, working_dir: Option<&Path>) -> Option<Self> {
        let settings = &config.definitions;
        let dir = match (&settings.dir, config.mode) {
            (Some(dir), _) => dir.clone(),
            // A service that was started without a directory must not search the whole machine.
            (None, Mode::Embedded) if working_dir != Some(Path::new("/")) => PathBuf::from("."),
            (None, Mode::Embedded | Mode::Cluster) => return None,
        };
        let source = match config.mode {
            Mode::Embedded => EMBEDDED.to_owned(),
            Mode::Cluster => settings.source.clone().unwrap_or_else(|| {
                let absolute = std::path::absolute(&dir).unwrap_or_else(|_unknown| dir.clone());
                absolute.to_string_lossy().into_owned()
            }),
        };
        let literals = match config.worker.literal_secrets {
            LiteralSecrets::Allow => Literals::Allowed,
            LiteralSecrets::Reject => Literals::Rejected,
        };
        let (pattern, is_named) = (settings.pattern.clone(), settings.dir.is_some());
        Some(Self { dir, pattern, source, is_named, literals })
    }

    async fn read(&self) -> Files {
        let (dir, pattern) = (self.dir.clone(), self.pattern.clone());
        let read = tokio::task::spawn_blocking(move || files::read(&dir, &pattern)).await;
        read.unwrap_or_else(|cause| Err(format!("cannot read {}: {cause}", self.dir.display())))
    }
}

/// Why a load changed nothing, or not everything.
enum LoadError {
    /// The files have these faults.
    Faults(Vec<String>),
    /// Others hold names of these definitions. That can change without a change of the files.
    Conflicts(Vec<String>),
    /// The store did not make the changes.
    Store(String),
}

/// Loads definitions at the start of a process, on request, and when their files change.
pub(super) struct Loader {
    place: Place,
    shelf: Shelf,
    watch: Option<Duration>,
    /// The files of the last load.
    last: Fingerprint,
    /// The last reported failure, as long as it is not resolved.
    failure: Option<String>,
    /// Whether the last load must be repeated although the files are the same.
    is_unfinished: bool,
}

impl Loader {
    /// Loads the definitions of the settings. `None` if there are none to load.
    ///
    /// # Errors
    /// [`UnusableDefinitions`] if a file has a fault or a name is taken. A store that fails is not an
    /// error: the definitions are stored later.
    pub(super) async fn start(
        config: &Config,
        ports: &Ports,
        node: &NodeId,
    ) -> Result<Option<Self>, UnusableDefinitions> {
        let working_dir = std::env::current_dir().ok();
        let Some(place) = Place::of(config, working_dir.as_deref()) else {
            if config.definitions.watch.is_some() {
                warn!("no definitions are watched, because BOB_DEFINITIONS (--path) is not set");
            }
            return Ok(None);
        };
        let shelf = Shelf {
            store: Arc::clone(&ports.store),
            events: Arc::clone(&ports.events),
            host: Arc::clone(&ports.host),
            node: node.clone(),
        };
        let watch = config.definitions.watch.map(|interval| interval.max(LEAST));
        Self::load_first(place, shelf, watch).await.map(Some)
    }

    async fn load_first(
        place: Place,
        shelf: Shelf,
        watch: Option<Duration>,
    ) -> Result<Self, UnusableDefinitions> {
        let files = place.read().await;
        let last = Fingerprint::of(&files);
        let mut loader = Self { place, shelf, watch, last, failure: None, is_unfinished: false };
        match loader.load(files).await {
            Ok(applied) => loader.succeeded(applied),
            Err(LoadError::Faults(faults) | LoadError::Conflicts(faults)) => {
                return Err(UnusableDefinitions { dir: loader.place.dir, faults });
            }
            Err(failure @ LoadError::Store(_)) => loader.failed(failure),
        }
        Ok(loader)
    }

    /// Reloads on request and when the files change, until `stop` is cancelled.
    ///
    /// # Cancel safety
    /// Changes that are not made yet are made by the next load.
    pub(super) async fn keep(mut self, reload: Arc<Notify>, stop: CancellationToken) {
        loop {
            let pause = self.watch.or_else(|| self.is_unfinished.then_some(AGAIN));
            let next_look = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            let is_requested = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = reload.notified() => true,
                () = next_look => false,
            };
            if stop.run_until_cancelled(self.look(is_requested)).await.is_none() {
                return;
            }
        }
    }

    /// Loads the files if they have changed, if that was requested, or if the last load is
    /// unfinished.
    async fn look(&mut self, is_requested: bool) {
        let files = self.place.read().await;
        let now = Fingerprint::of(&files);
        let has_changed = now != self.last;
        if !has_changed && !is_requested && !self.is_unfinished {
            return;
        }
        self.last = now;
        if has_changed || is_requested {
            // Report every failure again.
            self.failure = None;
        }
        match self.load(files).await {
            Ok(applied) => self.succeeded(applied),
            Err(failure) => self.failed(failure),
        }
    }

    async fn load(&mut self, files: Files) -> Result<Applied, LoadError> {
        let files = files.map_err(|cause| LoadError::Faults(vec![cause]))?;
        if files.is_empty() && self.place.is_named {
            let Place { dir, pattern, .. } = &self.place;
            return Err(LoadError::Faults(vec![format!(
                "no file in {} matches {pattern:?}; to remove all definitions, leave a file with \
                 `pipelines: {{}}`",
                dir.display()
            )]));
        }
        let Loaded { definitions, warnings } = load(&files, self.place.literals);
        if self.failure.is_none() {
            for warning in warnings {
                warn!("{warning}");
            }
        }
        let definitions = definitions.map_err(|faults| {
            LoadError::Faults(faults.iter().map(ToString::to_string).collect())
        })?;
        let applied = self.shelf.apply(&definitions, &self.place.source).await;
        applied.map_err(|rejected| match rejected {
            Rejected::Conflicts(conflicts) => {
                LoadError::Conflicts(conflicts.iter().map(ToString::to_string).collect())
            }
            Rejected::Store(cause) => LoadError::Store(cause.to_string()),
            Rejected::Contended => {
                LoadError::Store("others keep changing the same definitions".to_owned())
            }
        })
    }

    fn succeeded(&mut self, applied: Applied) {
        let Applied { created, changed, removed } = applied;
        self.failure = None;
        self.is_unfinished = false;
        info!(
            created,
            changed,
            removed,
            "the definitions in {} are loaded: {created} new, {changed} changed, {removed} removed",
            self.place.dir.display()
        );
    }

    /// Reports a failure, unless the last one was the same.
    fn failed(&mut self, failure: LoadError) {
        self.is_unfinished = !matches!(failure, LoadError::Faults(_));
        match failure {
            LoadError::Faults(causes) | LoadError::Conflicts(causes) => {
                let dir = self.place.dir.display().to_string();
                self.report(causes.join("\n"), || {
                    for cause in &causes {
                        error!("{cause}");
                    }
                    error!(
                        "the definitions in {dir} are not loaded; the stored ones stay as they are"
                    );
                });
            }
            LoadError::Store(cause) => self.report(cause.clone(), || {
                warn!(cause, "the definitions are not stored yet, and are tried again");
            }),
        }
    }

    fn report(&mut self, failure: String, tell: impl FnOnce()) {
        if self.failure.as_ref() != Some(&failure) {
            tell();
            self.failure = Some(failure);
        }
    }
}

#[cfg(test)]
mod tests;

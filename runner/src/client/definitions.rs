//! Definitions stored under a name: pipelines, providers, stores and loggers.

use protocol::event::{Event, Reason};
use protocol::id::{PipelineId, RegisteredName, RunId};
use protocol::names;
use protocol::pipeline::Pipeline;
use protocol::run::{Registered, Status, StoredPipeline};
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;
use url::Url;

use super::state::{open_runs, records};
use super::{Client, Error, Listed, decoded, encoded};
use crate::config::without_credentials;
use crate::ports::{Entry, Expect, Store, Txn};

/// How often a change is tried while others change the same key.
const TRIES: usize = 8;

/// How applying a definition changed the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// A new definition was stored.
    Created,
    /// A different definition was replaced.
    Changed,
    /// The same definition was already stored.
    Unchanged,
}

impl Applied {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A kind of registered service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registry {
    /// Resource providers.
    Providers,
    /// Artifact stores.
    Stores,
    /// Loggers.
    Loggers,
}

impl Registry {
    /// The noun for one entry.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Providers => "resource provider",
            Self::Stores => "artifact store",
            Self::Loggers => "logger",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Providers => names::PROVIDERS,
            Self::Stores => names::STORES,
            Self::Loggers => names::LOGGERS,
        }
    }

    fn created(self) -> Reason {
        match self {
            Self::Providers => Reason::ResourceProviderCreate,
            Self::Stores => Reason::ArtifactStoreCreate,
            Self::Loggers => Reason::LoggerCreate,
        }
    }

    fn deleted(self) -> Reason {
        match self {
            Self::Providers => Reason::ResourceProviderDelete,
            Self::Stores => Reason::ArtifactStoreDelete,
            Self::Loggers => Reason::LoggerDelete,
        }
    }
}

/// Checks the URL of a service before it is registered.
///
/// # Errors
/// A sentence about the fault, without credentials.
pub fn check_service_url(url: &str) -> Result<(), String> {
    let shown = without_credentials(url);
    let expected = || {
        format!(
            "url {shown:?} must be http://host or https://host, with a port or path where needed"
        )
    };
    let parsed = Url::parse(url).map_err(|_bad| expected())?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
        return Err(expected());
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(format!(
            "url {shown:?} must end with its path: what comes after is added by us"
        ));
    }
    Ok(())
}

/// The fields of a record that show whether its pipeline is in use. The other fields can be of a
/// later version.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct UsageFields {
    group: String,
    name: String,
    run_id: RunId,
    status: Value,
}

impl UsageFields {
    /// Whether the run has ended. An unknown status counts as not ended.
    fn has_ended(&self) -> bool {
        Status::deserialize(&self.status).is_ok_and(Status::is_ended)
    }
}

/// Rejects a change of a pipeline that was loaded from a file.
fn reject_file(id: &PipelineId, stored: &Entry) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Mark {
        file: Option<String>,
    }
    // A definition that cannot be read can still be replaced or deleted.
    let mark = serde_json::from_slice::<Mark>(&stored.value).ok();
    match mark.and_then(|mark| mark.file) {
        Some(file) => Err(Error::FromFile { id: id.clone(), file }),
        None => Ok(()),
    }
}

impl Client {
    /// The pipelines, sorted by name.
    ///
    /// # Errors
    /// [`Error::Store`]
    pub async fn pipelines(&self) -> Result<Listed<StoredPipeline>, Error> {
        let store = self.services.store().await?;
        let entries = store.list(names::PIPELINES).await?.entries;
        Ok(entries.iter().map(|entry| decoded(&entry.key, &entry.value)).collect())
    }

    /// A stored pipeline. `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Unreadable`].
    pub async fn pipeline(&self, id: &PipelineId) -> Result<Option<StoredPipeline>, Error> {
        let store = self.services.store().await?;
        let entry = store.get(&names::pipeline_key(id)).await?;
        entry.map(|entry| decoded(&entry.key, &entry.value)).transpose()
    }

    /// Stores a pipeline under its name. A paused pipeline stays paused.
    ///
    /// # Errors
    /// [`Error::FromFile`], [`Error::Contended`], [`Error::NotTold`], and errors of the services.
    pub async fn apply_pipeline(
        &self,
        id: &PipelineId,
        pipeline: &Pipeline,
    ) -> Result<Applied, Error> {
        let key = names::pipeline_key(id);
        let definition = match serde_json::to_value(pipeline) {
            Ok(Value::Object(definition)) => definition,
            Ok(_) | Err(_) => serde_json::Map::new(),
        };
        let applied = self.apply(&key, |old| {
            if let Some(old) = old {
                reject_file(id, old)?;
            }
            let old: Option<StoredPipeline> =
                old.map(|entry| decoded(&entry.key, &entry.value)).transpose()?;
            let (paused, paused_at) = old.map_or((false, None), |old| (old.paused, old.paused_at));
            let (pipeline, file, source) = (definition.clone(), None, None);
            encoded(&key, &StoredPipeline { pipeline, paused, paused_at, file, source })
        });
        let event = |applied: Applied| {
            let text = format!("pipeline {id} was {}", applied.as_str());
            let mut event = Event::new(self.now(), Reason::PipelineCreate, text);
            event.group = Some(id.group().to_owned());
            event.name = Some(id.name().to_owned());
            event
        };
        self.applied_and_told(applied, event).await
    }

    /// Deletes a pipeline. `false` if it did not exist. Records of its ended runs stay until their
    /// retention ends.
    ///
    /// # Errors
    /// [`Error::InUse`] while a run of it is open, and those of [`Client::apply_pipeline`].
    pub async fn delete_pipeline(&self, id: &PipelineId) -> Result<bool, Error> {
        let key = names::pipeline_key(id);
        let store = self.services.store().await?;
        // Connect first, so that no change is made without its event.
        let events = self.services.events().await?;
        for _ in 0..TRIES {
            let Some(entry) = store.get(&key).await? else { return Ok(false) };
            reject_file(id, &entry)?;
            let runs = self.runs_of(store.as_ref(), id).await?;
            if !runs.is_empty() {
                return Err(Error::InUse { id: id.clone(), runs });
            }
            let delete = Txn::new()
                .when(key.as_str(), Expect::ModifiedAt(entry.mod_revision))
                .delete(key.as_str());
            if store.txn(delete).await?.committed {
                let text = format!("pipeline {id} was deleted");
                let mut event = Event::new(self.now(), Reason::PipelineDelete, text);
                event.group = Some(id.group().to_owned());
                event.name = Some(id.name().to_owned());
                self.publish(events.as_ref(), event).await?;
                return Ok(true);
            }
        }
        Err(Error::Contended { key })
    }

    async fn runs_of(&self, store: &dyn Store, id: &PipelineId) -> Result<Vec<RunId>, Error> {
        let mut runs = Vec::new();
        for (entry, _) in records(store, &open_runs(store).await?).await? {
            let record: UsageFields = match decoded(&entry.key, &entry.value) {
                Ok(record) => record,
                Err(cause) => {
                    // An unreadable record must not block the deletion of all pipelines.
                    warn!(%cause, "an open run is passed over");
                    continue;
                }
            };
            // The record of an ended run stays open until its last event is confirmed.
            let is_of = record.group == id.group() && record.name == id.name();
            if is_of && !record.has_ended() {
                runs.push(record.run_id);
            }
        }
        Ok(runs)
    }

    /// The registered services, sorted by name.
    ///
    /// # Errors
    /// [`Error::Store`]
    pub async fn registered(&self, registry: Registry) -> Result<Listed<Registered>, Error> {
        let store = self.services.store().await?;
        let entries = store.list(registry.prefix()).await?.entries;
        Ok(entries.iter().map(|entry| decoded(&entry.key, &entry.value)).collect())
    }

    /// Registers a service under its name.
    ///
    /// # Errors
    /// Same as [`Client::apply_pipeline`].
    pub async fn register(
        &self,
        registry: Registry,
        service: &Registered,
    ) -> Result<Applied, Error> {
        let key = format!("{}{}", registry.prefix(), service.name);
        let applied = self.apply(&key, |_| encoded(&key, service));
        let event = |applied: Applied| {
            let (noun, name) = (registry.noun(), &service.name);
            let url = without_credentials(&service.url);
            let text = format!("{noun} {name} was {}: {url}", applied.as_str());
            Event::new(self.now(), registry.created(), text)
        };
        self.applied_and_told(applied, event).await
    }

    /// Removes a registration. `false` if it did not exist.
    ///
    /// # Errors
    /// Same as [`Client::apply_pipeline`].
    pub async fn unregister(
        &self,
        registry: Registry,
        name: &RegisteredName,
    ) -> Result<bool, Error> {
        let key = format!("{}{name}", registry.prefix());
        let store = self.services.store().await?;
        let events = self.services.events().await?;
        let delete = Txn::new().when(key.as_str(), Expect::Present).delete(key);
        if !store.txn(delete).await?.committed {
            return Ok(false);
        }
        let text = format!("{} {name} was deleted", registry.noun());
        self.publish(events.as_ref(), Event::new(self.now(), registry.deleted(), text)).await?;
        Ok(true)
    }

    /// Replaces the value of a key with the result of `value`, unless it is the same.
    async fn apply(
        &self,
        key: &str,
        value: impl Fn(Option<&Entry>) -> Result<Vec<u8>, Error>,
    ) -> Result<Applied, Error> {
        let store = self.services.store().await?;
        // Connect first, so that no change is made without its event.
        self.services.events().await?;
        for _ in 0..TRIES {
            let old = store.get(key).await?;
            let new = value(old.as_ref())?;
            if old.as_ref().is_some_and(|old| old.value == new) {
                return Ok(Applied::Unchanged);
            }
            let (expect, applied) = match &old {
                Some(old) => (Expect::ModifiedAt(old.mod_revision), Applied::Changed),
                None => (Expect::Absent, Applied::Created),
            };
            if store.txn(Txn::new().when(key, expect).put(key, new)).await?.committed {
                return Ok(applied);
            }
        }
        Err(Error::Contended { key: key.to_owned() })
    }

    async fn applied_and_told(
        &self,
        applied: impl Future<Output = Result<Applied, Error>>,
        event: impl Fn(Applied) -> Event,
    ) -> Result<Applied, Error> {
        let applied = applied.await?;
        if applied != Applied::Unchanged {
            let events = self.services.events().await?;
            self.publish(events.as_ref(), event(applied)).await?;
        }
        Ok(applied)
    }
}

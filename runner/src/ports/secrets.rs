//! Secrets of steps.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

/// The value of a secret. It is not shown or serialized; call [`Secret::expose`] to read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<Arc<[u8]>>) -> Self {
        Self(value.into())
    }

    /// Returns the value. Call it only where the value is passed on.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Purpose {
    /// Returns the error for a secret that is not in scope for this purpose.
    #[must_use]
    pub fn out_of_scope(&self, name: &str) -> SecretsError {
        let for_host = match &self.to {
            Destination::Anywhere => String::new(),
            Destination::Host { host, port } => format!(" for {host}:{port}"),
        };
        let (group, pipeline) = (self.group.clone(), self.pipeline.clone());
        let hint = if self.trusted {
            ""
        } else {
            "; a scope that names a group or a pipeline is for stored pipelines, started with variables \
             that they declare"
        };
        let name = name.to_owned();
        SecretsError::OutOfScope { name, group, pipeline, for_host, hint }
    }
}

impl fmt::Debug for Secret {
    /// Writes three stars, so that types with a secret can be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret that a step receives.
#[derive(Debug, Clone)]
pub struct StepSecret {
    /// The name of the secret and of its file.
    pub name: String,
    /// The environment variable that also contains it, if one is requested.
    pub env: Option<String>,
    /// The value.
    pub value: Secret,
}

/// The secrets of a step, and a search for secrets in what the step leaves.
#[derive(Debug, Clone, Default)]
pub struct StepSecrets {
    /// The secrets that the step receives. Empty after the step has ended.
    pub granted: Vec<StepSecret>,
    /// Finds secrets that must not leave the step.
    pub forbidden: Option<Arc<dyn SecretMatcher>>,
}

impl StepSecrets {
    /// The environment variable with the path of the secrets directory.
    pub const VARIABLE: &str = "BOB_SECRETS";
}

/// The secrets that must not occur in anything a step leaves.
pub trait SecretMatcher: fmt::Debug + Send + Sync {
    /// Starts a search in one stream of bytes.
    fn search(&self) -> Box<dyn Search>;
}

/// A search in one stream of bytes.
pub trait Search: Send {
    /// Processes the next bytes. Returns true if a forbidden secret ends in them.
    fn finds(&mut self, bytes: &[u8]) -> bool;

    /// Returns the number of trailing bytes that may be the start of a secret.
    fn pending(&self) -> usize;
}

/// The purpose of a secret: the pipeline that receives it, and its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// The group of the pipeline that names the secret.
    pub group: String,
    /// The name of that pipeline.
    pub pipeline: String,
    /// Whether group and name are those of a stored definition that runs as it is. Those of a
    /// definition in a message can be chosen by whoever sent it.
    pub trusted: bool,
    /// The destination of the secret.
    pub to: Destination,
}

/// The destination of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A step, which can send it anywhere.
    Anywhere,
    /// One host, as part of a callback or a call.
    Host {
        /// The host name in the pipeline.
        host: String,
        /// The port number.
        port: u16,
    },
}

impl From<Option<(String, u16)>> for Destination {
    fn from(host: Option<(String, u16)>) -> Self {
        host.map_or(Self::Anywhere, |(host, port)| Self::Host { host, port })
    }
}

/// Why a secret is not available.
#[derive(Debug, Error)]
pub enum SecretsError {
    /// The operator's scopes do not allow this purpose.
    #[error(
        "secret {name} is not given to pipeline {group}:{pipeline}{for_host}: \
         BOB_SECRETS_SCOPES of the worker names who is given which secret{hint}"
    )]
    OutOfScope {
        /// The secret.
        name: String,
        /// The group of the pipeline.
        group: String,
        /// The pipeline.
        pipeline: String,
        /// ` for HOST:PORT`, or empty.
        for_host: String,
        /// How a pipeline gets into scope, if this one was not stored.
        hint: &'static str,
    },
    /// The place of the secret cannot be read.
    #[error("secret {name} cannot be read from {place}: {cause}")]
    Unreadable {
        /// The secret.
        name: String,
        /// The place that was searched.
        place: String,
        /// The I/O error.
        cause: String,
    },
    /// The value exceeds the size limit of a secret.
    #[error("secret {name} in {place} is larger than {most} bytes")]
    TooLarge {
        /// The secret.
        name: String,
        /// The place that has it.
        place: String,
        /// The limit in bytes.
        most: usize,
    },
}

/// Provides secrets to a worker.
#[async_trait]
pub trait Secrets: Send + Sync {
    /// Returns a secret, or `None` if no place has one with this name.
    ///
    /// # Errors
    /// [`SecretsError`] if the purpose is out of scope, whether or not the secret exists, or if a
    /// place has the secret but it cannot be read.
    async fn get(&self, name: &str, purpose: &Purpose) -> Result<Option<Secret>, SecretsError>;

    /// Returns the places that are searched for this name, for use in messages.
    fn places(&self, name: &str) -> Vec<String>;
}

/// A worker without secrets.
#[derive(Debug, Clone, Copy)]
pub struct NoSecrets;

#[async_trait]
impl Secrets for NoSecrets {
    async fn get(&self, _name: &str, _purpose: &Purpose) -> Result<Option<Secret>, SecretsError> {
        Ok(None)
    }

    fn places(&self, _name: &str) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_output_of_a_secret_holder_contains_no_secret() {
        let value = Secret::new(*b"hunter2");
        let given = StepSecret { name: "token".into(), env: None, value };
        let shown = format!("{:?}", StepSecrets { granted: vec![given], forbidden: None });
        assert!(shown.contains("token") && !shown.contains("hunter2"), "{shown}");
    }
}

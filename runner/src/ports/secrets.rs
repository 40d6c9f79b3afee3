//! What a step is given that nobody else may see.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

/// The value of a secret. It is neither shown nor written: whoever needs it says so with
/// [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Hides a value.
    pub fn new(value: impl Into<Arc<[u8]>>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that hands it over.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Purpose {
    /// The refusal of a secret for this purpose.
    #[must_use]
    pub fn refused(&self, name: &str) -> SecretsError {
        let for_host = match &self.to {
            Destination::Anywhere => String::new(),
            Destination::Host { host, port } => format!(" for {host}:{port}"),
        };
        let (group, pipeline) = (self.group.clone(), self.pipeline.clone());
        SecretsError::OutOfScope { name: name.to_owned(), group, pipeline, for_host }
    }
}

impl fmt::Debug for Secret {
    /// Three stars, whatever it is, so that what holds a secret can be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret that a step is given.
#[derive(Debug, Clone)]
pub struct Given {
    /// Its name: that of its file.
    pub name: String,
    /// The variable that holds it too, where one is asked for.
    pub env: Option<String>,
    /// Its value.
    pub value: Secret,
}

/// What a step is given, and what may not be in anything that it leaves.
#[derive(Debug, Clone, Default)]
pub struct StepSecrets {
    /// Its secrets; none once it has ended.
    pub given: Vec<Given>,
    /// What finds them.
    pub forbidden: Option<Arc<dyn Forbidden>>,
}

impl StepSecrets {
    /// The variable that names the directory of a step's secrets.
    pub const VARIABLE: &str = "BOB_SECRETS";
}

/// What may not be in anything that a step leaves.
pub trait Forbidden: fmt::Debug + Send + Sync {
    /// Looks for it in one stream of bytes.
    fn search(&self) -> Box<dyn Search>;
}

/// A search in one stream of bytes.
pub trait Search: Send {
    /// Takes the next bytes. `true`: something that may not be there ends in them.
    fn finds(&mut self, bytes: &[u8]) -> bool;

    /// The number of last bytes that may be the beginning of a secret.
    fn pending(&self) -> usize;
}

/// The purpose of a secret: the pipeline that receives it, and its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// The group of the pipeline that names the secret.
    pub group: String,
    /// The name of that pipeline.
    pub pipeline: String,
    /// The destination of the secret.
    pub to: Destination,
}

/// The destination of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To a step, which can do with it what it likes.
    Anywhere,
    /// To one host, with a callback or a call.
    Host {
        /// The host as named.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Why a secret cannot be had.
#[derive(Debug, Error)]
pub enum SecretsError {
    /// The operator gives it to others only.
    #[error(
        "secret {name} is not given to pipeline {group}:{pipeline}{for_host}: \
         BOB_SECRETS_SCOPES of the worker names who is given which secret"
    )]
    OutOfScope {
        /// The secret.
        name: String,
        /// The group of the pipeline.
        group: String,
        /// The pipeline.
        pipeline: String,
        /// ` for HOST:PORT`, or nothing.
        for_host: String,
    },
    /// Its place cannot be read.
    #[error("secret {name} cannot be read from {place}: {cause}")]
    Unreadable {
        /// The secret.
        name: String,
        /// Where it was looked for.
        place: String,
        /// What the system said.
        cause: String,
    },
    /// It is larger than a secret may be.
    #[error("secret {name} in {place} is larger than {most} bytes")]
    TooLarge {
        /// The secret.
        name: String,
        /// Where it was found.
        place: String,
        /// How many it may have.
        most: usize,
    },
}

/// Where a worker gets secrets from.
#[async_trait]
pub trait Secrets: Send + Sync {
    /// A secret; `None` where no place has one of that name.
    ///
    /// # Errors
    /// [`SecretsError`] if it is not given for this purpose, whether there is one or not, and if a
    /// place has it and it cannot be had.
    async fn get(&self, name: &str, purpose: &Purpose) -> Result<Option<Secret>, SecretsError>;

    /// The places where one of that name is looked for, for people.
    fn places(&self, name: &str) -> Vec<String>;
}

/// A worker that has none.
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
    fn what_holds_a_secret_can_be_shown() {
        let value = Secret::new(*b"hunter2");
        let given = Given { name: "token".into(), env: None, value };
        let shown = format!("{:?}", StepSecrets { given: vec![given], forbidden: None });
        assert!(shown.contains("token") && !shown.contains("hunter2"), "{shown}");
    }
}

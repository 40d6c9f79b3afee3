//! Restrictions on a settings file that was found in the working directory rather than named by the
//! user.
//!
//! Such a file can come from an untrusted checkout. It must not choose the destination of
//! credentials from another source: variables, flags, files or the machine.

use super::parse::BrokerUrl;
use super::{Environment, Fault, table};

/// The effective value of a setting, and its source.
pub(super) struct SettingValue {
    pub(super) text: String,
    /// The source. `None` for a default.
    pub(super) at: Option<String>,
}

/// A setting that selects or authenticates a server, and the settings whose values are sent to that
/// server.
struct Rule {
    target: &'static str,
    credentials: &'static [&'static str],
}

/// A URL counts as a credential only if it contains a user.
static RULES: &[Rule] = &[
    Rule { target: table::QUEUE_URL.name(), credentials: QUEUE_CREDENTIALS },
    Rule { target: table::QUEUE_CA.name(), credentials: QUEUE_CA_CREDENTIALS },
    Rule { target: table::STREAM_URL.name(), credentials: QUEUE_CA_CREDENTIALS },
    Rule { target: table::STORAGE_URLS.name(), credentials: STORAGE_CREDENTIALS },
    Rule { target: table::STORAGE_CA.name(), credentials: STORAGE_CA_CREDENTIALS },
    Rule { target: table::OUTPUTS_STORE.name(), credentials: S3_CREDENTIALS },
    Rule { target: table::OUTPUTS_S3_ENDPOINT.name(), credentials: S3_CREDENTIALS },
    // The region is part of the server's name.
    Rule { target: table::OUTPUTS_S3_REGION.name(), credentials: S3_CREDENTIALS },
];
static QUEUE_CREDENTIALS: &[&str] = &[
    table::QUEUE_USER.name(),
    table::QUEUE_PASSWORD.name(),
    table::QUEUE_CERT.name(),
    table::QUEUE_KEY.name(),
];
static QUEUE_CA_CREDENTIALS: &[&str] = &[
    table::QUEUE_URL.name(),
    table::STREAM_URL.name(),
    table::QUEUE_USER.name(),
    table::QUEUE_PASSWORD.name(),
    table::QUEUE_CERT.name(),
    table::QUEUE_KEY.name(),
];
static STORAGE_CREDENTIALS: &[&str] = &[
    table::STORAGE_USER.name(),
    table::STORAGE_PASSWORD.name(),
    table::STORAGE_CERT.name(),
    table::STORAGE_KEY.name(),
];
static STORAGE_CA_CREDENTIALS: &[&str] = &[
    table::STORAGE_URLS.name(),
    table::STORAGE_USER.name(),
    table::STORAGE_PASSWORD.name(),
    table::STORAGE_CERT.name(),
    table::STORAGE_KEY.name(),
];
static S3_CREDENTIALS: &[&str] =
    &[table::OUTPUTS_S3_ACCESS_KEY.name(), table::OUTPUTS_S3_SECRET_KEY.name()];

/// Settings that such a file must not contain, and what each decides. The affected credentials are
/// never in the file itself.
static REJECTED: [(&str, &str); 8] = [
    (table::ENGINE_URL.name(), REGISTRIES),
    (table::ENGINE_DOCKER_URL.name(), REGISTRIES),
    (table::ENGINE_REGISTRY_INSECURE.name(), REGISTRIES),
    (table::WORKER_CHECKPOINT_REGISTRY.name(), REGISTRIES),
    (table::WORKER_SECRETS_SCOPES.name(), "who receives secrets of steps"),
    (table::HTTP_JWT_SECRET.name(), API_USERS),
    (table::HTTP_JWKS.name(), API_USERS),
    (table::HTTP_HOSTS.name(), API_USERS),
];
const API_USERS: &str = "who can use the HTTP API";
const REGISTRIES: &str = "which server receives credentials of registries";

/// Publishers on these servers can request the secrets of steps.
static PUBLISHERS: [&str; 2] = [table::QUEUE_URL.name(), table::STORAGE_URLS.name()];

/// Returns a fault for each setting of a local file that redirects credentials from another source.
/// `label` is the source prefix of the file's values. `lookup` returns the value of a setting.
pub(super) fn check(
    label: &str,
    lookup: impl Fn(&str) -> Option<SettingValue>,
    environment: &Environment,
) -> Vec<Fault> {
    let local = Local { label, lookup };
    let rejected = REJECTED.iter().filter_map(|(name, decides)| {
        let at = local.place(name)?;
        let expected = format!(
            "is not accepted from a settings file in the working directory, because it decides \
             {decides}; {}",
            local.advice()
        );
        Some(Fault { at, value: None, expected })
    });
    let combined = RULES.iter().filter_map(|rule| local.combined(rule, environment));
    rejected.chain(combined).collect()
}

struct Local<'a, F> {
    label: &'a str,
    lookup: F,
}

impl<F: Fn(&str) -> Option<SettingValue>> Local<'_, F> {
    /// The source of a setting, if its effective value comes from the file.
    fn place(&self, name: &str) -> Option<String> {
        (self.lookup)(name)?.at.filter(|at| self.is_local(at))
    }

    fn is_local(&self, at: &str) -> bool {
        at.strip_prefix(self.label).is_some_and(|rest| rest.starts_with(": "))
    }

    fn advice(&self) -> String {
        format!("if you trust the file, name it with `--config {}`", self.label)
    }

    /// The fault if the file sets the target of a rule while the credentials come from another
    /// source.
    fn combined(&self, rule: &Rule, environment: &Environment) -> Option<Fault> {
        let at = self.place(rule.target)?;
        let text = (self.lookup)(rule.target)?.text;
        let mut elsewhere: Vec<String> = rule
            .credentials
            .iter()
            .filter(|name| {
                !(rule.target == table::STREAM_URL.name() && is_login(name) && has_login(&text))
            })
            .filter_map(|name| self.credential_from_elsewhere(name))
            .collect();
        if PUBLISHERS.contains(&rule.target) {
            elsewhere.extend(self.secrets_of_steps(environment));
        }
        if rule.target.starts_with("outputs.") && self.uses_role_of_machine() {
            elsewhere.push("the role of this machine".into());
        }
        let (last, others) = elsewhere.split_last()?;
        let sources = match others {
            [] => last.clone(),
            [..] => format!("{} and {last}", others.join(", ")),
        };
        let expected = format!(
            "is not combined with credentials from elsewhere ({sources}), because a settings file in \
             the working directory must not decide which server receives them; {}",
            self.advice()
        );
        Some(Fault { at, value: None, expected })
    }

    /// The source of a credential, unless it is the file.
    fn credential_from_elsewhere(&self, name: &str) -> Option<String> {
        let SettingValue { text, at } = (self.lookup)(name)?;
        let is_url = name.ends_with(".url") || name.ends_with(".urls");
        if is_url && !text.contains('@') {
            return None;
        }
        let at = at?;
        // A secret file that belongs to the user, even if the settings file gives its path.
        (!self.is_local(&at) || at.ends_with("-file")).then_some(at)
    }

    /// Whether outputs go to a bucket without explicit keys, and therefore use the machine's role.
    fn uses_role_of_machine(&self) -> bool {
        let is_bucket = (self.lookup)(table::OUTPUTS_STORE.name())
            .is_some_and(|value| value.text.starts_with("s3://"));
        is_bucket && S3_CREDENTIALS.iter().all(|name| (self.lookup)(name).is_none())
    }

    /// The sources of step secrets. A directory counts as another source even if the file names it.
    fn secrets_of_steps(&self, environment: &Environment) -> Vec<String> {
        let variables = environment.secrets().into_keys();
        let mut from: Vec<String> =
            variables.map(|name| format!("{}{name}", super::environment::SECRET)).collect();
        from.extend((self.lookup)(table::WORKER_SECRETS_DIR.name()).and_then(|value| value.at));
        from.extend(environment.credentials_dir().map(|_dir| "CREDENTIALS_DIRECTORY".to_owned()));
        from
    }
}

/// Whether a login in the stream's own URL replaces this setting.
fn is_login(name: &str) -> bool {
    [
        table::QUEUE_URL.name(),
        table::QUEUE_USER.name(),
        table::QUEUE_PASSWORD.name(),
        table::STREAM_URL.name(),
    ]
    .contains(&name)
}

fn has_login(url: &str) -> bool {
    let url = table::STREAM_URL.parse(url);
    matches!(url, Ok(BrokerUrl { user: Some(_), password: Some(_), .. }))
}

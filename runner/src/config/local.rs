//! Restrictions on a settings file that was found in the working directory rather than named by the
//! user.
//!
//! Such a file can come from an untrusted checkout. It must not choose the destination of
//! credentials from another source: variables, flags, files or the machine.

use super::parse::{self, BrokerUrl};
use super::{Environment, Fault};

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
const RULES: &[Rule] = &[
    Rule { target: "queue.url", credentials: QUEUE },
    Rule { target: "queue.ca", credentials: QUEUE_CA },
    Rule { target: "stream.url", credentials: QUEUE_CA },
    Rule { target: "storage.urls", credentials: STORAGE },
    Rule { target: "storage.ca", credentials: STORAGE_CA },
    Rule { target: "outputs.store", credentials: S3 },
    Rule { target: "outputs.s3-endpoint", credentials: S3 },
    // The region is part of the server's name.
    Rule { target: "outputs.s3-region", credentials: S3 },
];
const QUEUE: &[&str] = &["queue.user", "queue.password", "queue.cert", "queue.key"];
const QUEUE_CA: &[&str] =
    &["queue.url", "stream.url", "queue.user", "queue.password", "queue.cert", "queue.key"];
const STORAGE: &[&str] = &["storage.user", "storage.password", "storage.cert", "storage.key"];
const STORAGE_CA: &[&str] =
    &["storage.urls", "storage.user", "storage.password", "storage.cert", "storage.key"];
const S3: &[&str] = &["outputs.s3-access-key", "outputs.s3-secret-key"];

/// Settings that such a file must not contain, and what each decides. The affected credentials are
/// never in the file itself.
const REJECTED: [(&str, &str); 5] = [
    ("engine.url", REGISTRIES),
    ("engine.docker-url", REGISTRIES),
    ("engine.registry-insecure", REGISTRIES),
    ("worker.checkpoint-registry", REGISTRIES),
    ("worker.secrets-scopes", "who receives secrets of steps"),
];
const REGISTRIES: &str = "which server receives credentials of registries";

/// Publishers on these servers can request the secrets of steps.
const PUBLISHERS: [&str; 2] = ["queue.url", "storage.urls"];
const SECRETS_DIR: &str = "worker.secrets-dir";

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
            .filter(|name| !(rule.target == "stream.url" && is_login(name) && has_login(&text)))
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
        let is_bucket =
            (self.lookup)("outputs.store").is_some_and(|value| value.text.starts_with("s3://"));
        is_bucket && S3.iter().all(|name| (self.lookup)(name).is_none())
    }

    /// The sources of step secrets. A directory counts as another source even if the file names it.
    fn secrets_of_steps(&self, environment: &Environment) -> Vec<String> {
        let variables = environment.secrets().into_keys();
        let mut from: Vec<String> =
            variables.map(|name| format!("{}{name}", super::environment::SECRET)).collect();
        from.extend((self.lookup)(SECRETS_DIR).and_then(|value| value.at));
        from.extend(environment.credentials_dir().map(|_dir| "CREDENTIALS_DIRECTORY".to_owned()));
        from
    }
}

/// Whether a login in the stream's own URL replaces this setting.
fn is_login(name: &str) -> bool {
    ["queue.url", "queue.user", "queue.password", "stream.url"].contains(&name)
}

fn has_login(url: &str) -> bool {
    let url = parse::stream_url(url);
    matches!(url, Ok(BrokerUrl { user: Some(_), password: Some(_), .. }))
}

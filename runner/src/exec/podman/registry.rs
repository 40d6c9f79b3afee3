//! The registry with copies of committed steps, for other engines.
//!
//! The engine pushes and pulls. This module calls the registry directly (distribution
//! specification, version 1) for what the engine's API lacks: the digest of a pushed tag, and
//! removal.

use std::time::Duration;

use http_auth::ChallengeParser;
use protocol::id::{Epoch, RunId};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::exec::auth::Credentials;

/// The repository if the setting names only a registry.
const REPOSITORY: &str = "bob-checkpoints";
/// The longest run id used in a tag. A tag has at most 128 characters, and bob-runner's tags have
/// further parts.
const LONGEST_NAME: usize = 64;
/// The timeout of a request.
const WITHIN: Duration = Duration::from_secs(30);
/// The number of tags requested per page.
const PAGE: usize = 1_000;
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A repository that only bob-runner uses.
#[derive(Debug)]
pub(super) struct Registry {
    host: String,
    repository: String,
    /// The URL schemes to try, in order.
    schemes: &'static [&'static str],
    client: reqwest::Client,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default, alias = "access_token")]
    token: String,
}

/// The full name of the checkpoint repository in a setting `HOST[:PORT][/REPOSITORY]`.
#[must_use]
pub fn repository_of(name: &str) -> String {
    let (host, repository) = name.split_once('/').unwrap_or((name, REPOSITORY));
    format!("{host}/{repository}")
}

impl Registry {
    /// Parses `HOST[:PORT][/REPOSITORY]`.
    pub(super) fn new(name: &str, is_insecure: impl FnOnce(&str) -> bool) -> Result<Self, String> {
        let (host, repository) = name.split_once('/').unwrap_or((name, REPOSITORY));
        let insecure = is_insecure(host);
        let client = reqwest::Client::builder()
            .timeout(WITHIN)
            .danger_accept_invalid_certs(insecure)
            .build()
            .map_err(|cause| format!("cannot speak to registry {host}: {cause}"))?;
        Ok(Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            schemes: if insecure { &["https", "http"] } else { &["https"] },
            client,
        })
    }

    /// The repository as written in image references.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The digest of a tag.
    pub(super) async fn digest(
        &self,
        tag: &str,
        login: Option<&Credentials>,
    ) -> Result<String, String> {
        let answer = self.ask(&Method::HEAD, &format!("manifests/{tag}"), login).await?;
        let digest = answer.headers().get("docker-content-digest");
        let digest = digest.and_then(|digest| digest.to_str().ok()).map(str::to_owned);
        digest.ok_or_else(|| format!("registry {} names no digest of {tag}", self.host))
    }

    /// Removes all tags of a run that the registry allows to be removed.
    pub(super) async fn forget(
        &self,
        run: &RunId,
        login: Option<&Credentials>,
    ) -> Result<(), String> {
        let name = name_of(run);
        for tag in self.tags(login).await? {
            if run_part(&tag) != Some(&name) {
                continue;
            }
            // It, or another tag of the same content, might already be removed.
            let Ok(digest) = self.digest(&tag, login).await else { continue };
            self.ask(&Method::DELETE, &format!("manifests/{digest}"), login).await?;
        }
        Ok(())
    }

    async fn tags(&self, login: Option<&Credentials>) -> Result<Vec<String>, String> {
        let (mut all, mut last) = (Vec::new(), String::new());
        loop {
            let path = format!("tags/list?n={PAGE}&last={last}");
            let answer = self.send(&Method::GET, &path, login).await?;
            if answer.status() == StatusCode::NOT_FOUND {
                // Nothing was ever pushed.
                return Ok(all);
            }
            let page: Tags =
                self.good(answer)?.json().await.map_err(|cause| self.failed(&cause))?;
            let page = page.tags.unwrap_or_default();
            let full = page.len() >= PAGE;
            match page.last() {
                Some(tag) if full => last.clone_from(tag),
                Some(_) | None => {
                    all.extend(page);
                    return Ok(all);
                }
            }
            all.extend(page);
        }
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
        login: Option<&Credentials>,
    ) -> Result<Response, String> {
        let answer = self.send(method, path, login).await?;
        self.good(answer)
    }

    fn good(&self, answer: Response) -> Result<Response, String> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        Err(format!("registry {} answered {status} for {}", self.host, self.repository))
    }

    fn failed(&self, cause: &reqwest::Error) -> String {
        format!("registry {} cannot be asked: {cause}", self.host)
    }

    /// Sends a request, and repeats it with credentials if the registry asks for them.
    async fn send(
        &self,
        method: &Method,
        path: &str,
        login: Option<&Credentials>,
    ) -> Result<Response, String> {
        let mut failed = String::new();
        for scheme in self.schemes {
            let url = format!("{scheme}://{}/v2/{}/{path}", self.host, self.repository);
            let request =
                || self.client.request(method.clone(), &url).header(header::ACCEPT, MANIFESTS);
            let answer = match request().send().await {
                Ok(answer) => answer,
                Err(cause) => {
                    failed = self.failed(&cause);
                    continue;
                }
            };
            if answer.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            let authorised = self.authorise(request(), &answer, login).await?;
            return authorised.send().await.map_err(|cause| self.failed(&cause));
        }
        Err(failed)
    }

    /// Adds the authentication that a rejection asks for: basic, or a token obtained for the login.
    async fn authorise(
        &self,
        request: RequestBuilder,
        refusal: &Response,
        login: Option<&Credentials>,
    ) -> Result<RequestBuilder, String> {
        let login = login.and_then(Credentials::login);
        let asked = refusal.headers().get(header::WWW_AUTHENTICATE);
        let asked = asked.and_then(|asked| asked.to_str().ok()).unwrap_or_default();
        for challenge in ChallengeParser::new(asked).flatten() {
            let param = |name: &str| {
                let mut params = challenge.params.iter();
                let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic")
                && let Some((name, password)) = &login
            {
                return Ok(request.basic_auth(name, Some(password)));
            }
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param("realm")
            {
                let scope = format!("repository:{}:pull,push,delete", self.repository);
                let mut wanted = self.client.get(realm).query(&[("scope", scope)]);
                if let Some(service) = param("service") {
                    wanted = wanted.query(&[("service", service)]);
                }
                if let Some((name, password)) = &login {
                    wanted = wanted.basic_auth(name, Some(password));
                }
                let answer = wanted.send().await.map_err(|cause| self.failed(&cause))?;
                let token = self.good(answer)?.json::<Token>().await;
                let Token { token } = token.map_err(|cause| self.failed(&cause))?;
                return Ok(request.bearer_auth(token));
            }
        }
        Err(format!(
            "registry {} refuses the credentials, or needs some: see BOB_REGISTRY_AUTH_FILE",
            self.host
        ))
    }
}

/// The tag of a committed step. It begins with the run, so that everyone can find it.
pub(super) fn tag(run: &RunId, epoch: Epoch, position: usize, attempt: u32) -> String {
    format!("{}.{epoch}.{position}.{attempt}", name_of(run))
}

/// A run's part of a tag: its id, or the id's digest if it is too long.
fn name_of(run: &RunId) -> String {
    let id = run.as_str();
    if id.len() <= LONGEST_NAME {
        return id.to_owned();
    }
    format!("h-{}", hex::encode(Sha256::digest(id)))
}

/// The run's part of a tag that bob-runner made.
fn run_part(tag: &str) -> Option<&str> {
    let mut parts = tag.rsplitn(4, '.');
    for _ in 0..3 {
        parts.next()?.parse::<i64>().ok()?;
    }
    parts.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str) -> RunId {
        id.parse().unwrap()
    }

    #[test]
    fn a_tag_names_its_run_however_long_and_odd_that_is() {
        let short = run("r-1.2-x");
        let long = run(&format!("r-{}", "A".repeat(120)));
        let other = run(&format!("r-{}B", "A".repeat(119)));
        for id in [&short, &long, &other] {
            let tag = tag(id, Epoch(9_000_000), 120, 3);
            assert!(tag.len() <= 128, "{tag}");
            assert_eq!(run_part(&tag), Some(name_of(id).as_str()));
        }
        assert_ne!(name_of(&long), name_of(&other));
        assert_eq!(tag(&short, Epoch(7), 0, 1), "r-1.2-x.7.0.1");
        for foreign in ["latest", "1.2.3", "r-1.latest", "r-1.a.0.1"] {
            assert_eq!(run_part(foreign), None, "{foreign}");
        }
    }
}

//! The registry that keeps what steps left, for engines that did not run them.
//!
//! The engine pushes and pulls; what it has no call for is asked of the registry itself (the
//! distribution specification, version 1): the digest of what was pushed, and its removal.

use std::fmt::Write as _;
use std::time::Duration;

use http_auth::ChallengeParser;
use protocol::id::{Epoch, RunId};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::exec::auth::Credentials;

/// Where a registry is named without a repository.
const REPOSITORY: &str = "bob-checkpoints";
/// A tag has at most 128 characters, and ours say more than the run.
const LONGEST_NAME: usize = 64;
/// How long the registry may take to answer.
const WITHIN: Duration = Duration::from_secs(30);
/// So many tags are asked for at a time.
const PAGE: usize = 1_000;
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A repository of a registry, all of whose tags are ours.
#[derive(Debug)]
pub(super) struct Registry {
    host: String,
    repository: String,
    /// Tried in this order.
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

impl Registry {
    /// `HOST[:PORT][/REPOSITORY]`.
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

    /// The repository as image references name it.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The digest of what has a tag.
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

    /// Removes whatever has a tag of a run. What the registry does not let us remove stays.
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
            // Another one may have removed it, or what has the same content.
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

    /// Sends a request, and once more with what the registry asks for.
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

    /// Gives a request what a refusal asks for: name and password, or a token for them.
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

/// The tag of what a step left: everyone finds it by the run alone.
pub(super) fn tag(run: &RunId, epoch: Epoch, position: usize, attempt: u32) -> String {
    format!("{}.{epoch}.{position}.{attempt}", name_of(run))
}

/// A run in a tag: its id, or the digest of one that is too long.
fn name_of(run: &RunId) -> String {
    let id = run.as_str();
    if id.len() <= LONGEST_NAME {
        return id.to_owned();
    }
    let digest = Sha256::digest(id);
    digest.iter().fold(String::from("h-"), |mut hex, byte| {
        // A string takes what is written.
        write!(hex, "{byte:02x}").ok();
        hex
    })
}

/// The run's part of a tag of ours.
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

//! Resources: downloads a tar from a provider or a store and checks each entry on the way.

use futures::{StreamExt, stream};
use protocol::names;
use protocol::pipeline::Vars;
use reqwest::Response;
use reqwest::header::CONTENT_ENCODING;
use url::Url;

use super::address::{Service, add_query};
use super::answer::{accepted, reason};
use super::http::Http;
use super::progress::Progress;
use super::tar;
use crate::ports::{ByteStream, TransferError};

/// The URL of an external resource at a provider.
pub(super) fn external(registered: &str, params: &Vars) -> Result<(Service, Url), TransferError> {
    let service = Service::at("resource provider", registered)?;
    let mut url = service.path(&[names::RESOURCE_PATH])?;
    add_query(&mut url, params);
    Ok((service, url))
}

/// The URL of an earlier run's artifact at a store.
pub(super) fn internal(
    registered: &str,
    params: &Vars,
    name: &str,
) -> Result<(Service, Url), TransferError> {
    let param = |spellings: &[&str]| {
        spellings.iter().find_map(|spelling| params.get(*spelling)).ok_or_else(|| {
            TransferError::BadParams(format!(
                "internal resource {name:?} has no parameter `{}`; it names the run that made it",
                spellings[0]
            ))
        })
    };
    let (group, pipeline) = (param(&["group"])?, param(&["name"])?);
    let run = param(&["run-id", "run_id"])?;
    let service = Service::at("artifact store", registered)?;
    let url = service.path(&[names::ARTIFACT_PATH, group, pipeline, run, name])?;
    Ok((service, url))
}

impl Http {
    /// Downloads a tar and places its entries below `mount`.
    pub(super) async fn fetch(
        &self,
        service: &Service,
        url: Url,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        let mount = tar::Mount::new(mount)?;
        let idle = self.timeouts.idle;
        let asked = tokio::time::timeout(idle, self.clients.get(url)).await;
        let response = match asked {
            Ok(answer) => answer.map_err(|cause| service.unreachable(cause))?,
            Err(late) => {
                let cause = format!("no answer for {} s ({late})", idle.as_secs());
                return Err(service.unreachable(cause));
            }
        };
        let response = accepted(service, response, idle).await?;
        is_plain(service, &response)?;
        Ok(tar::below(mount, self.body(service.named(), response)))
    }

    /// The body of a response. Errors name the service.
    fn body(&self, from: String, response: Response) -> ByteStream {
        let next = |state: Option<(Response, Progress, String)>| async move {
            let (mut response, mut progress, from) = state?;
            let cause = match progress.wait(response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    progress.note(chunk.len());
                    return Some((Ok(chunk), Some((response, progress, from))));
                }
                Ok(Ok(None)) => return None,
                Ok(Err(error)) => reason(&error),
                Err(stalled) => format!("it sent {stalled}"),
            };
            let error = std::io::Error::other(format!("{from} broke off: {cause}"));
            Some((Err(error), None))
        };
        stream::unfold(Some((response, Progress::new(&self.timeouts), from)), next).boxed()
    }
}

/// Rejects a response with a content encoding. The request does not allow any.
fn is_plain(service: &Service, response: &Response) -> Result<(), TransferError> {
    let encoding = response.headers().get(CONTENT_ENCODING).map(|value| value.as_bytes());
    match encoding.map(String::from_utf8_lossy) {
        Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
            Err(TransferError::Input(format!(
                "{} sent its tar with `content-encoding: {}`; it must send it without an encoding",
                service.named(),
                encoding.escape_debug()
            )))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Vars {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_internal_resource_is_requested_by_run_in_both_spellings() {
        for key in ["run-id", "run_id"] {
            let params = vars(&[("group", "dev"), ("name", "a b"), (key, "r-1")]);
            let (_, url) = internal("http://store:1/", &params, "res").unwrap();
            assert_eq!(url.as_str(), "http://store:1/bob_artifact/dev/a%20b/r-1/res");
        }
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let error = internal("http://store", &vars(&[("group", "dev"), ("name", "x")]), "res");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`run-id`") && error.contains("\"res\""), "{error}");
    }
}

//! Callbacks: posts news of a run to their receivers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::address::Service;
use super::answer::reason;
use super::http::Http;
use crate::ports::TransferError;

/// The prefix of Standard Webhooks secrets: <https://www.standardwebhooks.com>.
const SIGNS: &str = "whsec_";

impl Http {
    /// Posts JSON and returns the status. The rest of the response is not read.
    pub(super) async fn post_notification(
        &self,
        url: &str,
        secret: Option<&str>,
        id: &str,
        body: Bytes,
    ) -> Result<u16, TransferError> {
        let service = Service::at("the receiver of a callback", url)?;
        let client = self.clients.to(service.url()).await;
        let client = client.map_err(|cause| service.unreachable(cause))?;
        let mut request = client
            .post(service.url().clone())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .timeout(self.timeouts.idle.min(ANSWERS_WITHIN));
        match secret.map(|secret| secret.strip_prefix(SIGNS).ok_or(secret)) {
            None => {}
            Some(Err(bearer)) => request = request.bearer_auth(bearer),
            Some(Ok(key)) => {
                let now = jiff::Timestamp::now().as_second().to_string();
                let signature =
                    signature(key, id, &now, &body).map_err(TransferError::BadParams)?;
                request = request
                    .header("webhook-id", id)
                    .header("webhook-timestamp", now)
                    .header("webhook-signature", signature);
            }
        }
        let answer = request.body(body).send().await;
        let answer = answer.map_err(|error| service.unreachable(reason(&error)))?;
        Ok(answer.status().as_u16())
    }
}

/// The timeout for a receiver's response.
const ANSWERS_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

fn signature(key: &str, id: &str, at: &str, body: &[u8]) -> Result<String, String> {
    let key = STANDARD.decode(key).map_err(
        |_no_base64| "the secret of a callback begins with whsec_, and is not base64 behind that",
    )?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key)
        .map_err(|_any_length_will_do| "the secret of a callback cannot be used")?;
    for part in [id.as_bytes(), b".", at.as_bytes(), b".", body] {
        mac.update(part);
    }
    Ok(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_follows_standard_webhooks() {
        // The example from the specification.
        let key = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let body = br#"{"test": 2432232314}"#;
        let signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body).unwrap();
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(signature("%%", "a", "1", body).is_err());
    }
}

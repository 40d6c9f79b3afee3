//! The change of public keys while the server runs.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::super::token::Tokens;
use super::keys::{SigningKey, in_seconds};
use super::*;

fn key_set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn claims() -> Value {
    json!({ "sub": "ada", "exp": in_seconds(3600) })
}

/// Lets time pass without waiting.
async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

/// A server that answers with a key set, and counts the requests.
#[derive(Clone)]
struct Issuer {
    answer: Arc<Mutex<(StatusCode, String)>>,
    requests: Arc<Mutex<u32>>,
    url: reqwest::Url,
}

impl Issuer {
    async fn start(status: StatusCode, body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap()).parse().unwrap();
        let issuer =
            Self { answer: Arc::new(Mutex::new((status, body))), requests: Arc::default(), url };
        let answer = async |State(issuer): State<Self>| {
            *issuer.requests.lock() += 1;
            issuer.answer.lock().clone()
        };
        let router = Router::new().route("/keys", get(answer)).with_state(issuer.clone());
        TaskTracker::new().spawn(async move { axum::serve(listener, router).await });
        issuer
    }

    fn now_answers(&self, status: StatusCode, body: String) {
        *self.answer.lock() = (status, body);
    }

    fn requests(&self) -> u32 {
        *self.requests.lock()
    }

    async fn tokens(&self) -> Tokens {
        let jwks = Some(JwksSource::Url(self.url.clone()));
        Tokens::open(TokenOptions { jwks, ..TokenOptions::default() }).await.unwrap()
    }
}

#[tokio::test]
async fn a_changed_file_of_keys_applies_without_a_restart() {
    let (old, new) = (SigningKey::ec(), SigningKey::ed());
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |text: String| std::fs::write(file.path(), text).unwrap();
    write(key_set(&[old.jwk("old")]));
    let jwks = Some(JwksSource::File(file.path().to_owned()));
    let tokens = Tokens::open(TokenOptions { jwks, ..TokenOptions::default() }).await.unwrap();
    assert!(tokens.verify(&old.token("old", &claims())).await.is_ok());
    write(key_set(&[new.jwk("new")]));
    pass(2).await;
    assert!(tokens.verify(&new.token("new", &claims())).await.is_ok());
    assert_eq!(tokens.verify(&old.token("old", &claims())).await, Err(Rejection::UnknownKey));
    write("{".into());
    pass(2).await;
    assert!(tokens.verify(&new.token("new", &claims())).await.is_ok());
    std::fs::remove_file(file.path()).unwrap();
    pass(2).await;
    assert!(tokens.verify(&new.token("new", &claims())).await.is_ok());
}

#[tokio::test]
async fn a_file_of_keys_must_be_usable_at_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for text in ["", "[]", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#] {
        std::fs::write(file.path(), text).unwrap();
        let jwks = Some(JwksSource::File(file.path().to_owned()));
        let opened = Tokens::open(TokenOptions { jwks, ..TokenOptions::default() }).await;
        assert!(matches!(opened, Err(JwksError::Malformed { .. })), "{text}");
    }
    let jwks = Some(JwksSource::File("/nonexistent/keys.json".into()));
    let opened = Tokens::open(TokenOptions { jwks, ..TokenOptions::default() }).await;
    let message = opened.unwrap_err().to_string();
    assert!(message.contains("/nonexistent/keys.json"), "{message}");
}

#[tokio::test]
async fn an_unknown_key_id_is_looked_up_at_the_url_but_not_for_each_token() {
    let (first, second, third) = (SigningKey::ec(), SigningKey::ed(), SigningKey::ec());
    let issuer = Issuer::start(StatusCode::OK, key_set(&[first.jwk("1")])).await;
    let tokens = issuer.tokens().await;
    assert!(tokens.verify(&first.token("1", &claims())).await.is_ok());
    issuer.now_answers(StatusCode::OK, key_set(&[first.jwk("1"), second.jwk("2")]));
    let of_second = second.token("2", &claims());
    assert_eq!(tokens.verify(&of_second).await, Err(Rejection::UnknownKey));
    assert_eq!(issuer.requests(), 1, "the keys were read a moment ago");
    pass(11).await;
    assert!(tokens.verify(&of_second).await.is_ok());
    assert_eq!(issuer.requests(), 2);
    for _token in 0..20 {
        let rejected = tokens.verify(&third.token("3", &claims())).await;
        assert_eq!(rejected, Err(Rejection::UnknownKey));
    }
    assert_eq!(issuer.requests(), 2, "unknown keys must not cause a request each");
}

#[tokio::test]
async fn tokens_that_arrive_during_a_request_for_keys_wait_for_its_answer() {
    let (old, new) = (SigningKey::ec(), SigningKey::ed());
    let issuer = Issuer::start(StatusCode::OK, key_set(&[old.jwk("old")])).await;
    let tokens = issuer.tokens().await;
    issuer.now_answers(StatusCode::OK, key_set(&[new.jwk("new")]));
    pass(11).await;
    let token = new.token("new", &claims());
    let verified = futures::future::join_all((0..10).map(|_| tokens.verify(&token))).await;
    assert!(verified.iter().all(Result::is_ok));
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn a_request_for_keys_goes_on_if_the_client_that_caused_it_goes_away() {
    let (old, new) = (SigningKey::ec(), SigningKey::ed());
    let issuer = Issuer::start(StatusCode::OK, key_set(&[old.jwk("old")])).await;
    let tokens = issuer.tokens().await;
    issuer.now_answers(StatusCode::OK, key_set(&[new.jwk("new")]));
    pass(11).await;
    let token = new.token("new", &claims());
    let mut abandoned = Box::pin(tokens.verify(&token));
    assert!(futures::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    assert!(tokens.verify(&token).await.is_ok());
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn a_key_that_the_issuer_removed_is_rejected_after_a_while() {
    let (old, new) = (SigningKey::ec(), SigningKey::ed());
    let issuer = Issuer::start(StatusCode::OK, key_set(&[old.jwk("old")])).await;
    let tokens = issuer.tokens().await;
    issuer.now_answers(StatusCode::OK, key_set(&[new.jwk("new")]));
    pass(301).await;
    assert_eq!(tokens.verify(&old.token("old", &claims())).await, Err(Rejection::UnknownKey));
}

#[tokio::test]
async fn the_old_keys_stay_if_the_url_answers_nothing_usable() {
    let key = SigningKey::ec();
    let issuer = Issuer::start(StatusCode::OK, key_set(&[key.jwk("a")])).await;
    let tokens = issuer.tokens().await;
    for (status, body) in [
        (StatusCode::INTERNAL_SERVER_ERROR, key_set(&[])),
        (StatusCode::FOUND, String::new()),
        (StatusCode::OK, "<html>".into()),
        (StatusCode::OK, key_set(&[])),
        (StatusCode::OK, format!("{{{}", " ".repeat(2 << 20))),
    ] {
        issuer.now_answers(status, body);
        pass(301).await;
        let requests = issuer.requests();
        assert!(tokens.verify(&key.token("a", &claims())).await.is_ok(), "{status}");
        assert_eq!(issuer.requests(), requests + 1, "{status}");
    }
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_at_the_start_is_asked_again() {
    let key = SigningKey::ed();
    let issuer = Issuer::start(StatusCode::SERVICE_UNAVAILABLE, String::new()).await;
    let tokens = issuer.tokens().await;
    let token = key.token("a", &claims());
    assert_eq!(tokens.verify(&token).await, Err(Rejection::UnknownKey));
    issuer.now_answers(StatusCode::OK, key_set(&[key.jwk("a")]));
    pass(11).await;
    assert!(tokens.verify(&token).await.is_ok());
}

//! Tokens: their algorithms, claims and scopes.

use std::time::Duration;

use ring::hmac;
use serde_json::{Value, json};

use super::super::token::Tokens;
use super::keys::{SigningKey, in_seconds, of_secret, signed};
use super::*;

async fn tokens(options: TokenOptions) -> Tokens {
    Tokens::open(options).await.unwrap()
}

/// A file with these keys, and its options.
fn with_keys(keys: &[Value]) -> (tempfile::NamedTempFile, TokenOptions) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "keys": keys }).to_string()).unwrap();
    let jwks = Some(JwksSource::File(file.path().to_owned()));
    (file, TokenOptions { jwks, ..TokenOptions::default() })
}

fn claims() -> Value {
    json!({ "sub": "ada", "exp": in_seconds(60) })
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

#[tokio::test]
async fn a_token_of_the_shared_secret_without_scope_has_every_right_and_need_not_expire() {
    let tokens = tokens(with_secret()).await;
    let token = of_secret(SECRET.as_bytes(), &json!({ "sub": "ada", "aud": "anything" }));
    let expected = Principal { subject: "ada".into(), scopes: Scopes::ALL };
    assert_eq!(tokens.verify(&token).await, Ok(expected));
    let nameless = of_secret(SECRET.as_bytes(), &json!({}));
    let expected = Principal { subject: String::new(), scopes: Scopes::ALL };
    assert_eq!(tokens.verify(&nameless).await, Ok(expected));
}

#[tokio::test]
async fn a_scope_in_a_token_limits_it() {
    let tokens = tokens(with_secret()).await;
    for (claim, scopes) in [
        (json!("openid run"), [Scope::Run].into_iter().collect()),
        (json!(["read"]), Scopes::READ),
        (json!("openid"), Scopes::NONE),
        (json!(""), Scopes::NONE),
    ] {
        let token = of_secret(SECRET.as_bytes(), &with("scope", claim.clone()));
        assert_eq!(tokens.verify(&token).await.unwrap().scopes, scopes, "{claim}");
    }
    let wrong_type = of_secret(SECRET.as_bytes(), &with("scope", json!({ "admin": true })));
    assert_eq!(tokens.verify(&wrong_type).await, Err(Rejection::Malformed));
}

#[tokio::test]
async fn every_algorithm_of_public_keys_is_verified_and_grants_reading() {
    let keys = [SigningKey::ec(), SigningKey::ed(), SigningKey::rsa()];
    let set: Vec<Value> = keys.iter().map(|key| key.jwk(key.algorithm())).collect();
    let (_file, options) = with_keys(&set);
    let tokens = tokens(options).await;
    for key in &keys {
        let algorithm = key.algorithm();
        let principal = tokens.verify(&key.token(algorithm, &claims())).await.unwrap();
        assert_eq!((principal.subject.as_str(), principal.scopes), ("ada", Scopes::READ));
        let admin = key.token(algorithm, &with("scope", "admin"));
        assert_eq!(tokens.verify(&admin).await.unwrap().scopes, Scopes::ALL, "{algorithm}");
        let without_id = signed(&json!({ "alg": algorithm }), &claims(), |m| key.sign(m));
        assert!(tokens.verify(&without_id).await.is_ok(), "{algorithm}");
    }
}

#[tokio::test]
async fn a_wrong_signature_is_rejected() {
    let (known, other) = (SigningKey::ec(), SigningKey::ec());
    let (_file, options) = with_keys(&[known.jwk("a")]);
    let tokens = tokens(TokenOptions { secret: Some(secret()), ..options }).await;
    for forged in [other.token("a", &claims()), of_secret(b"another secret here", &claims())] {
        assert_eq!(tokens.verify(&forged).await, Err(Rejection::Signature));
    }
    let valid = of_secret(SECRET.as_bytes(), &claims());
    let (message, _signature) = valid.rsplit_once('.').unwrap();
    assert_eq!(tokens.verify(&format!("{message}.")).await, Err(Rejection::Signature));
    let (_message, signature) = valid.rsplit_once('.').unwrap();
    let other = of_secret(b"another secret here", &with("sub", "root"));
    let (message, _signature) = other.rsplit_once('.').unwrap();
    assert_eq!(tokens.verify(&format!("{message}.{signature}")).await, Err(Rejection::Signature));
}

#[tokio::test]
async fn an_unsigned_token_is_rejected() {
    let key = SigningKey::ec();
    let (_file, options) = with_keys(&[key.jwk("a")]);
    let tokens = tokens(TokenOptions { secret: Some(secret()), ..options }).await;
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        for header in [json!({ "alg": algorithm }), json!({ "alg": algorithm, "kid": "a" })] {
            let unsigned = signed(&header, &claims(), |_message| Vec::new());
            assert_eq!(tokens.verify(&unsigned).await, Err(Rejection::Malformed), "{header}");
        }
    }
    let without_algorithm = signed(&json!({}), &claims(), |_message| Vec::new());
    assert_eq!(tokens.verify(&without_algorithm).await, Err(Rejection::Malformed));
    for text in ["", ".", "..", "a.b.c", "a.b.c.d", "\u{1f511}"] {
        assert_eq!(tokens.verify(text).await, Err(Rejection::Malformed), "{text:?}");
    }
    let huge = of_secret(SECRET.as_bytes(), &with("sub", "x".repeat(10_000)));
    assert_eq!(tokens.verify(&huge).await, Err(Rejection::Malformed));
}

#[tokio::test]
async fn a_token_with_another_algorithm_than_that_of_its_key_is_rejected() {
    let (ec, rsa) = (SigningKey::ec(), SigningKey::rsa());
    let (_file, options) = with_keys(&[ec.jwk("ec"), rsa.jwk("rsa")]);
    let tokens = tokens(TokenOptions { secret: Some(secret()), ..options }).await;
    for (algorithm, id) in
        [("RS256", "ec"), ("ES256", "rsa"), ("RS384", "rsa"), ("PS256", "rsa"), ("ES384", "ec")]
    {
        let key = if id == "ec" { &ec } else { &rsa };
        let token = signed(&json!({ "alg": algorithm, "kid": id }), &claims(), |m| key.sign(m));
        assert_eq!(tokens.verify(&token).await, Err(Rejection::UnknownKey), "{algorithm} {id}");
    }
    for (algorithm, hash) in [("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)] {
        let key = hmac::Key::new(hash, SECRET.as_bytes());
        let sign = |message: &[u8]| hmac::sign(&key, message).as_ref().to_vec();
        let token = signed(&json!({ "alg": algorithm }), &claims(), sign);
        assert_eq!(tokens.verify(&token).await, Err(Rejection::UnknownKey), "{algorithm}");
    }
}

#[tokio::test]
async fn a_public_key_is_never_used_as_a_shared_secret() {
    let key = SigningKey::ec();
    let jwk = key.jwk("a");
    let shared =
        json!({ "kty": "oct", "kid": "b", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ" });
    let (file, options) = with_keys(&[jwk.clone(), shared]);
    let tokens = tokens(options).await;
    let whole = std::fs::read(file.path()).unwrap();
    for secret in [whole.as_slice(), jwk.to_string().as_bytes(), b"secret-secret-secret"] {
        let token = of_secret(secret, &claims());
        assert_eq!(tokens.verify(&token).await, Err(Rejection::UnknownKey));
    }
}

#[tokio::test]
async fn keys_for_other_uses_and_algorithms_are_ignored() {
    let (used, unused) = (SigningKey::ec(), SigningKey::ec());
    let mut encryption = unused.jwk("enc");
    encryption["use"] = json!("enc");
    let mut other_algorithm = unused.jwk("es384");
    other_algorithm["alg"] = json!("ES384");
    let unknown = json!({ "kty": "AKP", "kid": "new", "alg": "ML-DSA-44" });
    let (_file, options) = with_keys(&[unknown, encryption, other_algorithm, used.jwk("a")]);
    let tokens = tokens(options).await;
    assert!(tokens.verify(&used.token("a", &claims())).await.is_ok());
    for id in ["enc", "es384", "new"] {
        let rejected = tokens.verify(&unused.token(id, &claims())).await;
        assert_eq!(rejected, Err(Rejection::UnknownKey), "{id}");
    }
}

#[tokio::test]
async fn a_token_outside_its_time_is_rejected() {
    let key = SigningKey::ed();
    let (_file, options) = with_keys(&[key.jwk("a")]);
    let tokens = tokens(TokenOptions { secret: Some(secret()), ..options }).await;
    for (changed, expected) in [
        (with("exp", in_seconds(-60)), Err(Rejection::Expired)),
        (with("exp", in_seconds(-10)), Ok(())),
        (with("nbf", in_seconds(90)), Err(Rejection::Early)),
        (with("nbf", in_seconds(10)), Ok(())),
        (with("iat", in_seconds(90)), Err(Rejection::Early)),
        (with("nbf", "soon"), Err(Rejection::Claims)),
    ] {
        for token in [of_secret(SECRET.as_bytes(), &changed), key.token("a", &changed)] {
            assert_eq!(tokens.verify(&token).await.map(drop), expected, "{changed}");
        }
    }
    let endless = key.token("a", &json!({ "sub": "ada" }));
    assert_eq!(tokens.verify(&endless).await, Err(Rejection::Claims));
    let text = of_secret(SECRET.as_bytes(), &with("exp", "never"));
    assert_eq!(tokens.verify(&text).await, Err(Rejection::Claims));
}

#[tokio::test]
async fn a_token_for_another_server_or_of_another_issuer_is_rejected() {
    let key = SigningKey::ed();
    let (_file, options) = with_keys(&[key.jwk("a")]);
    let open = tokens(options.clone()).await;
    let for_other = key.token("a", &with("aud", "billing"));
    assert_eq!(open.verify(&for_other).await, Err(Rejection::Audience));
    let strict = TokenOptions {
        secret: Some(secret()),
        audience: vec!["bob".into()],
        issuer: vec!["https://id.example.org".into()],
        ..options
    };
    let strict = tokens(strict).await;
    let claims = |audience: Value, issuer: &str| {
        let mut claims = with("aud", audience);
        claims["iss"] = issuer.into();
        claims
    };
    let issuer = "https://id.example.org";
    for (claims, expected) in [
        (claims(json!("bob"), issuer), Ok(())),
        (claims(json!(["billing", "bob"]), issuer), Ok(())),
        (claims(json!("billing"), issuer), Err(Rejection::Audience)),
        (claims(json!([]), issuer), Err(Rejection::Audience)),
        (claims(json!(7), issuer), Err(Rejection::Claims)),
        (claims(json!("bob"), "https://evil.example"), Err(Rejection::Issuer)),
        (with("aud", "bob"), Err(Rejection::Claims)),
        (with("iss", issuer), Err(Rejection::Claims)),
    ] {
        for token in [key.token("a", &claims), of_secret(SECRET.as_bytes(), &claims)] {
            assert_eq!(strict.verify(&token).await.map(drop), expected, "{claims}");
        }
    }
}

#[tokio::test]
async fn a_token_for_development_is_accepted_by_a_server_with_the_same_secret() {
    let grant = Grant {
        subject: Some("ada".into()),
        scope: Scope::Run,
        lifetime: Duration::from_secs(60),
        audience: Some("bob".into()),
        issuer: None,
    };
    let token = sign(&secret(), &grant).unwrap();
    let strict = TokenOptions { audience: vec!["bob".into()], ..with_secret() };
    let principal = tokens(strict).await.verify(&token).await.unwrap();
    assert_eq!(principal.subject, "ada");
    assert_eq!(principal.scopes, [Scope::Run].into_iter().collect());
}

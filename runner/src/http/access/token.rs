//! Verifies tokens, and signs tokens for development.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
    get_current_timestamp,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::crypto;
use super::jwks::{JwksError, JwksSource, KeySet};
use super::scope::{Principal, Scope, ScopeClaim, Scopes};
use crate::ports::Secret;

/// How far the clocks of this machine and of the issuer can differ.
const LEEWAY_SECONDS: u64 = 30;

/// The longest accepted token, in bytes.
const MAX_BYTES: usize = 8 * 1024;

/// The keys of tokens, and what their claims must contain.
#[derive(Debug, Clone, Default)]
pub struct TokenOptions {
    /// The shared secret for HS256.
    pub secret: Option<Secret>,
    /// The public keys for RS256, ES256 and `EdDSA`.
    pub jwks: Option<JwksSource>,
    /// Values of `aud`, one of which a token must contain. If empty, a token of a public key must
    /// have no `aud`, and that of other tokens is not checked.
    pub audience: Vec<String>,
    /// Values of `iss`, one of which a token must contain. Not checked if empty.
    pub issuer: Vec<String>,
}

impl TokenOptions {
    /// Whether there is a key. Without one, no token is valid.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.secret.is_some() || self.jwks.is_some()
    }
}

/// Why a token is rejected. The messages are meant for its owner, and tell nothing about the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rejection {
    /// It is not a token, or is signed with an algorithm that is never accepted, such as `none`.
    #[error("the token is malformed, or its algorithm is not one of HS256, RS256, ES256 and EdDSA")]
    Malformed,
    /// No key fits.
    #[error("the token is signed with a key or an algorithm that this server does not accept")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature of the token does not match")]
    Signature,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet")]
    Early,
    /// It was issued for another server.
    #[error("the token is meant for another server (claim `aud`)")]
    Audience,
    /// It was issued by someone else.
    #[error("the token comes from an issuer that this server does not accept (claim `iss`)")]
    Issuer,
    /// A claim is missing or has the wrong type.
    #[error("the token lacks a claim that this server requires, or a claim has the wrong type")]
    Claims,
}

impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "every other error concerns the form of the token"
        )]
        match error.kind() {
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::Early,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::InvalidAlgorithm => Self::UnknownKey,
            ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => Self::Claims,
            _ => Self::Malformed,
        }
    }
}

/// Verifies tokens.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    secret: Option<DecodingKey>,
    public_keys: Option<Arc<KeySet>>,
    audience: HashSet<String>,
    issuer: HashSet<String>,
}

impl Tokens {
    /// Reads the keys.
    ///
    /// # Errors
    /// A file of keys that cannot be read or used.
    pub(super) async fn open(options: TokenOptions) -> Result<Self, JwksError> {
        crypto::install();
        // Only an empty secret is rejected, and the settings require a longer one.
        let secret =
            options.secret.and_then(|secret| DecodingKey::from_secret(secret.expose()).ok());
        let public_keys = match options.jwks {
            Some(source) => Some(KeySet::open(source).await?),
            None => None,
        };
        Ok(Self {
            secret,
            public_keys,
            audience: options.audience.into_iter().collect(),
            issuer: options.issuer.into_iter().collect(),
        })
    }

    /// Verifies a token and returns its owner.
    pub(super) async fn verify(&self, token: &str) -> Result<Principal, Rejection> {
        if token.len() > MAX_BYTES {
            return Err(Rejection::Malformed);
        }
        let header = decode_header(token)?;
        let claims: Claims = if header.alg == Algorithm::HS256 {
            let secret = self.secret.as_ref().ok_or(Rejection::UnknownKey)?;
            decode(token, secret, &self.rules_of_secret())?.claims
        } else {
            let keys = self.public_keys.as_ref().ok_or(Rejection::UnknownKey)?;
            let found = keys.find(header.kid.as_deref(), header.alg).await;
            let found = found.ok_or(Rejection::UnknownKey)?;
            decode(token, &found.key, &self.rules(found.algorithm))?.claims
        };
        if claims.iat.is_some_and(|issued| issued > latest_start()) {
            return Err(Rejection::Early);
        }
        // The tokens of prunner's clients have no scope.
        let without_claim = if header.alg == Algorithm::HS256 { Scopes::ALL } else { Scopes::READ };
        let scopes = claims.scope.map_or(without_claim, |claim| claim.scopes());
        Ok(Principal { subject: claims.sub.unwrap_or_default(), scopes })
    }

    /// The tokens of prunner's clients have any audience, and need not expire.
    fn rules_of_secret(&self) -> Validation {
        let mut rules = self.rules(Algorithm::HS256);
        rules.required_spec_claims.remove("exp");
        rules.validate_aud = !self.audience.is_empty();
        rules
    }

    /// A token with an `aud` is rejected if no audience is set, because the issuer can sign tokens for
    /// other services with the same key.
    fn rules(&self, algorithm: Algorithm) -> Validation {
        let mut rules = Validation::new(algorithm);
        rules.leeway = LEEWAY_SECONDS;
        rules.validate_nbf = true;
        if !self.audience.is_empty() {
            rules.aud = Some(self.audience.clone());
            rules.required_spec_claims.insert("aud".into());
        }
        if !self.issuer.is_empty() {
            rules.iss = Some(self.issuer.clone());
            rules.required_spec_claims.insert("iss".into());
        }
        rules
    }
}

/// The latest time at which a valid token can have been issued, in seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^53")]
fn latest_start() -> f64 {
    (get_current_timestamp() + LEEWAY_SECONDS) as f64
}

/// The claims that matter here, besides those that `jsonwebtoken` checks.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: Option<String>,
    scope: Option<ScopeClaim>,
    iat: Option<f64>,
}

/// The claims of a token for development.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The user.
    pub subject: Option<String>,
    /// The scope.
    pub scope: Scope,
    /// How long the token is valid.
    pub lifetime: Duration,
    /// The audience, if the server requires one.
    pub audience: Option<String>,
    /// The issuer, if the server requires one.
    pub issuer: Option<String>,
}

#[derive(Serialize)]
struct SignedClaims<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    scope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    iat: u64,
    exp: u64,
}

/// The token could not be signed.
#[derive(Debug, Error)]
#[error("cannot sign a token: {0}")]
pub struct SignError(#[from] Error);

/// Signs a token with the shared secret.
///
/// # Errors
/// An empty secret.
pub fn sign(secret: &Secret, grant: &Grant) -> Result<String, SignError> {
    crypto::install();
    let now = get_current_timestamp();
    let claims = SignedClaims {
        sub: grant.subject.as_deref(),
        scope: grant.scope.name(),
        aud: grant.audience.as_deref(),
        iss: grant.issuer.as_deref(),
        iat: now,
        exp: now.saturating_add(grant.lifetime.as_secs()),
    };
    let key = EncodingKey::from_secret(secret.expose())?;
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}

//! Keys that sign the tokens of tests, and tokens with any header.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use num_bigint::BigUint;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use ring::{digest, hmac};
use serde_json::{Value, json};

/// A key pair of one of the algorithms for public keys.
pub(super) enum SigningKey {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa { modulus: BigUint, private_exponent: BigUint },
}

impl SigningKey {
    pub(super) fn ec() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::Ec(EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap())
    }

    pub(super) fn ed() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    /// `ring` cannot generate such keys.
    pub(super) fn rsa() -> Self {
        let (one, public_exponent) = (BigUint::from(1_u8), BigUint::from(65_537_u32));
        loop {
            let (p, q) = (prime(), prime());
            let totient = (&p - &one) * (&q - &one);
            if let Some(private_exponent) = public_exponent.modinv(&totient) {
                return Self::Rsa { modulus: p * q, private_exponent };
            }
        }
    }

    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
            Self::Rsa { .. } => "RS256",
        }
    }

    /// The public key as a member of a key set.
    pub(super) fn jwk(&self, id: &str) -> Value {
        let mut jwk = match self {
            Self::Ec(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": BASE64.encode(x), "y": BASE64.encode(y) })
            }
            Self::Ed(pair) => {
                let x = BASE64.encode(pair.public_key().as_ref());
                json!({ "kty": "OKP", "crv": "Ed25519", "x": x })
            }
            Self::Rsa { modulus, .. } => {
                json!({ "kty": "RSA", "n": BASE64.encode(modulus.to_bytes_be()), "e": "AQAB" })
            }
        };
        jwk["kid"] = json!(id);
        jwk["use"] = json!("sig");
        jwk
    }

    /// A token of this key, with a matching header.
    pub(super) fn token(&self, id: &str, claims: &Value) -> String {
        let header = json!({ "alg": self.algorithm(), "kid": id });
        signed(&header, claims, |message| self.sign(message))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ec(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rsa { modulus, private_exponent } => {
                let padded = BigUint::from_bytes_be(&pkcs1(message));
                let signature = padded.modpow(private_exponent, modulus).to_bytes_be();
                [vec![0; 256 - signature.len()], signature].concat()
            }
        }
    }
}

/// A probable prime of 1024 bits, whose two highest bits are set.
fn prime() -> BigUint {
    let (one, two) = (BigUint::from(1_u8), BigUint::from(2_u8));
    let small: Vec<u32> = (3..2000).filter(|n| (2..*n).all(|m| n % m != 0)).collect();
    loop {
        let mut bytes = [0; 128];
        SystemRandom::new().fill(&mut bytes).unwrap();
        bytes[0] |= 0b1100_0000;
        bytes[127] |= 1;
        let candidate = BigUint::from_bytes_be(&bytes);
        let has_factor = small.iter().any(|n| &candidate % n == BigUint::ZERO);
        if !has_factor && two.modpow(&(&candidate - &one), &candidate) == one {
            return candidate;
        }
    }
}

/// The padded digest that RS256 signs with a key of 2048 bits (RFC 8017 section 9.2).
fn pkcs1(message: &[u8]) -> Vec<u8> {
    const SHA_256: [u8; 19] = [48, 49, 48, 13, 6, 9, 96, 134, 72, 1, 101, 3, 4, 2, 1, 5, 0, 4, 32];
    let digest = digest::digest(&digest::SHA256, message);
    let padding = vec![0xff; 256 - 3 - SHA_256.len() - digest.as_ref().len()];
    [&[0, 1][..], &padding, &[0], &SHA_256, digest.as_ref()].concat()
}

/// A token with any header and signature.
pub(super) fn signed(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let encode = |part: &Value| BASE64.encode(part.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = BASE64.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// A token of a shared secret.
pub(super) fn of_secret(secret: &[u8], claims: &Value) -> String {
    signed(&json!({ "alg": "HS256", "typ": "JWT" }), claims, |message| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        hmac::sign(&key, message).as_ref().to_vec()
    })
}

/// A time in seconds since 1970, this many seconds from now.
pub(super) fn in_seconds(seconds: i64) -> i64 {
    i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap() + seconds
}

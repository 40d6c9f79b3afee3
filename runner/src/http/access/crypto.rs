//! The algorithms of tokens, on `ring`, for the crate `jsonwebtoken`.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    // Only needed to derive a key set from private keys.
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_key| Err(unsupported()),
        rsa_pub_components_from_public_key: |_key| Err(unsupported()),
        ec_pub_components_from_private_key: |_key, _algorithm| Err(unsupported()),
        ed_pub_components_from_private_key: |_key, _curve| Err(unsupported()),
        compute_digest: |_data, _hash| Err(unsupported()),
    },
};

/// Makes these algorithms those of the process. Must precede every use of a token.
pub(super) fn install() {
    // An error means that they are installed already.
    PROVIDER.install_default().ok();
}

fn unsupported() -> Error {
    ErrorKind::UnsupportedAlgorithm.into()
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    if *algorithm != Algorithm::HS256 || key.family() != AlgorithmFamily::Hmac {
        return Err(unsupported());
    }
    Ok(Box::new(SharedSecret(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let kind = key.kind();
    let algorithm = *algorithm;
    if algorithm == Algorithm::HS256 && key.family() == AlgorithmFamily::Hmac {
        let secret = key.try_get_as_bytes()?;
        return Ok(Box::new(SharedSecret(hmac::Key::new(hmac::HMAC_SHA256, secret))));
    }
    if algorithm == Algorithm::RS256
        && let DecodingKeyKind::RsaModulusExponent { n, e } = kind
    {
        // Some issuers write leading zeros, which `ring` rejects.
        let number = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
        return Ok(Box::new(RsaKey(RsaPublicKeyComponents { n: number(n), e: number(e) })));
    }
    let parameters: &'static dyn VerificationAlgorithm = match (algorithm, key.family()) {
        (Algorithm::ES256, AlgorithmFamily::Ec) => &ECDSA_P256_SHA256_FIXED,
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => &ED25519,
        _ => return Err(unsupported()),
    };
    let point = key.try_get_as_bytes()?.to_vec();
    Ok(Box::new(CurveKey { algorithm, key: UnparsedPublicKey::new(parameters, point) }))
}

struct SharedSecret(hmac::Key);

impl Signer<Vec<u8>> for SharedSecret {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl JwtSigner for SharedSecret {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Verifier<Vec<u8>> for SharedSecret {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        // The comparison takes the same time wherever the two differ.
        hmac::verify(&self.0, message, signature).map_err(|_wrong| signature::Error::new())
    }
}

impl JwtVerifier for SharedSecret {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

struct RsaKey(RsaPublicKeyComponents<Vec<u8>>);

impl Verifier<Vec<u8>> for RsaKey {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = self.0.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature);
        verified.map_err(|_wrong| signature::Error::new())
    }
}

impl JwtVerifier for RsaKey {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}

struct CurveKey {
    algorithm: Algorithm,
    key: UnparsedPublicKey<Vec<u8>>,
}

impl Verifier<Vec<u8>> for CurveKey {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.key.verify(message, signature).map_err(|_wrong| signature::Error::new())
    }
}

impl JwtVerifier for CurveKey {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

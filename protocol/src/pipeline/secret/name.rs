//! Names of keys, parameters, headers and variables whose values are secrets.

/// Endings of such names, in lower case and without separators.
const SECRET: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "jwt",
    "apikey",
    "accesskey",
    "privatekey",
    "secretkey",
    "signingkey",
    "encryptionkey",
];

/// Further endings, of names that can also stand for a map of which only some values are secrets.
const SECRET_TEXT: [&str; 3] = ["authorization", "credential", "credentials"];

/// Endings of names that are not secret: the position in a paged answer, and the id of a request.
const OPEN: [&str; 4] = ["pagetoken", "nexttoken", "continuationtoken", "idempotencytoken"];

/// Variables of a shell that hold a directory.
const DIRECTORIES: [&str; 2] = ["PWD", "OLDPWD"];

/// Last words of header names whose values are secrets.
const SECRET_HEADER: [&str; 10] = [
    "auth",
    "authorization",
    "cookie",
    "token",
    "key",
    "apikey",
    "secret",
    "password",
    "signature",
    "credential",
];

/// Headers that end with such a word but are not secret.
const OPEN_HEADERS: [&str; 3] = ["idempotency-key", "sec-websocket-key", "surrogate-key"];

/// Length of the longest end of a name that is compared, in bytes.
const LONGEST: usize = 64;

/// Whether every value below this key is a secret. `clientSecret`, `client_secret` and
/// `CLIENT-SECRET` are equivalent.
pub(super) fn is_secret(name: &str) -> bool {
    let name = end(name);
    let compact = compact(name);
    let ends_with = |words: &[&str]| words.iter().any(|word| compact.ends_with(word));
    (ends_with(&SECRET) || has_pass(name)) && !ends_with(&OPEN)
}

/// Whether the value of this key or parameter is a secret if it is a text or a number.
pub(super) fn is_secret_text(name: &str) -> bool {
    let compact = compact(end(name));
    is_secret(name) || SECRET_TEXT.iter().any(|word| compact.ends_with(word))
}

/// Whether the value of this variable is probably a secret.
pub(super) fn is_secret_variable(name: &str) -> bool {
    is_secret_text(name) && !DIRECTORIES.contains(&name)
}

/// Whether the value of this header is a secret.
#[must_use]
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_lowercase();
    let last = name.rsplit(['-', '_']).next().unwrap_or_default();
    let is_secret = SECRET_HEADER.iter().any(|word| last.ends_with(word));
    is_secret && !OPEN_HEADERS.iter().any(|open| name.ends_with(open))
}

/// Whether the last of several words is `pass`, as in `db_pass` and `userPass`, but not in
/// `bypass`.
fn has_pass(name: &str) -> bool {
    const PASS: usize = "pass".len();
    let name = name.trim_end_matches(|c: char| !c.is_alphanumeric());
    let Some((before, last)) = name.split_at_checked(name.len().saturating_sub(PASS)) else {
        return false;
    };
    let is_separate = before.ends_with(|c: char| !c.is_alphanumeric());
    let is_camel_case = last.starts_with('P') && before.ends_with(char::is_lowercase);
    last.eq_ignore_ascii_case("pass") && (is_separate || is_camel_case)
}

/// The end of a name, so that a very long one is cheap.
fn end(name: &str) -> &str {
    let mut from = name.len().saturating_sub(LONGEST);
    while !name.is_char_boundary(from) {
        from += 1;
    }
    &name[from..]
}

fn compact(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_recognized_by_its_name_in_every_spelling() {
        for name in [
            "password",
            "clientSecret",
            "client_secret",
            "CLIENT-SECRET",
            "client.secret",
            "ClientSecret",
            "apiKey",
            "apikey",
            "X-API-Key",
            "accessToken",
            "access_token",
            "refreshToken",
            "idToken",
            "privateKey",
            "aws_secret_access_key",
            "secretKey",
            "pwd",
            "userPwd",
            "db_pass",
            "SMTP_PASS",
            "userPass",
            "cipassword",
            "sharedSecret",
            "webhook-secret",
            "sessionJwt",
            "password[]",
            &format!("{}_token", "x".repeat(1000)),
        ] {
            assert!(is_secret(name), "{name} was not found");
        }
        for name in ["credentials", "dbCredential", "Authorization", "proxy-authorization"] {
            assert!(is_secret_text(name) && !is_secret(name), "{name}");
        }
    }

    #[test]
    fn harmless_names_are_not_secrets() {
        for name in [
            "token-url",
            "tokenUrl",
            "token_endpoint",
            "tokenType",
            "token_id",
            "token-file",
            "tokenizer",
            "tokens",
            "max-tokens",
            "maxTokens",
            "nextPageToken",
            "page_token",
            "next-token",
            "continuation-token",
            "idempotency_token",
            "secret-name",
            "secretName",
            "secret_id",
            "secretary",
            "password-file",
            "passwordFile",
            "password_policy",
            "passwordless",
            "bypass",
            "BYPASS",
            "compass",
            "pass",
            "pass-through",
            "passed",
            "key",
            "key_id",
            "keyfile",
            "keyboard",
            "access_key_id",
            "accessKeyId",
            "publicKey",
            "public_key",
            "primary_key",
            "api_key_id",
            "apiKeyName",
            "credentials_id",
            "credentialType",
            "authorization_url",
            "author",
            "auth",
            "grant_type",
            "user",
            "",
            "ü",
            "_",
        ] {
            assert!(!is_secret_text(name), "{name} was taken for a secret");
        }
        assert!(!is_secret_variable("PWD") && !is_secret_variable("OLDPWD"));
        assert!(is_secret_variable("DB_PWD") && is_secret_variable("GITHUB_TOKEN"));
    }
}

//! What a request passes before its handler.

use std::num::NonZeroU32;

use futures::StreamExt as _;
use serde_json::json;

use super::keys::{in_seconds, of_secret};
use super::*;

fn empty(builder: axum::http::request::Builder) -> Request<Body> {
    builder.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_request_without_a_token_is_told_how_to_authenticate() {
    let router = protected(options(with_secret())).await;
    for path in ["/who", "/unknown", "/healthz/", "//healthz", "/%68ealthz", "/healthz/../who"] {
        let answer = answer(&router, empty(request("GET", path))).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(header(&answer, "www-authenticate"), "Bearer");
        assert_eq!(header(&answer, "content-type"), crate::http::PROBLEM_JSON);
    }
    assert_eq!(status(&router, empty(request("GET", "/healthz"))).await, StatusCode::OK);
    assert_eq!(status(&router, empty(request("GET", "/healthz?x=1"))).await, StatusCode::OK);
}

#[tokio::test]
async fn a_token_is_sent_in_the_header_or_in_the_cookie_of_prunners_clients() {
    let router = protected(options(with_secret())).await;
    let token = bearer("read");
    let bare = token.strip_prefix("Bearer ").unwrap();
    for (name, value) in [
        ("authorization", token.clone()),
        ("authorization", format!("bearer  {bare}")),
        ("cookie", format!("jwt={bare}")),
        ("cookie", format!("theme=dark; jwt={bare}; x=y")),
    ] {
        let answer = answer(&router, empty(request("GET", "/who").header(name, value))).await;
        assert_eq!(text(answer).await, "ada", "{name}");
    }
    let expired = of_secret(SECRET.as_bytes(), &json!({ "exp": in_seconds(-60) }));
    for (name, value) in [
        ("authorization", format!("Bearer {expired}")),
        ("authorization", format!("Basic {bare}")),
        ("authorization", bare.to_owned()),
        ("authorization", "Bearer ".to_owned()),
        ("cookie", format!("jwt={expired}")),
        ("cookie", format!("JWT={bare}")),
    ] {
        let answer = answer(&router, empty(request("GET", "/who").header(name, &value))).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{name}: {value}");
    }
    let wrong_header = request("GET", "/who")
        .header("authorization", "Bearer x")
        .header("cookie", format!("jwt={bare}"));
    assert_eq!(status(&router, empty(wrong_header)).await, StatusCode::UNAUTHORIZED);
    let twice =
        request("GET", "/who").header("authorization", &token).header("authorization", &token);
    assert_eq!(status(&router, empty(twice)).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_missing_scope_is_named() {
    let router = protected(options(with_secret())).await;
    let start = |scope| empty(request("POST", "/run").header("authorization", bearer(scope)));
    let answered = answer(&router, start("read")).await;
    assert_eq!(answered.status(), StatusCode::FORBIDDEN);
    let challenge = header(&answered, "www-authenticate");
    assert_eq!(challenge, "Bearer error=\"insufficient_scope\", scope=\"run\"");
    assert!(text(answered).await.contains("needs the scope run, and its token grants read"));
    assert_eq!(status(&router, start("run")).await, StatusCode::OK);
    assert_eq!(status(&router, start("admin")).await, StatusCode::OK);
    assert_eq!(status(&router, start("none")).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn no_token_is_valid_without_keys() {
    let router = protected(options(TokenOptions::default())).await;
    assert_eq!(status(&router, empty(request("POST", "/run"))).await, StatusCode::UNAUTHORIZED);
    let with_token = request("GET", "/who").header("authorization", bearer("read"));
    assert_eq!(status(&router, empty(with_token)).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_foreign_host_and_a_foreign_page_are_rejected_even_with_a_token() {
    let router = protected(options(with_secret())).await;
    let to = |host: &str| {
        let builder = Request::builder().uri("/who").header("host", host);
        empty(builder.header("authorization", bearer("admin")))
    };
    assert_eq!(status(&router, to("evil.example:9009")).await, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(status(&router, to("localhost:9009")).await, StatusCode::OK);
    for (name, value) in [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")] {
        let from_page = request("POST", "/run").header(name, value);
        let from_page = from_page.header("cookie", bearer("admin").replace("Bearer ", "jwt="));
        assert_eq!(status(&router, empty(from_page)).await, StatusCode::FORBIDDEN, "{name}");
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_rejected_with_or_without_a_length() {
    let router = protected(options(with_secret())).await;
    let with_token = |method, path| request(method, path).header("authorization", bearer("admin"));
    let post = |body: Body| with_token("POST", "/echo").body(body).unwrap();
    let chunked = |chunks: usize| {
        let chunks = (0..chunks).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 100])));
        post(Body::from_stream(futures::stream::iter(chunks)))
    };
    assert_eq!(status(&router, post(Body::from(vec![b'x'; BODY_LIMIT]))).await, StatusCode::OK);
    assert_eq!(text(answer(&router, chunked(10)).await).await.len(), BODY_LIMIT);
    assert_eq!(status(&router, chunked(11)).await, StatusCode::PAYLOAD_TOO_LARGE);
    let announced = with_token("POST", "/run").header("content-length", BODY_LIMIT + 1);
    assert_eq!(status(&router, empty(announced)).await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_too_long_is_answered() {
    let router = protected(options(with_secret())).await;
    let with_token = |method, path| request(method, path).header("authorization", bearer("read"));
    let slow_handler = answer(&router, empty(with_token("GET", "/never"))).await;
    assert_eq!(slow_handler.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&slow_handler, "x-content-type-options"), "nosniff");
    let begun = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"x"))]);
    let slow_body = Body::from_stream(begun.chain(futures::stream::pending()));
    let slow_client = with_token("POST", "/echo").body(slow_body).unwrap();
    assert_eq!(status(&router, slow_client).await, StatusCode::REQUEST_TIMEOUT);
}

/// Repeats a request until it is one too many.
async fn until_limited(router: &Router, request: impl Fn() -> Request<Body>) -> Response {
    for _request in 0..10_000 {
        let answer = answer(router, request()).await;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            return answer;
        }
    }
    panic!("10,000 requests were not too many");
}

#[tokio::test]
async fn too_many_requests_of_a_user_are_rejected_and_others_are_not_affected() {
    let limited = AccessOptions { rate: NonZeroU32::new(1), ..options(with_secret()) };
    let router = protected(limited).await;
    let of_ada = || empty(request("GET", "/who").header("authorization", bearer("read")));
    assert_eq!(status(&router, of_ada()).await, StatusCode::OK);
    let rejected = until_limited(&router, of_ada).await;
    assert_eq!(header(&rejected, "retry-after"), "1");
    let claims = json!({ "sub": "bob", "exp": in_seconds(60) });
    let token = format!("Bearer {}", of_secret(SECRET.as_bytes(), &claims));
    let of_bob = empty(request("GET", "/who").header("authorization", token));
    assert_eq!(status(&router, of_bob).await, StatusCode::OK);
}

#[tokio::test]
async fn guessing_tokens_is_limited_by_address() {
    let limited = AccessOptions { rate: NonZeroU32::new(1), ..options(with_secret()) };
    let router = protected(limited).await;
    let guess = |address: &str| {
        let mut guess = empty(request("GET", "/who").header("authorization", "Bearer x.y.z"));
        guess.extensions_mut().insert(Peer { address: address.parse().unwrap() });
        guess
    };
    assert_eq!(status(&router, guess("192.0.2.1:1")).await, StatusCode::UNAUTHORIZED);
    until_limited(&router, || guess("192.0.2.1:2")).await;
    assert_eq!(status(&router, guess("192.0.2.2:1")).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn every_answer_restricts_what_a_browser_does_with_it() {
    let router = protected(options(with_secret())).await;
    let with_token = |path| empty(request("GET", path).header("authorization", bearer("read")));
    for request in [with_token("/who"), with_token("/unknown"), empty(request("GET", "/who"))] {
        let answer = answer(&router, request).await;
        let policy = header(&answer, "content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
        assert_eq!(header(&answer, "referrer-policy"), "same-origin");
        assert_eq!(header(&answer, "cache-control"), "no-store");
    }
}

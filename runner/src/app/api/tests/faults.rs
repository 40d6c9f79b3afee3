use crate::http::access::Scope;
use protocol::id::RunId;

use super::*;

#[tokio::test]
async fn each_malformed_request_gets_a_problem_with_the_right_status() {
    let fleet = Fleet::open().await;
    assert!(fleet.get("/api/v2/runs").await.problem(404).contains("/api/v2/runs"));
    fleet.get("/api/v1/runs/").await.problem(404);
    let answered = fleet.delete("/api/v1/runs").await;
    answered.problem(405);
    let allowed = answered.headers[header::ALLOW].to_str().unwrap();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
    for (query, said) in [
        ("cursor=MQ", "cursor"),
        ("state=failed", "state"),
        ("limit=1001", "1000"),
        ("status=done", "pending"),
        ("since=now", "2026"),
        ("limit=1&limit=2", "limit"),
    ] {
        let answered = fleet.get(&format!("/api/v1/runs?{query}")).await;
        assert!(answered.problem(400).contains(said), "{query}: {}", answered.body);
    }
    let body = |media_type: &str, text: &'static str| {
        let request = Request::post("/api/v1/runs/r-1/stop");
        request.header(header::CONTENT_TYPE, media_type).body(Body::from(text)).unwrap()
    };
    fleet.send(body("application/json", "{")).await.problem(400);
    fleet.send(body("application/json", r#"{"why": "x"}"#)).await.problem(400);
    fleet.send(body("application/json", r#"{"reason": "a", "reason": "b"}"#)).await.problem(400);
    fleet.send(body("text/plain", "{}")).await.problem(415);
}

#[tokio::test]
async fn a_route_needs_its_scope_and_an_authenticated_sender() {
    let embedded = embedded().await;
    let projection = Projection::new();
    let (router, _stop) = unprotected(services(&embedded), &projection).await;
    let get = |path| request(Method::GET, path, None);
    let anonymous = router.clone().oneshot(get("/api/v1/version")).await.unwrap();
    answered(anonymous).await.problem(401);
    let health = router.clone().oneshot(get("/healthz")).await.unwrap();
    answered(health).await.is(200);
    let reader =
        Principal { subject: "ann".to_owned(), scopes: [Scope::Read].into_iter().collect() };
    let router = router.layer(Extension(reader));
    let read = router.clone().oneshot(get("/api/v1/version")).await.unwrap();
    assert_eq!(answered(read).await.is(200)["version"], "1.2.3");
    let start = request(Method::POST, "/api/v1/runs", Some(json!({})));
    let refused = answered(router.oneshot(start).await.unwrap()).await;
    assert!(refused.problem(403).contains("run"));
}

#[tokio::test]
async fn a_node_that_does_not_know_the_state_says_so() {
    let embedded = embedded().await;
    let projection = Projection::new();
    let (router, _stop) = unprotected(services(&embedded), &projection).await;
    let router = router.layer(Extension(Principal::anyone()));
    for path in ["/api/v1/runs", "/api/v1/pipelines", "/api/v1/nodes", "/api/v1/loggers", "/readyz"]
    {
        let response = router.clone().oneshot(request(Method::GET, path, None)).await.unwrap();
        let refused = answered(response).await;
        assert!(refused.problem(503).contains("does not know the current state"), "{path}");
        assert!(refused.headers.contains_key(header::RETRY_AFTER));
    }
    let health = router.oneshot(request(Method::GET, "/healthz", None)).await.unwrap();
    answered(health).await.is(200);
}

#[tokio::test]
async fn the_same_key_of_another_sender_is_another_run() {
    let embedded = embedded().await;
    let projection = Projection::new();
    let (router, _stop) = unprotected(services(&embedded), &projection).await;
    let start = async |subject: &str| -> RunId {
        let sender = Principal { subject: subject.to_owned(), ..Principal::anyone() };
        let body = json!({ "pipeline": pipeline("true") });
        let mut request = request(Method::POST, "/api/v1/runs", Some(body));
        request.headers_mut().insert("idempotency-key", "k".parse().unwrap());
        let router = router.clone().layer(Extension(sender));
        let started = answered(router.oneshot(request).await.unwrap()).await.is(202);
        started["run-id"].as_str().unwrap().parse().unwrap()
    };
    assert_eq!(start("ann").await, start("ann").await);
    assert_ne!(start("ann").await, start("bob").await);
}

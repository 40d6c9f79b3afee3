//! The executor of tests and simulations keeps the port's contract, as podman's does.

use std::sync::Arc;

use protocol::pipeline::ExecutorKind;
use test_support::conformance::{Act, ExecutorSubject, executor};
use test_support::scripted::Scripted;

fn words(act: &Act) -> Vec<String> {
    let said: &[&str] = match act {
        Act::Exit(code) => &["exit", &code.to_string()],
        Act::Print(text) => &["print", text],
        Act::Complain(text) => &["error", text],
        Act::Put(path, text) => &["put", path, text],
        Act::Show(path) => &["show", path],
        Act::Env(name) => &["env", name],
        Act::Dir => &["pwd"],
        Act::Hang => &["hang", "ready"],
        Act::Stubborn => &["stubborn", "ready"],
        Act::Nowhere => &["no-such-program"],
    };
    said.iter().map(|word| (*word).to_owned()).collect()
}

fn subject() -> ExecutorSubject {
    let scripted = Arc::new(Scripted::default());
    ExecutorSubject {
        prefix: "suite".into(),
        executor: Arc::<Scripted>::clone(&scripted),
        other: scripted,
        kind: ExecutorKind::Podman,
        with: serde_json::Map::new(),
        has_a_shell: false,
        on_images: true,
        dir: "/any".into(),
        image: "any".into(),
        missing: "missing".into(),
        words,
    }
}

#[tokio::test]
async fn scripted_steps_pass_the_executor_conformance_suite() {
    executor(subject()).await;
}

#[tokio::test]
#[should_panic(expected = "executor podman: an image that nobody has is named: ")]
async fn a_failed_row_is_named_with_its_executor() {
    executor(ExecutorSubject { missing: "any".into(), ..subject() }).await;
}

//! Templates are rendered in a separate process with a deadline and a memory limit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use runner::app::{RENDER, RenderProcess};
use runner::ports::{RenderError, Renderer as _, Rendering};
use serde_json::json;

fn renderer() -> RenderProcess {
    RenderProcess::new(env!("CARGO_BIN_EXE_bob-runner").into(), vec![RENDER.into()])
}

fn rendering(programs: &[&str], values: &serde_json::Value) -> Rendering {
    Rendering {
        programs: programs.iter().map(|&program| program.to_owned()).collect(),
        values: values.as_object().cloned().unwrap(),
        run: "r-1".parse().unwrap(),
    }
}

#[tokio::test]
async fn programs_are_rendered_in_their_order() {
    let programs = ["echo {{ .a | quote }}", "plain ä", "ö{{ .__jobID }}"];
    let rendered = renderer().render(rendering(&programs, &json!({ "a": "it's" }))).await.unwrap();
    assert_eq!(rendered, [r"echo 'it'\''s'", "plain ä", "ör-1"]);
}

#[tokio::test]
async fn an_invalid_program_is_reported_as_the_cause() {
    let error = renderer().render(rendering(&["{{ .b }}"], &json!({}))).await.unwrap_err();
    assert!(matches!(&error, RenderError::Template(why) if why.contains("variable b")), "{error}");
}

/// Doubles a text with each action, which a limit on loops does not detect.
fn doubling() -> String {
    let double = r#"{{ $t = printf "%s%s" $t $t }}"#.replace("$t =", "$t :=");
    format!("{{{{ $t := .t }}}}{}", double.repeat(60))
}

#[tokio::test]
async fn a_program_that_allocates_endlessly_ends_with_its_process() {
    let rendering = rendering(&[&doubling()], &json!({ "t": "x".repeat(1024) }));
    let error = renderer().render(rendering).await.unwrap_err();
    assert!(matches!(&error, RenderError::Template(why) if why.contains("1024 MiB")), "{error}");
}

#[tokio::test]
async fn a_renderer_that_does_not_answer_is_killed_at_its_deadline() {
    let deaf = RenderProcess::new("sleep".into(), vec!["1000".into()]);
    let deaf = deaf.within(Duration::from_millis(100));
    let error = deaf.render(rendering(&["{{ .a }}"], &json!({ "a": "" }))).await.unwrap_err();
    assert!(
        matches!(&error, RenderError::Template(why) if why.contains("within 0.1 s")),
        "{error}"
    );
}

#[tokio::test]
async fn a_renderer_that_cannot_start_is_not_an_error_of_the_program() {
    let missing = RenderProcess::new("/nowhere/renderer".into(), Vec::new());
    let error = missing.render(rendering(&["{{ .a }}"], &json!({ "a": "" }))).await.unwrap_err();
    assert!(matches!(error, RenderError::Unavailable(_)), "{error}");
}

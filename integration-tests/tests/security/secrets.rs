//! Secrets of a run, and secrets in definitions, are not disclosed.

use std::process::Output;

use serde_json::json;

use crate::run::{Engine, engines, text};

const TOKEN: &str = "t0ken-of-the-first-step";

async fn run(engine: &Engine, dir: &std::path::Path, steps: &[serde_json::Value]) -> Output {
    let kept = dir.join("kept");
    let settings = [("BOB_SECRET_TOKEN", TOKEN), ("BOB_OUTPUTS", kept.to_str().unwrap())];
    engine.run(dir, steps, &settings).await
}

/// The contents of all files below a directory.
fn all_of(dir: &std::path::Path) -> Vec<u8> {
    let (mut bytes, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.exists() {
            bytes.extend(std::fs::read(&path).unwrap());
        }
    }
    bytes
}

fn has(bytes: &[u8], wanted: &str) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
}

#[tokio::test]
async fn a_step_cannot_send_a_secret_of_an_earlier_step() {
    for engine in engines() {
        let dir = engine.dir();
        // The mask does not know the reversed form. Without images, one step must do both.
        let (mut first, mut second) = if engine.keeps_images() {
            (
                engine.step("rev $BOB_SECRETS/token > /reversed; echo >> /reversed"),
                engine.step("rev /reversed; rev /reversed > left; base64 -w 7 left"),
            )
        } else {
            (
                engine.step("true"),
                engine.step("cd $JOB_WORKDIR; cat $BOB_SECRETS/token; cp $BOB_SECRETS/token left"),
            )
        };
        first["secrets"] = json!(["token"]);
        if !engine.keeps_images() {
            second["secrets"] = json!(["token"]);
        }
        second["outputs"] = json!([{ "path": "left" }]);
        if !engine.keeps_images() {
            second["outputs"][0]["relative-to"] = json!("job-dir");
        }
        let output = run(&engine, dir.path(), &[first, second]).await;
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{}: {said}", engine.name);
        assert!(said.contains("***") && said.contains("contains a secret of the run"), "{said}");
        assert!(!said.contains(TOKEN), "{}: {said}", engine.name);
        let kept = all_of(&dir.path().join("kept"));
        assert!(!has(&kept, TOKEN), "{}: an output contains the secret", engine.name);
    }
}

#[tokio::test]
async fn a_definition_that_contains_a_secret_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = json!({
        "group": "security", "name": "n",
        "steps": [{
            "executor": "http",
            "with": { "url": "http://h", "headers": { "Authorization": format!("Bearer {TOKEN}") } },
        }],
    });
    std::fs::write(dir.path().join("pipeline.json"), pipeline.to_string()).unwrap();
    let program = |words: &'static [&'static str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_bob-runner-under-test"));
        command.args(words).current_dir(dir.path()).env_clear().env("HOME", dir.path());
        command
    };
    for words in [&["submit", "pipeline.json"][..], &["pipeline", "apply", "pipeline.json"]] {
        let output = program(words).output().await.unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(65), "{words:?}: {said}");
        assert!(said.contains("pipeline.json:1:"), "the line must be named: {said}");
        assert!(said.contains("`steps[0].with.headers.Authorization` is a secret"), "{said}");
        assert!(said.contains("secret-name") && said.contains("BOB_LITERAL_SECRETS"), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
    let output = program(&["validate", "pipeline.json"]).output().await.unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("warning: `steps[0].with.headers.Authorization` is a secret in clear text"),
        "{said}"
    );
    let output = program(&["plan", "pipeline.json"]).output().await.unwrap();
    assert!(text(&output).contains("***") && !text(&output).contains(TOKEN), "{}", text(&output));
}

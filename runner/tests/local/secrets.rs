//! Secrets of steps, through the whole program.

use super::{TestDir, lines_of};

const TOKEN: &str = "t0p/s3cret+value";

const PIPELINE: &str = r#"
group: test
name: secrets
steps:
  - name: shows
    executor: local
    secrets: [deploy-token, { name: key.pem, env: KEY }]
    script: |
      echo "one t0p/s3cret+value"
      cat "$BOB_SECRETS/deploy-token"; echo
      printf '%s' "user:t0p/s3cret+value" | base64
      printf '%s\n' "$KEY" >&2
      printf 't0p/s3'; sleep 0.1; echo 'cret+value'
      test -z "${BOB_SECRET_DEPLOY_TOKEN-}" && echo 'no variable of the worker'
      echo "$BOB_SECRETS" > where
"#;

#[test]
fn a_step_receives_its_secrets_and_no_event_contains_them() {
    let place = TestDir::new(PIPELINE);
    std::fs::create_dir(place.path("mounted")).unwrap();
    std::fs::write(place.path("mounted/key.pem"), "-- key --\nfirst line\nsecond line\n").unwrap();
    let mounted = place.path("mounted");
    let variables =
        [("BOB_SECRETS_DIR", mounted.to_str().unwrap()), ("BOB_SECRET_DEPLOY_TOKEN", TOKEN)];
    let (code, events) = place.events(&[], &variables);
    assert_eq!(code, Some(0), "{events:#?}");
    let all = serde_json::to_string(&events).unwrap();
    let lines = lines_of(&events, "shows");
    assert_eq!(lines[..2], ["one ***", "***"], "{lines:?}");
    assert!(lines[2].contains("***"), "the form in base64 is masked: {lines:?}");
    assert_eq!(lines[3..], ["***", "no variable of the worker"]);
    // The program is in the pipeline as written, but events of the step are masked.
    let said = |reason: &str| {
        let of_reason = events.iter().filter(|event| event["reason"] == reason);
        of_reason.map(ToString::to_string).collect::<String>()
    };
    assert!(said("StepStarted").contains("one ***"), "{}", said("StepStarted"));
    for hidden in [TOKEN, "first line", "second line"] {
        assert!(!all.contains(hidden), "{hidden} in {all}");
    }
    let dir = std::fs::read_to_string(place.path("where")).unwrap();
    assert!(!std::path::Path::new(dir.trim()).exists(), "the step's secrets are still there");
}

#[test]
fn a_step_with_a_missing_secret_does_not_run_and_names_the_places_searched() {
    let place = TestDir::new(PIPELINE);
    let (code, events) = place.events(&[], &[("BOB_SECRET_DEPLOY_TOKEN", TOKEN)]);
    assert_ne!(code, Some(0));
    let end = events.last().unwrap();
    assert_eq!((&end["reason"], &end["cause"]), (&"PipelineFailed".into(), &"rejected".into()));
    let all = serde_json::to_string(&events).unwrap();
    assert!(
        all.contains("there is no secret key.pem") && all.contains("BOB_SECRET_KEY_PEM"),
        "{all}"
    );
    assert!(lines_of(&events, "shows").is_empty() && !place.path("where").exists());
}

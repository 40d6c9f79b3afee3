//! The message about a step that was ended by its own limits.

use super::*;

const LIMITED: &str = r#"[{"name": "0", "cmd": "a", "executor": "local",
    "with": {"limits": {"cpu-time": "1s"}}}]"#;

#[test]
fn a_step_that_hit_its_limit_is_reported_as_such() {
    let over = "exit code 152: SIGXCPU, which ends what goes beyond its limit `cpu-time`";
    for (code, said) in [(152, over), (153, "exit code 153")] {
        let mut run = run(LIMITED);
        drop(run.begin(NOW));
        drop(run.on(NOW, Input::Prepared));
        drop(run.on(NOW, Input::Exited(at(0), Exited { code, ..Exited::default() })));
        assert_eq!(run.record().cause, Some(Cause::ExitCode));
        let message = run.record().message.clone().unwrap();
        assert!(message.ends_with(said), "{message}");
    }
}

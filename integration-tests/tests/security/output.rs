//! The output of a step cannot fill the disks of the engine and the broker.

use serde_json::json;

use crate::run::{engines, text};

#[tokio::test]
async fn a_step_cannot_write_more_output_than_the_limit() {
    for engine in engines() {
        let dir = engine.dir();
        let writes = engine.step("while [ \"$((n=n+1))\" -le 200000 ]; do echo 0123456789; done");
        let limit = [("BOB_LOG_LIMIT_BYTES", "20000")];
        let output = engine.run(dir.path(), std::slice::from_ref(&writes), &limit).await;
        let said = text(&output);
        assert!(output.status.success(), "{}: {said}", engine.name);
        assert!(output.stdout.len() <= 20_000, "{}: {} bytes", engine.name, output.stdout.len());
        assert!(output.stdout.len() > 19_000, "{}: {} bytes", engine.name, output.stdout.len());
        assert_eq!(said.matches("limit of 20000 bytes").count(), 1, "{}: {said}", engine.name);

        let mut fails = writes;
        fails["on-log-limit"] = json!("fail");
        let output = engine.run(dir.path(), &[fails], &limit).await;
        assert_eq!(output.status.code(), Some(1), "{}: {}", engine.name, text(&output));
        assert!(text(&output).contains("on-log-limit"), "{}: {}", engine.name, text(&output));
    }
}

//! A reader of the stream reassembles the output of a step byte for byte.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::place::TestEnv;
use crate::reader;
use crate::writing::{binary, odd_lines, step, writes, written};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_output_of_steps_is_published_byte_for_byte() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[]).await;
    let steps = json!([
        step("odd", &writes(&odd_lines())),
        step("binary", &writes(&binary())),
        step("long", "head -c 1048576 /dev/zero | tr '\\0' x; echo; echo after"),
        step("letters", "yes '\u{e4}\u{20ac}\u{1f600}' | head -n 100000 | tr -d '\\n'"),
        step("many", "seq 1 100000"),
    ]);
    let run = place.run("exact");
    place.start(&run, &place.pipeline("exact", &steps)).await;
    let events = reader::events_of(&place, &run).await;
    assert_eq!(events.last().unwrap()["reason"], "PipelineSuccessful");
    reader::assert_gapless(&events);
    let mut outputs = reader::outputs(&events);
    let mut take = |step: &str, stream: &str| {
        outputs.remove(&(step.to_owned(), stream.to_owned())).unwrap_or_default()
    };
    for (step, texts) in [("odd", odd_lines()), ("binary", binary())] {
        for (number, stream) in [(1, "stdout"), (2, "stderr")] {
            let (got, expected) = (take(step, stream), written(&texts, number));
            assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string());
        }
    }
    let long = format!("{}\nafter\n", "x".repeat(1 << 20));
    assert!(take("long", "stdout") == long.into_bytes(), "a line of 1 MiB is whole");
    let letters = "\u{e4}\u{20ac}\u{1f600}".repeat(100_000);
    assert!(take("letters", "stdout") == letters.into_bytes(), "no character is lost");
    let is_cut = |event: &Value| event["step"] == "letters" && event.get("encoding").is_some();
    assert!(!events.iter().any(is_cut), "texts are split between characters");
    let many: String = (1..=100_000).fold(String::new(), |mut all, number| {
        writeln!(all, "{number}").unwrap();
        all
    });
    assert!(take("many", "stdout") == many.into_bytes(), "no line is lost");
    assert!(outputs.is_empty(), "nothing else was written: {:?}", outputs.keys());
    server.end().await;
}

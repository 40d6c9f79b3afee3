//! What a step writes is what a reader of the stream puts together again, byte for byte.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::place::Place;
use crate::reader;

/// A line of shell that writes each of these at once, to standard output (1) or standard error (2).
fn writes(texts: &[(u8, Vec<u8>)]) -> String {
    let mut script = String::new();
    for (to, bytes) in texts {
        script.push_str("printf '");
        for byte in bytes {
            write!(script, "\\{byte:03o}").unwrap();
        }
        writeln!(script, "' >&{to}").unwrap();
    }
    script
}

/// What of them goes to one of the two.
fn written(texts: &[(u8, Vec<u8>)], to: u8) -> Vec<u8> {
    texts.iter().filter(|text| text.0 == to).flat_map(|text| text.1.clone()).collect()
}

fn step(name: &str, script: &str) -> Value {
    json!({ "name": name, "cmd": ["sh", "-c", script] })
}

/// Blanks and punctuation in front, empty lines, and lines whose length is 10, 13 and 65 with and
/// without their newline; a last line without one.
fn odd_lines() -> Vec<(u8, Vec<u8>)> {
    let mut texts: Vec<(u8, Vec<u8>)> = Vec::new();
    for line in ["   blanks", "\ttab", "--- dashes", "...", "", "{\"a\": 1}", "trailing  ", "\r"] {
        texts.push((1, format!("{line}\n").into_bytes()));
        texts.push((2, format!("{line} on standard error\n").into_bytes()));
    }
    for length in [10, 13, 65] {
        for letters in [length - 1, length] {
            texts.push((1, format!("{}\n", "m".repeat(letters)).into_bytes()));
            texts.push((2, format!("{}\n", "n".repeat(letters)).into_bytes()));
        }
    }
    texts.push((1, b"the last line of this".to_vec()));
    texts.push((2, b"and of that".to_vec()));
    texts
}

/// Every byte there is, some of them alone on a line.
fn binary() -> Vec<(u8, Vec<u8>)> {
    let mut texts = vec![(1, (0..=255).collect())];
    for byte in [0_u8, 1, 2, 10, 13, 127, 128, 192, 255] {
        texts.push((1, vec![byte, b'\n']));
        texts.push((2, vec![b'x', byte]));
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_output_of_steps_is_published_byte_for_byte() {
    let Some(place) = Place::new().await else { return };
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
    assert!(take("letters", "stdout") == letters.into_bytes(), "no letter is lost");
    let is_cut = |event: &Value| event["step"] == "letters" && event.get("encoding").is_some();
    assert!(!events.iter().any(is_cut), "a split falls between letters");
    let many: String = (1..=100_000).fold(String::new(), |mut all, number| {
        writeln!(all, "{number}").unwrap();
        all
    });
    assert!(take("many", "stdout") == many.into_bytes(), "100,000 lines are all there");
    assert!(outputs.is_empty(), "nothing else was written: {:?}", outputs.keys());
    server.end().await;
}

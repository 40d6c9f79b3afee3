//! (h) Masking the secrets of a run in output, in this process. The floor searches only for the
//! plain secrets, not for the encoded forms in which they can be printed.

use std::sync::Arc;
use std::time::Instant;

use aho_corasick::AhoCorasick;
use anyhow::ensure;
use runner::rules::mask::{Mask, Masker};
use serde_json::json;

use crate::report::{Floor, Goal, Report, median, to_f64};

const PART: &str = "h";
/// The size of a read from an engine's connection.
const PIECE: usize = 32 * 1024;
const SECRETS: usize = 10;

/// The size of the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) mebibytes: usize,
    pub(crate) rounds: usize,
}

/// Typical program output without a secret.
fn lines(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 128);
    let mut number = 0_u64;
    while text.len() < bytes {
        let line = format!(
            "2026-11-29T20:05:{:02}Z INFO compiled src/module_{number}/part{}.rs in {}ms\n",
            number % 60,
            number % 7,
            number.wrapping_mul(7919) % 997
        );
        text.extend_from_slice(line.as_bytes());
        number += 1;
    }
    text
}

pub(crate) fn measure(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let text = lines(size.mebibytes << 20);
    let secrets: Vec<String> =
        (0..SECRETS).map(|n| format!("t0ken-{:032x}'of {n}", n.wrapping_mul(7_919_331))).collect();
    let mask = Arc::new(Mask::new(secrets.iter().map(String::as_bytes))?);
    let search = AhoCorasick::new(&secrets)?;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let executions = Instant::now();
        let found = search.find_iter(&text).count();
        floors.push(to_f64(size.mebibytes) / executions.elapsed().as_secs_f64());
        let mut masker = Masker::new(Arc::clone(&mask));
        let executions = Instant::now();
        let mut out: usize = text.chunks(PIECE).map(|piece| masker.push(piece).len()).sum();
        out += masker.finish().len();
        ours.push(to_f64(size.mebibytes) / executions.elapsed().as_secs_f64());
        ensure!(out == text.len() && found == 0, "{out} of {} bytes came out", text.len());
    }
    let floor = Floor {
        what: "a search for the values alone".into(),
        value: median(&floors),
        goal: Some(Goal::AtLeast(0.25)),
    };
    let what = format!("lines through the mask of {SECRETS} secrets");
    report.beside(PART, what, "MiB/s", median(&ours), floor);
    report.detail("mask-mebibytes-per-second", json!({ "mask": ours, "floor": floors }));
    Ok(())
}

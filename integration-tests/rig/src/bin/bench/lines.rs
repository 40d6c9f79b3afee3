//! (b) Output throughput of one step: lines and bytes per second from its container to the stream.
//! Every line is checked afterwards. The floor attaches to a container of the same kind and
//! publishes its output unchanged, with publisher confirms.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use protocol::event::{Event, LogStream, Reason};
use protocol::names;
use runner::cluster::AmqpQueue;
use runner::exec::podman::{Options, Podman};
use runner::ports::{Events as _, Position, Queue as _, Route};
use serde_json::json;
use test_support::services::Services;

use crate::bare;
use crate::cluster::{Cluster, in_time, new_node, removals};
use crate::report::{Floor, Goal, Report, median, to_f64};
use crate::rest::{self, EngineClient};

const PART: &str = "b";
/// An image with the lines in a file, so that producing them costs the step nothing.
const IMAGE: &str = "localhost/bench-lines";
const PRINT_LINES: &[&str] = &["cat", "/lines"];
/// The maximum size of a message, in bytes. The worker's events have the same limit.
const MESSAGE_BYTES: usize = 64 * 1024;
/// The maximum number of unconfirmed messages.
const MAX_UNCONFIRMED: usize = 256;

/// The size of the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) lines: usize,
    /// The length of a line, including its newline.
    pub(crate) bytes: usize,
    pub(crate) rounds: usize,
}

impl Size {
    fn total(self) -> usize {
        self.lines * self.bytes
    }

    /// The line with this number, padded with dots, without its newline. The 11 other bytes are the
    /// digits, the space and the newline.
    fn line(self, number: usize) -> String {
        format!("{number:09} {}", ".".repeat(self.bytes.saturating_sub(11)))
    }
}

pub(crate) async fn measure(
    services: &Services,
    size: Size,
    report: &mut Report,
) -> anyhow::Result<()> {
    let cluster = Cluster::new(services).await;
    let url = services.get("CONTAINER_ENGINE_URL");
    let mut engine = EngineClient::connect(url).await?;
    make_image(&mut engine, services.get("BOB_TEST_IMAGE"), size).await?;
    bare::declare(&bare::confirming(&cluster).await?).await?;
    let worker = cluster.worker(1, Arc::new(Podman::connect(Options::new(url))?)).await?;
    let (mut worker_rates, mut floor_rates) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        floor_rates.push(to_f64(size.lines) / measure_floor(&cluster, &mut engine, size).await?);
        worker_rates.push(to_f64(size.lines) / measure_step(&cluster, size, round).await?);
    }
    worker.end().await?;
    engine.remove_image(IMAGE).await?;
    let (worker_rate, floor_rate) = (median(&worker_rates), median(&floor_rates));
    let scaled_floor = |per_line: f64, goal| Floor {
        what: "bare attach, confirmed publish".into(),
        value: floor_rate * per_line,
        goal,
    };
    let figure = format!("one step of {} lines of {} bytes, all there", size.lines, size.bytes);
    let mebibytes = to_f64(size.bytes) / (1024.0 * 1024.0);
    report.beside(
        PART,
        &figure,
        "lines/s",
        worker_rate,
        scaled_floor(1.0, Some(Goal::AtLeast(0.5))),
    );
    report.beside(PART, &figure, "MiB/s", worker_rate * mebibytes, scaled_floor(mebibytes, None));
    report.detail("lines-per-second", json!({ "worker": worker_rates, "floor": floor_rates }));
    Ok(())
}

async fn make_image(engine: &mut EngineClient, base: &str, size: Size) -> anyhow::Result<()> {
    let dots = ".".repeat(size.bytes.saturating_sub(11));
    let script = format!(
        "awk 'BEGIN {{ for (i = 0; i < {}; i++) printf \"%09d {dots}\\n\", i }}' >/lines",
        size.lines
    );
    let container = engine.create(base, &["sh", "-c", &script]).await?;
    engine.start(&container).await?;
    ensure!(engine.ended(&container).await? == 0, "the container that writes /lines failed");
    engine.commit(&container, Some(IMAGE), false).await?;
    engine.remove_container(&container).await
}

/// Seconds from the start of the container to the last confirm.
async fn measure_floor(
    cluster: &Cluster,
    engine: &mut EngineClient,
    size: Size,
) -> anyhow::Result<f64> {
    let channel = bare::confirming(cluster).await?;
    let container = engine.create(IMAGE, PRINT_LINES).await?;
    let mut attached = engine.attach(&container).await?;
    let start = Instant::now();
    engine.start(&container).await?;
    let (mut unconfirmed, mut total, mut message) = (VecDeque::new(), 0, Vec::new());
    loop {
        let frame = rest::frame(&mut attached).await?;
        if let Some(frame) = &frame {
            total += frame.len();
            message.extend_from_slice(frame);
        }
        // Publish once no more output has arrived, or once the message is almost full.
        let has_more = frame.is_some() && !attached.buffer().is_empty();
        if !message.is_empty()
            && (!has_more
                || message.len() + frame.as_ref().map_or(0, bytes::Bytes::len) > MESSAGE_BYTES)
        {
            unconfirmed.push_back(bare::publish(&channel, "", bare::STREAM, "", &message).await?);
            message.clear();
        }
        if unconfirmed.len() > MAX_UNCONFIRMED || frame.is_none() {
            let count = if frame.is_none() { unconfirmed.len() } else { 1 };
            bare::confirmed(unconfirmed.drain(..count).collect()).await?;
        }
        if frame.is_none() {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    ensure!(total == size.total(), "the floor received {total} of {} bytes", size.total());
    engine.remove_container(&container).await?;
    Ok(seconds)
}

/// Seconds from the step's start event to the run's passed event, which follows the confirms of all
/// lines. Also checks that no event and no line is missing.
async fn measure_step(cluster: &Cluster, size: Size, round: usize) -> anyhow::Result<f64> {
    let queue = AmqpQueue::connect(&cluster.amqp(new_node())).await?;
    let (store, run) = (cluster.store().await?, cluster.run(&format!("lines-{round}"))?);
    let mut open = cluster.watch(&store, names::OPEN).await?;
    queue.publish(Route::Jobs, cluster.start(&run, IMAGE, &[PRINT_LINES.to_vec()])).await?;
    removals(&mut open, 1).await?;
    // Read the stream afterwards, so that reading does not slow the measurement down.
    let mut stream = cluster.events().await?.follow(Position::First).await?;
    let mut checker = LineChecker::new(size);
    let (mut started_at, mut seq) = (None, 0);
    let reading = async {
        loop {
            let event = stream.next().await.context("the stream has ended")??.event();
            let Some(event) = event.filter(|event| event.run_id.as_ref() == Some(&run)) else {
                continue;
            };
            ensure!(event.seq == Some(seq), "event {:?} arrived instead of {seq}", event.seq);
            seq += 1;
            if matches!(event.reason, Reason::StepStarted { .. }) {
                started_at = Some(event.at);
            }
            checker.check(&event)?;
            if event.reason.is_ending() {
                ensure!(event.reason == Reason::PipelineSuccessful, "{}", event.message);
                let started_at = started_at.context("the step's start event is missing")?;
                return Ok(to_f64(usize::try_from(event.at.0 - started_at.0)?) / 1000.0);
            }
        }
    };
    let seconds = in_time("the lines are read", reading).await?;
    checker.finish()?;
    Ok(seconds)
}

/// Compares the published lines with the written ones.
struct LineChecker {
    size: Size,
    lines: usize,
    bytes: u64,
    /// The beginning of a line whose end has not been received.
    partial_line: String,
}

impl LineChecker {
    fn new(size: Size) -> Self {
        Self { size, lines: 0, bytes: 0, partial_line: String::new() }
    }

    fn check(&mut self, event: &Event) -> anyhow::Result<()> {
        let Reason::Log { stream, offset, partial, encoding } = &event.reason else {
            return Ok(());
        };
        ensure!(*stream == LogStream::Stdout && encoding.is_none(), "unexpected output: {event:?}");
        ensure!(*offset == self.bytes, "output starts at offset {offset}, expected {}", self.bytes);
        self.bytes += event.message.len() as u64 + u64::from(!partial);
        self.partial_line.push_str(&event.message);
        if *partial {
            return Ok(());
        }
        for line in std::mem::take(&mut self.partial_line).split('\n') {
            let expected = self.size.line(self.lines);
            ensure!(line == expected, "line {} is {line:?}", self.lines);
            self.lines += 1;
        }
        Ok(())
    }

    fn finish(&self) -> anyhow::Result<()> {
        let (lines, bytes) = (self.size.lines, self.size.total());
        ensure!(
            self.lines == lines && self.bytes == bytes as u64 && self.partial_line.is_empty(),
            "{} of {lines} lines and {} of {bytes} bytes arrived",
            self.lines,
            self.bytes
        );
        Ok(())
    }
}

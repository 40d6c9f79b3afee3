//! (b) Output throughput of one step: lines and bytes per second from its container to the stream.
//! Every line is checked afterwards. The floor attaches to such a container and publishes its
//! output unchanged, with confirms.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use integration_tests::services::Services;
use protocol::event::{Event, LogStream, Reason};
use protocol::names;
use runner::cluster::AmqpQueue;
use runner::exec::podman::{Options, Podman};
use runner::ports::{Events as _, Position, Queue as _, Route};
use serde_json::json;

use crate::bare;
use crate::cluster::{Cluster, in_time, new_node, removals};
use crate::report::{Floor, Goal, Report, median, to_f64};
use crate::rest::{self, EngineClient};

const PART: &str = "b";
/// Has the lines as a file, so that producing them costs the step nothing.
const IMAGE: &str = "localhost/bench-lines";
const SHOW: &[&str] = &["cat", "/lines"];
/// The maximum size of an event, in bytes.
const MESSAGE_BYTES: usize = 64 * 1024;
/// The maximum number of unconfirmed messages.
const AHEAD: usize = 256;

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

    /// A line's number, filled up with dots.
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
    let mut rest = EngineClient::connect(url).await?;
    make_image(&mut rest, services.get("BOB_TEST_IMAGE"), size).await?;
    bare::declare(&bare::confirming(&cluster).await?).await?;
    let worker = cluster.worker(1, Arc::new(Podman::connect(Options::new(url))?)).await?;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        floors.push(to_f64(size.lines) / floor(&cluster, &mut rest, size).await?);
        ours.push(to_f64(size.lines) / step(&cluster, size, round).await?);
    }
    worker.end().await?;
    rest.remove_image(IMAGE).await?;
    let (ours_lines, floor_lines) = (median(&ours), median(&floors));
    let floor = |per_line: f64, goal| Floor {
        what: "bare attach, confirmed publish".into(),
        value: floor_lines * per_line,
        goal,
    };
    let what = format!("one step of {} lines of {} bytes, all there", size.lines, size.bytes);
    let mebibytes = to_f64(size.bytes) / (1024.0 * 1024.0);
    report.beside(PART, &what, "lines/s", ours_lines, floor(1.0, Some(Goal::AtLeast(0.5))));
    report.beside(PART, &what, "MiB/s", ours_lines * mebibytes, floor(mebibytes, None));
    report.detail("lines-per-second", json!({ "worker": ours, "floor": floors }));
    Ok(())
}

async fn make_image(rest: &mut EngineClient, base: &str, size: Size) -> anyhow::Result<()> {
    let dots = ".".repeat(size.bytes.saturating_sub(11));
    let script = format!(
        "awk 'BEGIN {{ for (i = 0; i < {}; i++) printf \"%09d {dots}\\n\", i }}' >/lines",
        size.lines
    );
    let container = rest.create(base, &["sh", "-c", &script]).await?;
    rest.start(&container).await?;
    ensure!(rest.ended(&container).await? == 0, "the lines cannot be created");
    rest.commit(&container, Some(IMAGE), false).await?;
    rest.remove_container(&container).await
}

/// Seconds from the start of the container to the last confirm.
async fn floor(cluster: &Cluster, rest: &mut EngineClient, size: Size) -> anyhow::Result<f64> {
    let channel = bare::confirming(cluster).await?;
    let container = rest.create(IMAGE, SHOW).await?;
    let mut attached = rest.attach(&container).await?;
    let begun = Instant::now();
    rest.start(&container).await?;
    let (mut owed, mut total, mut message) = (VecDeque::new(), 0, Vec::new());
    loop {
        let frame = rest::frame(&mut attached).await?;
        if let Some(frame) = &frame {
            total += frame.len();
            message.extend_from_slice(frame);
        }
        // Add output that has already arrived, as far as it fits.
        let more = frame.is_some() && !attached.buffer().is_empty();
        if !message.is_empty()
            && (!more
                || message.len() + frame.as_ref().map_or(0, bytes::Bytes::len) > MESSAGE_BYTES)
        {
            owed.push_back(bare::publish(&channel, "", bare::STREAM, "", &message).await?);
            message.clear();
        }
        if owed.len() > AHEAD || frame.is_none() {
            let due = if frame.is_none() { owed.len() } else { 1 };
            bare::confirmed(owed.drain(..due).collect()).await?;
        }
        if frame.is_none() {
            break;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    ensure!(total == size.total(), "the floor saw {total} of {} bytes", size.total());
    rest.remove_container(&container).await?;
    Ok(took)
}

/// Seconds from the step's start event to the run's passed event, which follows the confirms of all
/// lines. Also checks everything in between.
async fn step(cluster: &Cluster, size: Size, round: usize) -> anyhow::Result<f64> {
    let queue = AmqpQueue::connect(&cluster.amqp(new_node())).await?;
    let (store, run) = (cluster.store().await?, cluster.run(&format!("lines-{round}"))?);
    let mut open = cluster.watch(&store, names::OPEN).await?;
    queue.publish(Route::Jobs, cluster.start(&run, IMAGE, &[SHOW.to_vec()])).await?;
    removals(&mut open, 1).await?;
    // Read afterwards, so that reading does not slow the measurement down.
    let mut stream = cluster.events().await?.follow(Position::First).await?;
    let mut check = Check::new(size);
    let (mut begun, mut seq) = (None, 0);
    let reading = async {
        loop {
            let event = stream.next().await.context("the stream has ended")??.event();
            let Some(event) = event.filter(|event| event.run_id.as_ref() == Some(&run)) else {
                continue;
            };
            ensure!(event.seq == Some(seq), "event {:?} arrived instead of {seq}", event.seq);
            seq += 1;
            if matches!(event.reason, Reason::StepStarted { .. }) {
                begun = Some(event.at);
            }
            check.take(&event)?;
            if event.reason.is_ending() {
                ensure!(event.reason == Reason::PipelineSuccessful, "{}", event.message);
                let begun = begun.context("the step's start")?;
                return Ok(to_f64(usize::try_from(event.at.0 - begun.0)?) / 1000.0);
            }
        }
    };
    let took = in_time("the lines are read", reading).await?;
    check.end()?;
    Ok(took)
}

/// Compares the published lines with the written ones.
struct Check {
    size: Size,
    lines: usize,
    bytes: u64,
    rest: String,
}

impl Check {
    fn new(size: Size) -> Self {
        Self { size, lines: 0, bytes: 0, rest: String::new() }
    }

    fn take(&mut self, event: &Event) -> anyhow::Result<()> {
        let Reason::Log { stream, offset, partial, encoding } = &event.reason else {
            return Ok(());
        };
        ensure!(*stream == LogStream::Stdout && encoding.is_none(), "strange output: {event:?}");
        ensure!(*offset == self.bytes, "a text starts at {offset}, expected {}", self.bytes);
        self.bytes += event.message.len() as u64 + u64::from(!partial);
        self.rest.push_str(&event.message);
        if *partial {
            return Ok(());
        }
        for line in std::mem::take(&mut self.rest).split('\n') {
            let expected = self.size.line(self.lines);
            ensure!(line == expected, "line {} is {line:?}", self.lines);
            self.lines += 1;
        }
        Ok(())
    }

    fn end(&self) -> anyhow::Result<()> {
        let (lines, bytes) = (self.size.lines, self.size.total());
        ensure!(
            self.lines == lines && self.bytes == bytes as u64 && self.rest.is_empty(),
            "{} of {lines} lines and {} of {bytes} bytes arrived",
            self.lines,
            self.bytes
        );
        Ok(())
    }
}

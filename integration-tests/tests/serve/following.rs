//! Commands that follow a log.

use std::process::Stdio;

use protocol::event::{Event, LogStream, Reason};
use protocol::id::{Epoch, RunId};
use protocol::time::Millis;
use runner::cluster::AmqpEvents;
use runner::ports::Events as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines};
use tokio::process::Child;

use crate::place::{TestEnv, in_time};

/// Emits events as a worker would.
async fn emit(events: &AmqpEvents, reason: Reason, run: &RunId, seq: Option<u64>, text: &str) {
    let mut event = Event::new(Millis(1), reason, text.to_owned());
    event.run_id = Some(run.clone());
    event.epoch = seq.map(|_| Epoch(7));
    event.seq = seq;
    let ticket = in_time("an emit", events.emit(event)).await.unwrap();
    in_time("a confirm", events.confirmed(ticket)).await.unwrap();
}

async fn code(mut child: Child) -> Option<i32> {
    in_time("the program ends", child.wait()).await.unwrap().code()
}

#[tokio::test]
async fn a_signal_ends_a_command_whose_output_is_not_read() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let events = AmqpEvents::connect(&place.services.amqp(&place.vhost)).await.unwrap();
    let run: RunId = place.run("unread").parse().unwrap();
    for seq in 0..50 {
        let reason =
            Reason::Log { stream: LogStream::Stdout, offset: 0, partial: false, encoding: None };
        emit(&events, reason, &run, Some(seq), &"x".repeat(10_000)).await;
    }
    for typed in [
        &["logs", "-f", run.as_str()][..],
        &["events", "-f", "--run", run.as_str()],
        &["events", "-f"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = place.program(typed, &[]);
        let child = command.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
        in_time("the pipe is full", async {
            while rustix::io::ioctl_fionread(&reader).unwrap() < 40_000 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(code(child).await, Some(143), "{typed:?}");
    }
}

async fn line_with(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>, text: &str) -> String {
    in_time("a line", async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the program still runs");
            if line.contains(text) {
                return line;
            }
        }
    })
    .await
}

#[tokio::test]
async fn following_a_start_ends_with_its_rejection() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let events = AmqpEvents::connect(&place.services.amqp(&place.vhost)).await.unwrap();
    let run: RunId = place.run("rejected").parse().unwrap();
    let rejected = || Reason::CommandRejected { field: None };
    emit(&events, rejected(), &run, None, "an earlier start is wrong").await;
    let pipeline = place.pipeline("rejected", &json!([{ "cmd": "true" }]));
    place.write("pipeline.json", &pipeline.to_string());
    let typed = ["submit", "pipeline.json", "--follow", "--run-id", run.as_str()];
    let mut command = place.program(&typed, &[]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    line_with(&mut lines, "bob.dlq").await;
    emit(&events, rejected(), &run, None, "key `new` is unknown").await;
    let said = line_with(&mut lines, "error:").await;
    assert_eq!(said, format!("error: run {run} was rejected: key `new` is unknown"));
    assert_eq!(code(child).await, Some(65));
}

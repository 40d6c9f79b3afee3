//! The lines, the files and the cache, without services.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use proptest::prelude::*;
use protocol::event::{Encoding, Event, LogStream, Reason};
use protocol::id::{Epoch, RunId};
use protocol::time::Millis;
use tempfile::TempDir;

use super::block::{self, End, Entry};
use super::cache::Cache;
use super::file::LogFile;
use super::line::{Line, LineJoiner, MAX_LINE};
use crate::client::{LogItem, Text};

fn run(id: &str) -> RunId {
    id.parse().unwrap()
}

/// A text of a step.
fn text(step: &str, stream: LogStream, bytes: &[u8]) -> LogItem {
    let reason = Reason::Log { stream, offset: 0, partial: false, encoding: None };
    let mut event = Event::new(Millis(7), reason, String::new());
    event.step = Some(step.parse().unwrap());
    event.attempt = Some(1);
    event.epoch = Some(Epoch(1));
    LogItem::Text(Box::new(Text { stream, bytes: bytes.to_vec(), event }))
}

fn out(bytes: &[u8]) -> LogItem {
    text("a", LogStream::Stdout, bytes)
}

fn completed(step: &str) -> LogItem {
    let reason = Reason::StepCompleted {
        exit_code: Some(0),
        duration_ms: 1,
        stdout_bytes: 0,
        stderr_bytes: 0,
        image: None,
        repeated: false,
    };
    let mut event = Event::new(Millis(8), reason, String::new());
    event.step = Some(step.parse().unwrap());
    LogItem::State(Box::new(event))
}

fn joined(items: &[LogItem]) -> Vec<Line> {
    let mut joiner = LineJoiner::default();
    let mut lines: Vec<Line> = items.iter().flat_map(|item| joiner.on(item)).collect();
    lines.extend(joiner.finish());
    lines
}

/// Each line's bytes, with a newline if there was one.
fn bytes_of(lines: &[Line]) -> Vec<Vec<u8>> {
    let bytes = |line: &Line| {
        let mut bytes = line.bytes().into_owned();
        if !line.partial {
            bytes.push(b'\n');
        }
        bytes
    };
    lines.iter().map(bytes).collect()
}

#[test]
fn parts_of_a_line_are_joined_and_lines_are_numbered_from_1() {
    let lines = joined(&[out(b"one\ntw"), out(b"o\n\nth"), out(b"ree")]);
    let expected: [&[u8]; 4] = [b"one\n", b"two\n", b"\n", b"three"];
    assert_eq!(bytes_of(&lines), expected);
    assert_eq!(lines.iter().map(|line| line.line).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn lines_of_steps_and_streams_that_alternate_are_kept_apart() {
    let lines = joined(&[
        out(b"o"),
        text("a", LogStream::Stderr, b"e"),
        text("b", LogStream::Stdout, b"b\n"),
        text("a", LogStream::Stderr, b"rr\n"),
        out(b"ut\n"),
    ]);
    let expected: [&[u8]; 3] = [b"b\n", b"err\n", b"out\n"];
    assert_eq!(bytes_of(&lines), expected);
}

#[test]
fn a_line_without_an_end_is_complete_when_its_step_is() {
    let mut joiner = LineJoiner::default();
    assert!(joiner.on(&out(b"no end")).is_empty());
    assert!(joiner.on(&completed("b")).is_empty());
    let lines = joiner.on(&completed("a"));
    assert_eq!(bytes_of(&lines), [b"no end"]);
    assert!(lines[0].partial);
    assert!(joiner.finish().is_empty());
}

#[test]
fn a_very_long_line_is_split_between_characters() {
    let long = "x".repeat(MAX_LINE - 1) + "äöü";
    let lines = joined(&[out(long.as_bytes()), out(b"\n")]);
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts.concat(), long);
    assert_eq!((texts.len(), texts[1]), (2, "äöü"));
    assert_eq!(lines.iter().map(|line| line.partial).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn binary_output_is_kept_byte_for_byte() {
    let binary: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    let lines = joined(&[out(&binary), out(b"\nplain\n")]);
    assert_eq!(lines[0].encoding, Some(Encoding::Base64));
    assert_eq!(lines[0].bytes(), binary);
    assert_eq!((lines[1].text.as_str(), lines[1].encoding), ("plain", None));
}

#[test]
fn unfinished_lines_take_a_bounded_amount_of_memory() {
    let mut joiner = LineJoiner::default();
    let part = vec![b'x'; MAX_LINE];
    let steps = (0..100).map(|step| text(&step.to_string(), LogStream::Stdout, &part));
    let lines: usize = steps.map(|item| joiner.on(&item).len()).sum();
    assert_eq!(lines, 96);
    assert_eq!(joiner.finish().len(), 4);
}

/// Lines with these texts.
fn lines_of(texts: &[String]) -> Vec<Line> {
    let items: Vec<LogItem> =
        texts.iter().map(|text| out(format!("{text}\n").as_bytes())).collect();
    joined(&items)
}

fn numbered(count: usize) -> Vec<Line> {
    lines_of(&(0..count).map(|number| format!("line {number}")).collect::<Vec<_>>())
}

fn end(id: &str, lines: &[Line]) -> End {
    End::of(run(id), lines.len() as u64)
}

/// A complete log in a temporary file.
fn file(lines: &[Line]) -> LogFile {
    let log = LogFile::new(run("r-1"), tempfile::tempfile().unwrap());
    for part in lines.chunks(100) {
        log.push(part.to_vec());
    }
    log.finish(end("r-1", lines)).unwrap();
    log
}

/// The content of a log's file.
fn content(log: &LogFile) -> Vec<u8> {
    log.bytes(0, usize::try_from(log.size()).unwrap()).unwrap().to_vec()
}

fn reopened(content: &[u8]) -> Option<LogFile> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    LogFile::open(run("r-1"), file).unwrap()
}

#[test]
fn a_log_file_is_gzip_with_a_json_line_for_each_line() {
    let lines =
        lines_of(&(0..9000).map(|n| format!("{n} {}", "x".repeat(100))).collect::<Vec<_>>());
    let content = content(&file(&lines));
    let mut json = String::new();
    MultiGzDecoder::new(content.as_slice()).read_to_string(&mut json).unwrap();
    let mut entries = json.lines().map(|line| block::entry(line.as_bytes()).unwrap());
    for line in &lines {
        let Some(Entry::Line(read)) = entries.next() else { panic!("line {}", line.line) };
        assert_eq!(read, *line);
    }
    assert!(matches!(entries.next(), Some(Entry::End(read)) if read == end("r-1", &lines)));
    assert!(entries.next().is_none());
}

#[test]
fn an_incomplete_or_damaged_file_is_not_trusted() {
    let lines = numbered(5000);
    let content = content(&file(&lines));
    assert!(reopened(&content).is_some());
    for length in [0, 1, content.len() / 2, content.len() - 1] {
        assert!(reopened(&content[..length]).is_none(), "{length} bytes were trusted");
    }
    let mut more = content.clone();
    more.push(0);
    assert!(reopened(&more).is_none());
    let mut damaged = content;
    damaged[block::HEADER + 10] ^= 0xFF;
    let damaged = reopened(&damaged).expect("the end is there");
    damaged.read(1).unwrap_err();
}

#[test]
fn lines_that_are_not_in_the_file_yet_are_read_from_memory() {
    let log = LogFile::new(run("r-1"), tempfile::tempfile().unwrap());
    let lines = numbered(30);
    log.push(lines[..10].to_vec());
    log.flush().unwrap();
    log.push(lines[10..].to_vec());
    assert_eq!(log.read(5).unwrap(), lines[4..10]);
    assert_eq!(log.read(15).unwrap(), lines[14..]);
    assert_eq!(log.read(31).unwrap(), []);
    assert_eq!((log.block_start(10), log.block_start(11), log.block_start(30)), (1, 11, 11));
}

/// Reads a range as a request does: block by block.
fn range(log: &LogFile, from: u64, count: usize) -> Vec<Line> {
    let mut found = Vec::new();
    let mut next = from;
    while found.len() < count {
        let lines = log.read(next).unwrap();
        let Some(last) = lines.last() else { break };
        next = last.line + 1;
        found.extend(lines);
    }
    found.truncate(count);
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_range_is_read_as_it_was_written(
        texts in prop::collection::vec(
            prop_oneof![".{0,40}", Just("y".repeat(30_000)), "[\\x00-\\x1f]{0,200}"],
            0..200,
        ),
        flushes in prop::collection::vec(any::<bool>(), 20),
        ranges in prop::collection::vec((1_u64..260, 0_usize..260), 12),
    ) {
        let texts: Vec<String> = texts.iter().map(|text| text.replace('\n', " ")).collect();
        let lines = lines_of(&texts);
        let log = LogFile::new(run("r-1"), tempfile::tempfile().unwrap());
        for (part, flush) in lines.chunks(10).zip(flushes) {
            log.push(part.to_vec());
            if flush {
                log.flush().unwrap();
            }
        }
        let expected = |from: u64, count: usize| -> Vec<Line> {
            lines.iter().skip(usize::try_from(from).unwrap() - 1).take(count).cloned().collect()
        };
        for (from, count) in &ranges {
            prop_assert_eq!(range(&log, *from, *count), expected(*from, *count));
        }
        log.finish(end("r-1", &lines)).unwrap();
        let read_again = reopened(&content(&log)).unwrap();
        for (from, count) in &ranges {
            prop_assert_eq!(range(&read_again, *from, *count), expected(*from, *count));
        }
    }

    #[test]
    fn the_bytes_of_a_stream_are_the_same_however_they_are_split(
        bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..2000),
        cuts in prop::collection::vec(0_usize..2000, 0..10),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < bytes.len()).collect();
        cuts.sort_unstable();
        let mut items = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([bytes.len()]) {
            items.push(out(&bytes[from..cut]));
            from = cut;
        }
        prop_assert_eq!(&bytes_of(&joined(&items)).concat(), &bytes);
        prop_assert_eq!(joined(&items), joined(&[out(&bytes)]));
    }
}

fn open_cache(dir: &TempDir, limit: u64) -> Cache {
    Cache::open(dir.path(), limit).unwrap().expect("no other process uses it")
}

fn add(cache: &Cache, id: &str, lines: &[Line]) -> Arc<LogFile> {
    let log = cache.create(&run(id)).unwrap().expect("a new log");
    log.push(lines.to_vec());
    cache.finish(&log, end(id, lines)).unwrap();
    log
}

fn has(cache: &Cache, id: &str) -> bool {
    cache.get(&run(id)).is_some()
}

#[test]
fn the_least_recently_used_log_is_removed_first() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_cache(&dir, 3 * 4096);
    let lines = numbered(10);
    for id in ["r-1", "r-2", "r-3"] {
        add(&cache, id, &lines);
    }
    assert!(has(&cache, "r-1"));
    let reader = cache.get(&run("r-2")).unwrap();
    assert!(has(&cache, "r-1") && has(&cache, "r-3"));
    add(&cache, "r-4", &lines);
    assert_eq!(["r-1", "r-2", "r-3", "r-4"].map(|id| has(&cache, id)), [true, false, true, true]);
    assert!(cache.size() <= 3 * 4096);
    assert_eq!(reader.read(1).unwrap(), lines, "an open log can be read to its end");
}

#[test]
fn a_log_that_is_larger_than_the_cache_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_cache(&dir, 4096);
    let log = cache.create(&run("r-1")).unwrap().unwrap();
    let texts = (0..4000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    log.push(lines_of(&texts.collect::<Vec<_>>()));
    cache.flush(&log).unwrap();
    assert!(log.is_gone() && !has(&cache, "r-1"));
    assert_eq!(cache.size(), 0);
}

#[test]
fn complete_logs_survive_a_restart_and_incomplete_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let lines = numbered(10);
    {
        let cache = open_cache(&dir, 1 << 20);
        for id in ["r-1", "r-2.part", "r-3"] {
            add(&cache, id, &lines);
        }
        let missing = cache.create(&run("r-4")).unwrap().unwrap();
        let missing_end = End { missing: vec!["event 1".to_owned()], ..end("r-4", &[]) };
        cache.finish(&missing, missing_end).unwrap();
        cache.create(&run("r-5")).unwrap().unwrap().push(lines.clone());
        assert!(has(&cache, "r-4") && has(&cache, "r-5"));
    }
    let cache = open_cache(&dir, 1 << 20);
    assert_eq!(
        ["r-1", "r-2.part", "r-3", "r-4", "r-5"].map(|id| has(&cache, id)),
        [true, true, true, false, false]
    );
    assert_eq!(cache.get(&run("r-3")).unwrap().read(1).unwrap(), lines);
}

#[test]
fn a_cache_that_another_process_uses_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_cache(&dir, 1 << 20);
    let log = cache.create(&run("r-1")).unwrap().unwrap();
    assert!(Cache::open(dir.path(), 1 << 20).unwrap().is_none());
    log.push(numbered(3));
    cache.finish(&log, end("r-1", &numbered(3))).unwrap();
    assert!(has(&cache, "r-1"));
}

#[test]
fn other_users_cannot_read_the_cache() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("log-cache");
    let _cache = Cache::open(&dir, 1 << 20).unwrap();
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_damaged_file_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("r-1.jsonl.gz"), "not a log").unwrap();
    let cache = open_cache(&dir, 1 << 20);
    assert!(!has(&cache, "r-1"));
    assert!(cache.create(&run("r-1")).unwrap().is_some());
}

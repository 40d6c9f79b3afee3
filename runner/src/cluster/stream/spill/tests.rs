use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;

use super::super::segment::{SEGMENT, UNREADABLE, decode_all};
use super::*;

fn waiting(ticket: u64, size: usize) -> Waiting {
    let run = ticket.is_multiple_of(2).then(|| "r-a".parse().unwrap());
    let epoch = ticket.is_multiple_of(3).then_some(Epoch(7));
    let byte = u8::try_from(ticket % 251).unwrap();
    Waiting::new(ticket, run, epoch, Bytes::from(vec![byte; size]))
}

fn open(dir: &Path, limit: u64) -> Spill {
    Spill::open(SpillRoot::new(dir, "events-x-".to_owned(), limit)).unwrap()
}

fn leftover(front: &[Waiting], tail: &[Waiting]) -> Leftover {
    Leftover { front: front.to_vec(), tail: tail.to_vec(), lost: BTreeMap::new() }
}

/// Returns all events in a directory, in the order of publication.
fn events_in(dir: &Path) -> Vec<Waiting> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<PathBuf> =
        names.filter(|path| path.extension().is_some_and(|end| end == SEGMENT)).collect();
    names.sort();
    let read = names.iter().map(|path| decode_all(&fs::read(path).unwrap().into()).unwrap().0);
    read.flatten().collect()
}

#[test]
fn events_return_unchanged_and_their_files_go_once_they_are_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = open(dir.path(), 1 << 30);
    let all: Vec<Waiting> = (1..=400).map(|ticket| waiting(ticket, 40_000)).collect();
    for batch in all.chunks(7) {
        spill.append(batch).unwrap();
    }
    assert!(spill.segments.len() > 2);
    let mut back = Vec::new();
    loop {
        let (read, oldest) = spill.take(1 << 20).unwrap();
        back.extend(read);
        let Some(oldest) = oldest else { break };
        assert_eq!(oldest, back.len() as u64 + 1);
    }
    assert!(back == all);
    assert_eq!((spill.bytes, spill.events, spill.segments.len()), (0, 0, 0));
    let own = spill.own.as_ref().unwrap().path.clone();
    assert!(events_in(&own) == all, "a worker that is killed now leaves them");
    spill.confirmed(200);
    assert!(events_in(&own).len() > 200);
    spill.confirmed(400);
    assert_eq!(events_in(&own), []);
    drop(spill);
    assert!(!own.exists());
}

#[test]
fn an_event_larger_than_the_read_buffer_is_read_completely() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = open(dir.path(), 1 << 30);
    let all = [waiting(1, 100_000), waiting(2, 0), waiting(3, 5)];
    spill.append(&all).unwrap();
    assert_eq!(spill.take(1_000).unwrap(), (all[..1].to_vec(), Some(2)));
    assert_eq!(spill.take(1_000).unwrap(), (all[1..].to_vec(), None));
    assert_eq!(spill.take(1_000).unwrap(), (Vec::new(), None));
}

#[test]
fn read_events_free_space_and_events_of_earlier_workers_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = open(dir.path(), 100_000);
    spill.append(&[waiting(1, 60_000)]).unwrap();
    assert!(!spill.has_room(60_000));
    spill.take(1 << 20).unwrap();
    assert!(spill.has_room(60_000));
    spill.place.set_leftover_size(60_000);
    assert!(!spill.has_room(60_000));
}

#[test]
fn only_this_user_can_access_the_directory_and_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("state/spill");
    let mut spill = open(&inner, 1 << 20);
    spill.append(&[waiting(1, 1)]).unwrap();
    let mode = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o777;
    assert_eq!(mode(inner.metadata().unwrap()), 0o700);
    assert_eq!(mode(spill.own.as_ref().unwrap().path.metadata().unwrap()), 0o700);
    assert_eq!(mode(spill.segments[0].file().metadata().unwrap()), 0o600);
}

#[test]
fn waiting_events_are_kept_in_order_when_the_worker_exits() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = open(dir.path(), 1 << 30);
    let all: Vec<Waiting> = (1..=9).map(|ticket| waiting(ticket, 2 << 20)).collect();
    for one in &all[1..8] {
        spill.append(std::slice::from_ref(one)).unwrap();
    }
    // The second event was read, and none is confirmed.
    let (read, _) = spill.take(1).unwrap();
    assert_eq!(read, all[1..2]);
    let kept = spill.keep(leftover(&all[..2], &all[8..])).unwrap();
    assert_eq!((kept.events, kept.dropped.len()), (9, 0));
    assert!(events_in(&kept.dir.unwrap()) == all);
}

#[test]
fn nothing_stays_on_disk_if_no_event_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = open(dir.path(), 1 << 30);
    spill.append(&[waiting(1, 1)]).unwrap();
    spill.take(1).unwrap();
    assert_eq!(spill.keep(leftover(&[], &[])).unwrap(), SpillOutcome::default());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn events_beyond_the_limit_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let spill = open(dir.path(), 2_500);
    let all: Vec<Waiting> = (1..=6).map(|ticket| waiting(ticket, 1_000)).collect();
    let kept = spill.keep(leftover(&all[..3], &all[3..])).unwrap();
    assert_eq!(kept.events, 2);
    let run = Some("r-a".parse().unwrap());
    assert_eq!(kept.dropped, BTreeMap::from([(None, 2), (run, 2)]));
    assert!(events_in(&kept.dir.unwrap()) == all[..2], "the oldest are kept");
}

#[test]
fn a_segment_that_stays_unreadable_is_set_aside_with_the_count_of_its_events() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = open(dir.path(), 1 << 30);
    let all: Vec<Waiting> = (1..=6).map(|ticket| waiting(ticket, 3 << 20)).collect();
    for one in &all {
        spill.append(std::slice::from_ref(one)).unwrap();
    }
    assert_eq!(spill.segments.len(), 3);
    assert_eq!(spill.refill(1).unwrap().read, all[..1]);
    spill.segments[0].break_reads();
    for _ in 1..READ_TRIES {
        spill.refill(1).unwrap_err();
    }
    let aside = spill.refill(1).unwrap();
    assert_eq!((aside.read.len(), aside.oldest, aside.lost), (0, Some(3), 1));
    assert_eq!(aside.unreadable, Some(2..=2));
    assert_eq!(spill.refill(1).unwrap().read, all[2..3]);
    let kept = spill.keep(leftover(&all[2..3], &[])).unwrap();
    assert_eq!((kept.events, kept.dropped.len()), (4, 0));
    let own = kept.dir.unwrap();
    assert!(events_in(&own) == all[2..]);
    assert!(own.join(format!("00000001.{UNREADABLE}")).exists());
}

#[test]
fn events_that_cannot_be_read_when_the_worker_exits_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spill = open(dir.path(), 1 << 30);
    let all: Vec<Waiting> = (1..=4).map(|ticket| waiting(ticket, 3 << 20)).collect();
    for one in &all {
        spill.append(std::slice::from_ref(one)).unwrap();
    }
    spill.take(1).unwrap();
    spill.segments[0].break_reads();
    let kept = spill.keep(leftover(&all[..1], &[])).unwrap();
    let run = Some("r-a".parse().unwrap());
    assert_eq!((kept.events, kept.dropped), (2 + 1, BTreeMap::from([(run, 1)])));
}

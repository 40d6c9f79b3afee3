use super::*;
use crate::transfer::Directory;

fn archive(outputs: &TempDir) -> Archive {
    let scratch = outputs.path().join("scratch");
    Archive::new(Arc::new(Directory::new(outputs.path().to_owned())), node(), scratch)
}

/// The archived log of the run `r-1`.
fn archived(outputs: &TempDir) -> std::path::PathBuf {
    outputs.path().join("dev/x/r-1").join(names::LOG_ARCHIVE)
}

#[tokio::test]
async fn logs_are_archived_and_read_once_they_are_past_the_retention() {
    for bytes in [0, BYTES] {
        let outputs = tempfile::tempdir().unwrap();
        let fleet = Fleet::new().await;
        fleet.put_run("r-1", Status::Passed, now()).await;
        let logs = fleet.logs(bytes, Some(archive(&outputs))).await;
        fleet.follow(&logs).await;
        fleet.publish(a_run("r-1")).await;
        while !archived(&outputs).exists() {
            tokio::task::yield_now().await;
        }
        fleet.end(logs).await;

        // Another node, whose stream has none of it.
        let fleet = Fleet::new().await;
        fleet.put_run("r-1", Status::Passed, Millis(now().0 - 8 * 86_400_000)).await;
        fleet.publish(vec![scheduled("r-2")]).await;
        let logs = fleet.logs(bytes, Some(archive(&outputs))).await;
        let (lines, end) = whole(&logs, "r-1").await;
        assert_eq!(lines, LINES);
        assert_eq!((end.status, end.missing.len(), end.note), (Some(Status::Passed), 0, None));
    }
}

#[tokio::test]
async fn a_damaged_archive_is_read_as_far_as_possible() {
    let outputs = tempfile::tempdir().unwrap();
    let fleet = Fleet::new().await;
    fleet.put_run("r-1", Status::Passed, Millis(now().0 - 8 * 86_400_000)).await;
    fleet.publish(vec![scheduled("r-2")]).await;
    std::fs::create_dir_all(archived(&outputs).parent().unwrap()).unwrap();
    std::fs::write(archived(&outputs), "not gzip").unwrap();
    let (lines, end) = whole(&fleet.logs(BYTES, Some(archive(&outputs))).await, "r-1").await;
    assert!(lines.is_empty());
    assert!(end.missing[0].starts_with("the rest of its archive"), "{end:?}");
}

#[tokio::test]
async fn a_run_of_another_node_is_not_archived() {
    let outputs = tempfile::tempdir().unwrap();
    let fleet = Fleet::new().await;
    let logs = fleet.logs(BYTES, Some(archive(&outputs))).await;
    fleet.follow(&logs).await;
    let elsewhere = |mut event: Event| {
        event.node = Some(NodeId::from_stored("bob/runner-other"));
        event
    };
    fleet.publish(a_run("r-1").into_iter().map(elsewhere).collect()).await;
    followed(&logs, "r-1").await;
    fleet.end(logs).await;
    assert!(!archived(&outputs).exists());
}

#[tokio::test]
async fn a_run_that_ends_just_before_the_node_stops_is_archived() {
    let outputs = tempfile::tempdir().unwrap();
    let fleet = Fleet::new().await;
    let logs = fleet.logs(BYTES, Some(archive(&outputs))).await;
    let mut following = Box::pin(logs.follow());
    assert!(poll!(&mut following).is_pending());
    fleet.publish(a_run("r-1")).await;
    fleet.stop.cancel();
    following.await;
    fleet.end(logs.clone()).await;
    assert!(archived(&outputs).exists());
}

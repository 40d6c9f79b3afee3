//! Runs on a wait list.

use protocol::wait_list::{WaitList, WaitingRun};

use super::*;

#[tokio::test]
async fn a_waiting_run_is_shown_with_its_place_in_the_list_and_its_due_time() {
    let (client, embedded) = client().await;
    let runs = ["r-1", "r-2", "r-3"];
    for run in runs {
        put_run(&embedded, &RunRecord { attempt: 0, ..record(run, Status::Pending, now()) }).await;
    }
    let waiting =
        |run: &str, due| WaitingRun { run_id: run.parse().unwrap(), due, partition: String::new() };
    let list = WaitList {
        waiting: vec![waiting("r-2", None), waiting("r-1", Some(Millis(7)))],
        ..WaitList::default()
    };
    let key = names::wait_key(&PipelineId::new("dev", "x").unwrap());
    assert!(embedded.store().txn(Txn::new().put(key, json(&list))).await.unwrap().committed);

    let one = client.run(&"r-1".parse().unwrap()).await.unwrap().waits.unwrap();
    assert_eq!(one, PlaceInList { position: 2, waiting: 2, due: Some(Millis(7)) });
    let listed = client.runs(&RunFilter::default()).await.unwrap().readable;
    let place = |run: &KnownRun| Some((run.record.run_id.to_string(), run.waits?.position));
    let mut places: Vec<(String, usize)> = listed.iter().filter_map(place).collect();
    places.sort();
    // The third run is about to be claimed.
    assert_eq!(places, [("r-1".to_owned(), 2), ("r-2".to_owned(), 1)]);
    let lists = client.wait_lists().await.unwrap().readable;
    assert_eq!(lists, [(PipelineId::new("dev", "x").unwrap(), list)]);
}

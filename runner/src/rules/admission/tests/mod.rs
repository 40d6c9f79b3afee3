use super::*;

const NOW: Millis = Millis(1_000_000);

/// Parses a policy, written as in a definition.
fn policy(text: &str) -> Admission {
    serde_json::from_str(text).unwrap()
}

fn id(name: &str) -> RunId {
    format!("r-{name}").parse().unwrap()
}

fn names(runs: &[RunId]) -> Vec<&str> {
    runs.iter().map(|run| run.as_str().trim_start_matches("r-")).collect()
}

fn waiting(list: &WaitList) -> Vec<&str> {
    list.waiting.iter().map(|run| run.run_id.as_str().trim_start_matches("r-")).collect()
}

/// Offers runs in order, and returns the replaced ones.
fn offer_all(list: &mut WaitList, policy: &Admission, runs: &[(&str, &str)]) -> Vec<String> {
    let mut replaced = Vec::new();
    for (run, partition) in runs {
        if let Admitted::Waits { replaces: Some(old) } =
            offer(list, policy, &id(run), partition, NOW).unwrap()
        {
            replaced.push(old.as_str().trim_start_matches("r-").to_owned());
        }
    }
    replaced
}

// Rows: D7
#[test]
fn waiting_runs_start_in_the_order_of_their_arrival() {
    let (mut list, policy) = (WaitList::default(), policy(r#"{"concurrency": 1}"#));
    offer_all(&mut list, &policy, &[("a", ""), ("b", ""), ("c", "")]);
    assert_eq!((names(&list.running), waiting(&list)), (vec!["a"], vec!["b", "c"]));
    assert_eq!(promote(&mut list, NOW), []);
    assert!(remove(&mut list, &id("a")));
    assert_eq!(names(&promote(&mut list, NOW)), ["b"]);
    assert_eq!(waiting(&list), ["c"]);
}

// Rows: D8
#[test]
fn a_limit_of_zero_refuses_a_run_only_while_all_places_are_taken() {
    let mut list = WaitList::default();
    let policy = policy(r#"{"concurrency": 1, "limit": 0}"#);
    assert_eq!(offer(&mut list, &policy, &id("a"), "", NOW), Ok(Admitted::Starts));
    let refused = offer(&mut list, &policy, &id("b"), "", NOW);
    assert_eq!(refused, Err(Refusal::MayNotWait { running: 1 }));
    remove(&mut list, &id("a"));
    assert_eq!(offer(&mut list, &policy, &id("c"), "", NOW), Ok(Admitted::Starts));
}

// Rows: D8
#[test]
fn a_full_list_refuses_a_run_but_a_free_place_does_not() {
    let mut list = WaitList::default();
    let policy = policy(r#"{"concurrency": 1, "limit": 1}"#);
    offer_all(&mut list, &policy, &[("a", ""), ("b", "")]);
    let refused = offer(&mut list, &policy, &id("c"), "", NOW);
    assert_eq!(refused, Err(Refusal::Full { waiting: 1 }));
    assert_eq!(waiting(&list), ["b"]);
}

// Rows: D9
#[test]
fn a_full_list_with_replace_gives_up_its_last_run() {
    let mut list = WaitList::default();
    let policy = policy(r#"{"concurrency": 1, "limit": 2, "strategy": "replace"}"#);
    let runs = [("a", ""), ("b", ""), ("c", ""), ("d", "")];
    assert_eq!(offer_all(&mut list, &policy, &runs), ["c"]);
    assert_eq!(waiting(&list), ["b", "d"]);
}

// Rows: D10
#[test]
fn a_full_partition_gives_up_its_own_last_run() {
    let mut list = WaitList::default();
    let policy =
        policy(r#"{"concurrency": 1, "partition-limit": 2, "strategy": "partitioned-replace"}"#);
    offer_all(&mut list, &policy, &[("running", "")]);
    let runs = [("a", "1"), ("b", "2"), ("c", "1"), ("d", "2"), ("e", "2"), ("f", "1")];
    assert_eq!(offer_all(&mut list, &policy, &runs), ["d", "c"]);
    assert_eq!(waiting(&list), ["a", "b", "e", "f"]);
}

// Rows: D11
#[test]
fn a_delayed_run_waits_even_if_a_place_is_free_and_does_not_block_later_runs() {
    let mut list = WaitList::default();
    let delayed = policy(r#"{"concurrency": 1, "limit": 5, "start-delay": "10s"}"#);
    let ready = policy(r#"{"concurrency": 1, "limit": 5}"#);
    let waits = Ok(Admitted::Waits { replaces: None });
    assert_eq!(offer(&mut list, &delayed, &id("a"), "", NOW), waits);
    assert_eq!(next_promotion(&list), Some(Millis(NOW.0 + 10_000)));
    assert_eq!(offer(&mut list, &ready, &id("b"), "", NOW), Ok(Admitted::Starts));
    assert_eq!(next_promotion(&list), None, "no place is free");
    remove(&mut list, &id("b"));
    assert_eq!(promote(&mut list, Millis(NOW.0 + 9_999)), []);
    assert_eq!(names(&promote(&mut list, Millis(NOW.0 + 10_000))), ["a"]);
}

// Rows: D11
#[test]
fn a_delay_with_replace_and_one_place_is_a_debounce() {
    let mut list = WaitList::default();
    let policy = policy(r#"{"limit": 1, "strategy": "replace", "start-delay": "1s"}"#);
    for (run, at) in [("a", 0), ("b", 900), ("c", 1_800)] {
        offer(&mut list, &policy, &id(run), "", Millis(at)).unwrap();
    }
    assert_eq!(promote(&mut list, Millis(2_799)), []);
    assert_eq!(names(&promote(&mut list, Millis(2_800))), ["c"]);
}

#[test]
fn a_new_run_does_not_overtake_a_run_that_is_due() {
    let (mut list, one) = (WaitList::default(), policy(r#"{"concurrency": 1}"#));
    offer_all(&mut list, &one, &[("a", ""), ("b", "")]);
    let two = policy(r#"{"concurrency": 2}"#);
    let waits = Ok(Admitted::Waits { replaces: None });
    assert_eq!(offer(&mut list, &two, &id("c"), "", NOW), waits);
    assert_eq!(names(&promote(&mut list, NOW)), ["b"], "the newest definition has two places");
}

// Rows: D12
#[test]
fn a_run_that_is_stopped_while_it_waits_leaves_the_list_at_once() {
    let mut list = WaitList::default();
    let policy = policy(r#"{"concurrency": 1, "limit": 1}"#);
    offer_all(&mut list, &policy, &[("a", ""), ("b", "")]);
    assert!(remove(&mut list, &id("b")));
    assert!(!remove(&mut list, &id("b")));
    assert!(offer(&mut list, &policy, &id("c"), "", NOW).is_ok());
}

mod reference;

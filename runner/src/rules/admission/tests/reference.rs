//! Compares the rules with a plain model over random histories: the model keeps every run that was
//! ever started, with its state, and looks at all of them for each decision.

use proptest::collection::vec;
use proptest::strategy::{Just, Strategy as _};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Ended,
    Replaced,
    Refused,
}

#[derive(Debug)]
struct ModelRun {
    partition: String,
    due: i64,
    state: State,
}

#[derive(Debug, Default)]
struct Model {
    runs: Vec<ModelRun>,
    started: Vec<usize>,
}

impl Model {
    fn in_state(&self, state: State) -> Vec<usize> {
        (0..self.runs.len()).filter(|run| self.runs[*run].state == state).collect()
    }

    fn start(&mut self, policy: &Admission, partition: &str, now: i64) {
        let delay = policy.start_delay.map_or(0, |delay| delay.as_duration().as_millis());
        let due = now + i64::try_from(delay).unwrap();
        let new = self.runs.len();
        self.runs.push(ModelRun { partition: partition.to_owned(), due, state: State::Waiting });
        self.promote(policy, now);
        if delay == 0 && self.runs[new].state == State::Running {
            return;
        }
        // It waits, so the list before it must have room for it.
        let is_partitioned = policy.strategy == Strategy::PartitionedReplace;
        let limit = if is_partitioned { policy.partition_limit } else { policy.limit };
        let mut before = self.in_state(State::Waiting);
        before.retain(|run| *run != new);
        if is_partitioned {
            before.retain(|run| self.runs[*run].partition == partition);
        }
        if limit.is_none_or(|limit| before.len() < usize::try_from(limit).unwrap()) {
            return;
        }
        match (policy.strategy, before.last()) {
            (Strategy::Replace | Strategy::PartitionedReplace, Some(last)) => {
                self.runs[*last].state = State::Replaced;
            }
            _ => self.runs[new].state = State::Refused,
        }
    }

    fn promote(&mut self, policy: &Admission, now: i64) {
        for run in self.in_state(State::Waiting) {
            let running = self.in_state(State::Running).len();
            let is_free = policy.concurrency.is_none_or(|places| running < places as usize);
            if self.runs[run].due <= now && is_free {
                self.runs[run].state = State::Running;
                self.started.push(run);
            }
        }
    }
}

/// What happens to a pipeline.
#[derive(Debug, Clone)]
enum Act {
    Start(u8),
    EndRunning(usize),
    StopWaiting(usize),
    Pass(i64),
}

fn policies() -> impl proptest::strategy::Strategy<Value = Admission> {
    let places = prop_oneof![Just(None), (1..4_u32).prop_map(Some)];
    let limits = prop_oneof![Just(None), (0..4_u32).prop_map(Some)];
    let delays = prop_oneof![Just(None), Just(Some("100ms")), Just(Some("2s"))];
    (places, limits, 0..3_u8, delays).prop_map(|(concurrency, limit, strategy, delay)| {
        let mut json = serde_json::json!({ "concurrency": concurrency, "start-delay": delay });
        match strategy {
            0 => json["limit"] = limit.into(),
            1 => {
                json["limit"] = limit.unwrap_or(1).into();
                json["strategy"] = "replace".into();
            }
            _ => {
                json["partition-limit"] = limit.unwrap_or(1).max(1).into();
                json["strategy"] = "partitioned-replace".into();
            }
        }
        serde_json::from_value(json).unwrap()
    })
}

fn acts() -> impl proptest::strategy::Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => (0..3_u8).prop_map(Act::Start),
        3 => (0..4_usize).prop_map(Act::EndRunning),
        1 => (0..4_usize).prop_map(Act::StopWaiting),
        2 => (0..3_000_i64).prop_map(Act::Pass),
    ];
    vec(act, 0..60)
}

fn index(run: &RunId) -> usize {
    run.as_str().trim_start_matches("r-").parse().unwrap()
}

proptest! {
    #[test]
    fn the_rules_agree_with_a_plain_model(policy in policies(), acts in acts()) {
        let (mut list, mut model, mut now) = (WaitList::default(), Model::default(), 0);
        let mut started = Vec::new();
        for act in acts {
            match act {
                Act::Start(partition) => {
                    let (run, partition) = (id(&model.runs.len().to_string()), partition.to_string());
                    model.start(&policy, &partition, now);
                    started.extend(promote(&mut list, Millis(now)).iter().map(index));
                    let admitted = offer(&mut list, &policy, &run, &partition, Millis(now));
                    if admitted == Ok(Admitted::Starts) {
                        started.push(index(&run));
                    }
                }
                Act::EndRunning(which) => {
                    if let Some(run) = model.in_state(State::Running).get(which) {
                        model.runs[*run].state = State::Ended;
                        prop_assert!(remove(&mut list, &id(&run.to_string())));
                    }
                }
                Act::StopWaiting(which) => {
                    if let Some(run) = model.in_state(State::Waiting).get(which) {
                        model.runs[*run].state = State::Ended;
                        prop_assert!(remove(&mut list, &id(&run.to_string())));
                    }
                }
                Act::Pass(millis) => now += millis,
            }
            model.promote(&policy, now);
            started.extend(promote(&mut list, Millis(now)).iter().map(index));
            let mut running: Vec<usize> = list.running.iter().map(index).collect();
            running.sort_unstable();
            let waiting: Vec<usize> =
                list.waiting.iter().map(|waiting| index(&waiting.run_id)).collect();
            prop_assert_eq!(running, model.in_state(State::Running));
            prop_assert_eq!(waiting, model.in_state(State::Waiting));
            prop_assert_eq!(&started, &model.started);
            let next = next_promotion(&list);
            prop_assert!(next.is_none_or(|at| at.0 > now), "a run is due, and has no place");
        }
    }
}

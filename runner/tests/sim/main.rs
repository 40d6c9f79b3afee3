//! Whole clusters in one thread: the worker's own code over in-memory ports, under one seeded
//! clock, with faults at every effect. The invariants of docs/reliability.md are checked.
//!
//! `BOB_SIM_SEED=n` plays one seed and prints what happened; `BOB_SIM_HISTORIES=n` plays n
//! histories.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "a test may panic, print and spawn; its modules are private"
)]

mod broker;
mod call;
mod check;
mod cluster;
mod edge;
mod engine;
mod executor;
mod once;
mod plan;
mod refused;
mod rows;
mod sites;
mod stops;
mod store;
mod stream;
mod world;

use cluster::play;
use plan::Plan;

/// The number of histories in a normal test run.
const HISTORIES: u64 = 3000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Plays a seed and returns the violations.
fn of_seed(seed: u64, traced: bool) -> Vec<String> {
    let played = play(Plan { traced, ..Plan::of_seed(seed) });
    if traced {
        println!("{:#?}", played.world.plan);
        for line in played.world.trace() {
            println!("{line}");
        }
    }
    played.broken
}

#[test]
fn thousands_of_histories_keep_the_invariants() {
    if let Some(seed) = number("BOB_SIM_SEED") {
        let broken = of_seed(seed, true);
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
        return;
    }
    let histories = number("BOB_SIM_HISTORIES").unwrap_or(HISTORIES);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let failed: Vec<String> = std::thread::scope(|scope| {
        let players: Vec<_> = (0..threads)
            .map(|of| {
                scope.spawn(move || {
                    let seeds = (0..histories).filter(|seed| seed % threads == of);
                    seeds
                        .filter_map(|seed| {
                            let broken = of_seed(seed, false);
                            (!broken.is_empty()).then(|| format!("seed {seed}: {broken:#?}"))
                        })
                        .take(5)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        players.into_iter().flat_map(|player| player.join().unwrap()).collect()
    });
    println!("{histories} histories");
    assert!(failed.is_empty(), "replay with BOB_SIM_SEED=n: {}", failed.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..150 {
        let told = || {
            let played = play(Plan { traced: true, ..Plan::of_seed(seed) });
            played.world.trace()
        };
        let (first, second) = (told(), told());
        let differs = first.iter().zip(&second).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// Seeds that once showed a fault. Their histories change whenever the drawing changes, so the
/// faults themselves are also in `rows` if they can be described by hand.
const ONCE_FAILED: &[u64] = &[
    67, 1175, 3644, 4217, 9414, 13_445, 51_716, 84_700, 125_264, 130_317, 164_169, 164_312,
    185_132, 227_423, 864_831,
];

#[test]
fn seeds_that_once_failed_pass() {
    for seed in ONCE_FAILED {
        let broken = of_seed(*seed, false);
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    }
}

//! An in-memory container engine that outlives the processes using it. It has containers by name
//! and label, images, and a journal of every execution.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::{Epoch, RunId};
use tokio::sync::watch;

use crate::world::lock;

/// An execution of a step.
#[derive(Debug, Clone)]
pub struct Executed {
    pub engine: usize,
    pub run: RunId,
    pub position: usize,
    pub attempt: u32,
    pub epoch: Epoch,
    pub began: Duration,
    /// The store's revision at its start.
    pub revision: i64,
    /// The time of its end. `None` if it never ended.
    pub ended: Option<Duration>,
    /// The exit code of a call that ended by itself.
    pub code: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Runs,
    Exited(i32),
    /// Removed, running or not.
    Gone,
}

pub struct Container {
    pub run: RunId,
    pub position: usize,
    pub epoch: Epoch,
    pub stubborn: bool,
    pub life: watch::Sender<ContainerState>,
    pub journal: Option<usize>,
}

#[derive(Default)]
pub struct Inner {
    pub containers: BTreeMap<u64, Container>,
    pub images: BTreeMap<String, RunId>,
    pub next: u64,
    pub journal: Vec<Executed>,
}

pub struct Engine {
    pub number: usize,
    pub inner: Mutex<Inner>,
    /// The engine is unreachable until this time.
    pub away_until: Mutex<Duration>,
}

impl Inner {
    pub fn ends(&mut self, id: u64, at: Duration, life: ContainerState) {
        let Some(container) = self.containers.get(&id) else { return };
        if *container.life.borrow() == ContainerState::Runs
            && let Some(executed) = container.journal.and_then(|at| self.journal.get_mut(at))
        {
            executed.ended = Some(at);
        }
        container.life.send_replace(life);
    }

    pub fn remove(&mut self, id: u64, at: Duration) {
        self.ends(id, at, ContainerState::Gone);
        self.containers.remove(&id);
    }

    pub fn of_run(&self, run: &RunId) -> Vec<(u64, Epoch)> {
        let of_run = self.containers.iter().filter(|(_, container)| container.run == *run);
        of_run.map(|(id, container)| (*id, container.epoch)).collect()
    }
}

impl Engine {
    pub fn new(number: usize) -> Self {
        Self { number, inner: Mutex::default(), away_until: Mutex::default() }
    }

    pub fn journal(&self) -> Vec<Executed> {
        lock(&self.inner).journal.clone()
    }

    /// The numbers of containers and images left.
    pub fn left(&self) -> (usize, usize) {
        let inner = lock(&self.inner);
        (inner.containers.len(), inner.images.len())
    }

    /// Records the start of a call. Returns its index in the journal.
    pub fn begin(&self, executed: Executed) -> usize {
        let mut inner = lock(&self.inner);
        inner.journal.push(executed);
        inner.journal.len() - 1
    }

    /// Records the end of an entry in the journal.
    pub fn end(&self, at: usize, now: Duration, code: Option<i32>) {
        if let Some(executed) = lock(&self.inner).journal.get_mut(at) {
            (executed.ended, executed.code) = (Some(now), code);
        }
    }

    /// Makes the engine unreachable until this time.
    pub fn go_away(&self, until: Duration) {
        let mut away_until = lock(&self.away_until);
        *away_until = until.max(*away_until);
    }

    /// Kills all running containers.
    pub fn restart(&self, at: Duration) {
        let mut inner = lock(&self.inner);
        let ids: Vec<u64> = inner.containers.keys().copied().collect();
        for id in ids {
            let runs =
                inner.containers.get(&id).is_some_and(|c| *c.life.borrow() == ContainerState::Runs);
            if runs {
                inner.ends(id, at, ContainerState::Exited(137));
            }
        }
    }
}

//! An in-process executor whose steps do what their words say. It serves tests, simulations and
//! measurements of everything but the engine.
//!
//! | words | what the step does |
//! |---|---|
//! | `exit N` | exits with that code |
//! | `print TEXT...` | writes the text and a newline to standard output |
//! | `error TEXT...` | the same to standard error |
//! | `write BYTES LINES` | writes LINES lines of BYTES bytes |
//! | `result BYTES` | exits with 0 and a result of BYTES bytes |
//! | `put PATH TEXT...` | writes a file with the text and a newline |
//! | `show PATH` | writes a file's content; exits with 1 if it does not exist |
//! | `env NAME` | writes the value of a variable, or `unset`, and a newline |
//! | `pwd` | writes the working directory and a newline |
//! | `hang TEXT...` | writes the text, if any, and a newline, and runs until it is stopped; exits with 143, or 137 if killed |
//! | `wait-for FILE` | exits with 0 once the file exists |
//! | `stubborn TEXT...` | writes as `hang`, and runs until it is killed |
//! | `break` | fails with an engine error |
//! | `fill` | fails because the engine's disk is full |
//! | `lose` | makes the engine unreachable the first time, until `come_back`; then exits with 0 |
//!
//! Files are kept from step to step under their paths as written. A checkpoint is searched for
//! secrets, and a single file can be exported. An import is read but not unpacked. An image whose
//! digest is `hangs` is never fetched.

mod acts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use protocol::id::{Epoch, RunId};
use protocol::pipeline::Step;
use protocol::time::Millis;

use self::acts::{Files, perform, result_of};
use runner::ports::{
    BaseImage, ByteStream, Checkpoint, Disk, EngineInfo, ExecError, Gate, Images, LeftoverRun,
    LogSink, RunScope, StepOutcome, StepSpec, Steps, StopLevel, StopSignal, Workspace,
};

/// The state of a run: the files of each workspace.
#[derive(Debug, Default)]
struct Made {
    count: u64,
    /// The store that has the run.
    cluster: Option<Arc<str>>,
    /// The latest epoch seen.
    newest: i64,
    workspaces: HashMap<String, Arc<Files>>,
}

/// The executor. Like an engine with labels, it remembers what it created for each run.
#[derive(Debug, Default)]
pub struct Scripted {
    made: Mutex<HashMap<RunId, Made>>,
    running: Mutex<HashMap<String, u32>>,
    disk: Mutex<Option<Disk>>,
    bases: Mutex<Vec<BaseImage>>,
    /// The shared volumes with their sizes in bytes.
    volumes: Mutex<Vec<(String, u64)>>,
    /// The bytes on the disk of each run that left something.
    weight: AtomicU64,
    is_away: AtomicBool,
    /// The runs whose containers were ended, and up to which epoch.
    ended: Mutex<BTreeMap<RunId, Epoch>>,
    /// The executor's name. Empty stands for `scripted`.
    name: &'static str,
}

impl Scripted {
    /// The maximum number of concurrent executions of a step. 0 if it never ran.
    #[must_use]
    pub fn ran(&self, run: &RunId, step: &str) -> u32 {
        let running = self.running.lock();
        running.get(&format!("{run}/{step}")).copied().unwrap_or(0)
    }

    /// Reports this disk from now on. Removing base images, volumes and runs frees space on it.
    pub fn fill_disk(&self, disk: Disk) {
        *self.disk.lock() = Some(disk);
    }

    /// An engine that workers of another engine do not take for their own.
    #[must_use]
    pub fn named(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// The epoch up to which a run's containers were ended, if they were.
    pub fn ended_up_to(&self, run: &RunId) -> Option<Epoch> {
        self.ended.lock().get(run).copied()
    }

    /// Makes the engine reachable again.
    pub fn come_back(&self) {
        self.is_away.store(false, Ordering::Relaxed);
    }

    fn is_there(&self) -> Result<(), ExecError> {
        if self.is_away.load(Ordering::Relaxed) {
            let at = "scripted".to_owned();
            return Err(ExecError::Unreachable { at, cause: "it was told to go".to_owned() });
        }
        Ok(())
    }

    /// Reports these images as pulled by bob-runner.
    pub fn have_bases(&self, bases: Vec<BaseImage>) {
        *self.bases.lock() = bases;
    }

    /// Reports these volumes as shared by steps, least recently used first.
    pub fn have_volumes(&self, volumes: &[(&str, u64)]) {
        let volumes = volumes.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes));
        *self.volumes.lock() = volumes.collect();
    }

    /// Sets how many bytes the removal of a run frees.
    pub fn weigh_runs(&self, bytes: u64) {
        self.weight.store(bytes, Ordering::Relaxed);
    }

    fn free(&self, bytes: u64) {
        if let Some(disk) = &mut *self.disk.lock() {
            disk.free = disk.total.min(disk.free + bytes);
        }
    }

    /// Records an owner. `false` if a later one was seen.
    fn is_newest(&self, run: &RunScope) -> bool {
        let mut made = self.made.lock();
        let made = made.entry(run.run.clone()).or_default();
        made.newest = made.newest.max(run.epoch.0);
        made.newest == run.epoch.0
    }

    fn make(&self, run: &RunId, files: Arc<Files>) -> String {
        let mut made = self.made.lock();
        let made = made.entry(run.clone()).or_default();
        made.count += 1;
        let id = format!("scripted:{run}:{}", made.count);
        made.workspaces.insert(id.clone(), files);
        id
    }

    /// The files of a workspace. Empty if a restart has forgotten it.
    fn files(&self, run: &RunId, of: &Workspace) -> Arc<Files> {
        let made = self.made.lock();
        let (Workspace::Image { id, .. } | Workspace::Container { id, .. }) = of else {
            return Arc::default();
        };
        let files = made.get(run).and_then(|made| made.workspaces.get(id));
        files.map(Arc::clone).unwrap_or_default()
    }

    fn let_go(&self, run: &RunId, left: &Workspace) {
        let mut made = self.made.lock();
        if let (Workspace::Container { id, .. }, Some(made)) = (left, made.get_mut(run)) {
            made.workspaces.remove(id);
        }
    }

    fn image(&self, run: &RunId, files: Arc<Files>) -> Workspace {
        Workspace::Image { id: self.make(run, files), depth: 0 }
    }
}

#[async_trait]
impl Steps for Scripted {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        Ok(EngineInfo {
            id: if self.name.is_empty() { "scripted" } else { self.name }.into(),
            executor: "scripted",
            checkpoints: false,
            limits_refused: None,
            warning: None,
        })
    }

    async fn end(&self, _run: &RunScope) -> Result<(), ExecError> {
        // Its steps are futures of this process, which end when they are dropped or stopped.
        Ok(())
    }

    fn rejects(&self, step: &Step, network: Option<&str>) -> Option<String> {
        (network == Some("closed"))
            .then(|| format!("step {}: network \"closed\" is not open", step.name))
    }

    async fn run_step(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        mut gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        let open = tokio::select! {
            biased;
            open = gate.opened() => open,
            _ = stop.above(StopLevel::Run) => false,
        };
        if !open || !gate.is_owned() || !self.is_newest(run) {
            return Err(ExecError::NotStarted);
        }
        let times = {
            let mut running = self.running.lock();
            let times = running.entry(format!("{}/{}", run.run, step.name)).or_default();
            *times += 1;
            *times
        };
        if times == 1 && step.words.first().is_some_and(|word| word == "lose") {
            self.is_away.store(true, Ordering::Relaxed);
        }
        self.is_there()?;
        let mut files = self.files(&run.run, on);
        let exit = perform(step, &mut files, &*out, stop).await?;
        let id = self.make(&run.run, files);
        let mut ran = StepOutcome::new(exit, Workspace::Container { id, depth: 0 });
        ran.result = result_of(&step.words);
        Ok(ran)
    }

    async fn discard(&self, run: &RunScope, left: Workspace) {
        self.let_go(&run.run, &left);
    }

    async fn export(
        &self,
        run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        let files = self.files(&run.run, left);
        let nothing = || ExecError::NoSuchPath { path: path.to_owned() };
        let text = files.get(path).ok_or_else(nothing)?;
        let name = path.rsplit('/').next().unwrap_or(path);
        let failed = |cause: std::io::Error| ExecError::Input(cause.to_string());
        let mut header = tokio_tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tokio_tar::EntryType::Regular);
        let mut tar = tokio_tar::Builder::new(Vec::new());
        tar.append_data(&mut header, name, text.as_bytes()).await.map_err(failed)?;
        let bytes = tar.into_inner().await.map_err(failed)?;
        Ok(futures::stream::iter([Ok(Bytes::from(bytes))]).boxed())
    }

    async fn clear(&self, _run: &RunId) -> Result<(), ExecError> {
        // Steps have no containers to remove.
        Ok(())
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        if self.made.lock().remove(run).is_some() {
            self.free(self.weight.load(Ordering::Relaxed));
        }
        Ok(())
    }

    async fn answers(&self) -> Result<(), ExecError> {
        self.is_there()
    }

    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        let made = self.made.lock();
        let left = made.iter().map(|(run, made)| LeftoverRun {
            run: run.clone(),
            cluster: made.cluster.as_deref().map(str::to_owned),
        });
        Ok(left.collect())
    }
}

#[async_trait]
impl Images for Scripted {
    async fn prepare(&self, run: &RunScope, _stop: &StopSignal) -> Result<Workspace, ExecError> {
        self.is_there()?;
        if run.image == "missing" {
            return Err(ExecError::Image {
                image: run.image.clone(),
                cause: "no such image".into(),
            });
        }
        let first = self.image(&run.run, Arc::default());
        let mut made = self.made.lock();
        if let Some(made) = made.get_mut(&run.run) {
            made.cluster = Some(Arc::clone(&run.cluster));
        }
        drop(made);
        Ok(first)
    }

    async fn adopt(
        &self,
        run: &RunScope,
        kept: Option<&Checkpoint>,
    ) -> Result<Option<Workspace>, ExecError> {
        self.is_there()?;
        self.is_newest(run);
        let ended = || self.ended.lock();
        ended().insert(run.run.clone(), run.epoch);
        if kept.is_some_and(|kept| kept.digest.as_deref() == Some("hangs")) {
            std::future::pending::<()>().await;
        }
        let Some(id) = kept.map(|kept| kept.image.clone()) else { return Ok(None) };
        let mut made = self.made.lock();
        // Another run can have created the image.
        let files = made.values().find_map(|made| made.workspaces.get(&id).map(Arc::clone));
        let Some(files) = files else { return Ok(None) };
        made.entry(run.run.clone()).or_default().workspaces.insert(id.clone(), files);
        Ok(Some(Workspace::Image { id, depth: 0 }))
    }

    async fn push(
        &self,
        _run: &RunScope,
        _kept: &Workspace,
        _step: &StepSpec,
    ) -> Result<Option<String>, ExecError> {
        Ok(None)
    }

    async fn checkpoint(
        &self,
        run: &RunScope,
        left: Workspace,
        step: &StepSpec,
    ) -> Result<Workspace, ExecError> {
        let files = self.files(&run.run, &left);
        if let Some(forbidden) = &step.secrets.forbidden {
            let leaks = |text: &str| forbidden.search().finds(text.as_bytes());
            if let Some((path, _)) = files.iter().find(|(path, text)| leaks(path) || leaks(text)) {
                let (step, path) = (step.name.clone(), path.clone());
                return Err(ExecError::SecretLeak { step, path });
            }
        }
        let kept = self.image(&run.run, files);
        self.let_go(&run.run, &left);
        Ok(kept)
    }

    async fn import(
        &self,
        run: &RunScope,
        on: &Workspace,
        _at: &str,
        mut tar: ByteStream,
    ) -> Result<Workspace, ExecError> {
        while let Some(bytes) = tar.next().await {
            bytes.map_err(|cause| ExecError::Input(cause.to_string()))?;
        }
        Ok(self.image(&run.run, self.files(&run.run, on)))
    }

    async fn disk(&self) -> Result<Option<Disk>, ExecError> {
        Ok(*self.disk.lock())
    }

    async fn bases(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError> {
        let mut bases = self.bases.lock();
        for base in &mut *bases {
            if used.iter().any(|reference| base.answers_to(reference)) {
                base.used = now;
            }
        }
        bases.sort_by_key(|base| base.used.0);
        Ok(bases.clone())
    }

    async fn remove_base(&self, image: &BaseImage) -> Result<bool, ExecError> {
        let mut bases = self.bases.lock();
        bases.retain(|base| base.id != image.id);
        self.free(image.bytes);
        Ok(true)
    }

    async fn shared_volumes(&self) -> Result<Vec<String>, ExecError> {
        let volumes = self.volumes.lock();
        Ok(volumes.iter().map(|(name, _)| name.clone()).collect())
    }

    async fn remove_shared_volume(&self, name: &str) -> Result<bool, ExecError> {
        let mut volumes = self.volumes.lock();
        let found = volumes.iter().position(|(it, _)| it == name);
        if let Some(at) = found {
            self.free(volumes.remove(at).1);
        }
        Ok(true)
    }
}

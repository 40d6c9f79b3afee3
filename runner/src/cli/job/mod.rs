//! Files for users of job files: a status file and a log per job. While a run is active, each log
//! line also goes to a socket.

pub(super) mod settings;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Zoned;
use protocol::event::{Event, LogStream, Reason};
use protocol::id::{RunId, StepName};
use protocol::pipeline::{Pipeline, Template};

pub(super) use self::settings::{Settings, is_named};
use super::context::Context;
use super::exit::{Exit, Failure};
use super::output;
use crate::app;
use crate::client::{LogItem, Text};

/// Whether a pipeline was written as a job file.
pub(super) fn is_of_jobs(pipeline: &Pipeline) -> bool {
    let is_job = |step: &protocol::pipeline::Step| step.template == Some(Template::Dollar);
    !pipeline.steps.is_empty() && pipeline.steps.iter().all(is_job)
}

/// The settings for a job file. `None` for other files.
pub(super) fn settings_of(
    context: &Context,
    pipeline: &Pipeline,
    named: Option<&Path>,
    dirs: (Option<PathBuf>, Option<PathBuf>),
) -> Result<Option<Settings>, Failure> {
    if is_of_jobs(pipeline) {
        return Settings::find(named, dirs, &context.environment).map(Some);
    }
    if named.is_some() || dirs.0.is_some() || dirs.1.is_some() {
        let text = "--workdir, --log-dir and settings of jobs are for job files";
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(None)
}

/// Whether jobs can refer to each other's results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Results {
    /// References to results are filled in.
    Shared,
    /// References are not filled in.
    Kept,
}

/// For [`Results::Kept`], isolates the jobs from each other, and returns the title of each.
pub(super) fn titles(
    pipeline: &mut Pipeline,
    results: Results,
) -> Result<HashMap<StepName, String>, Failure> {
    if results == Results::Shared {
        return Ok(HashMap::new());
    }
    if !is_of_jobs(pipeline) {
        return Err(Failure::new(Exit::Invalid, "run-multi is for job files; write `run`"));
    }
    let count = pipeline.steps.len();
    let titles = pipeline.steps.iter_mut().enumerate().map(|(position, step)| {
        step.template = None;
        let executor = step.executor.as_str();
        (step.name.clone(), format!("job {} of {count}: {executor}", position + 1))
    });
    Ok(titles.collect())
}

/// The files of one job.
struct Job {
    id: String,
    /// Whether log lines have a prefix.
    is_prefixed: bool,
    log_file: PathBuf,
    log: Option<File>,
    /// The start of an unfinished line.
    unfinished: Vec<u8>,
}

/// The files of all jobs in a run.
pub(super) struct Files {
    work_dir: PathBuf,
    jobs: HashMap<StepName, Job>,
    socket: Option<UnixStream>,
}

/// Write timeout of the log socket.
const LISTENS_WITHIN: Duration = Duration::from_secs(1);

impl Files {
    /// Creates the directories, and marks every job as pending.
    pub(super) fn make(
        settings: &Settings,
        pipeline: &Pipeline,
        run: &RunId,
    ) -> Result<Self, Failure> {
        let failed = |what: &Path, cause: std::io::Error| {
            Failure::new(Exit::Failed, format!("cannot make {}: {cause}", what.display()))
        };
        std::fs::create_dir_all(&settings.log_dir)
            .map_err(|cause| failed(&settings.log_dir, cause))?;
        let mut files = Self {
            work_dir: settings.work_dir.clone(),
            jobs: HashMap::new(),
            socket: settings.log_socket.as_deref().and_then(listener),
        };
        for step in &pipeline.steps {
            let id = app::job_id(run, step);
            let dir = files.work_dir.join(&id);
            std::fs::create_dir_all(&dir).map_err(|cause| failed(&dir, cause))?;
            let log_file = settings.log_dir.join(format!("{id}.log"));
            let log = File::create(&log_file).map_err(|cause| failed(&log_file, cause))?;
            let job = Job {
                id,
                is_prefixed: step.executor.capabilities().has_own_images,
                log_file,
                log: Some(log),
                unfinished: Vec::new(),
            };
            files.jobs.insert(step.name.clone(), job);
            files.set_status(&step.name, "pending", -1);
        }
        Ok(files)
    }

    /// Updates the files for an event.
    pub(super) fn on(&mut self, item: &LogItem) {
        match item {
            LogItem::State(event) => self.state(event),
            LogItem::Text(text) => self.text(text),
            LogItem::Missing(_) => {}
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other events are of no job")]
    fn state(&mut self, event: &Event) {
        let Some(step) = event.step.clone() else { return };
        match &event.reason {
            Reason::StepStarted { .. } => {
                let Some(id) = self.jobs.get(&step).map(|job| job.id.clone()) else { return };
                self.line(&step, "INFO", &format!("Starting job {id}"));
                self.set_status(&step, "running", -1);
            }
            // The next owner of the run publishes the event again.
            Reason::StepCompleted { exit_code, repeated: false, .. } => {
                self.finish_line(&step);
                let code = exit_code.unwrap_or(1);
                let (status, level) =
                    if code == 0 { ("success", "INFO") } else { ("failed", "ERROR") };
                self.line(&step, level, &event.message);
                self.set_status(&step, status, code);
            }
            Reason::StepRetry { .. } => self.line(&step, "INFO", &event.message),
            _ => {}
        }
    }

    fn text(&mut self, text: &Text) {
        let Some(step) = text.event.step.clone() else { return };
        if text.stream == LogStream::Bob {
            let said = String::from_utf8_lossy(&text.bytes).trim_end().to_owned();
            return self.line(&step, "ERROR", &said);
        }
        let Some(job) = self.jobs.get_mut(&step) else { return };
        if !job.is_prefixed {
            let bytes = text.bytes.clone();
            return self.write(&step, &bytes);
        }
        job.unfinished.extend_from_slice(&text.bytes);
        while let Some(end) = self
            .jobs
            .get(&step)
            .and_then(|job| job.unfinished.iter().position(|byte| *byte == b'\n'))
        {
            let Some(job) = self.jobs.get_mut(&step) else { return };
            let line: Vec<u8> = job.unfinished.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            self.line(&step, "INFO", &line);
        }
    }

    fn finish_line(&mut self, step: &StepName) {
        let Some(job) = self.jobs.get_mut(step) else { return };
        let rest = std::mem::take(&mut job.unfinished);
        if !rest.is_empty() {
            self.line(step, "INFO", &String::from_utf8_lossy(&rest));
        }
    }

    /// Writes a log line in the format of the original runner.
    fn line(&mut self, step: &StepName, level: &str, text: &str) {
        let at = Zoned::now().strftime("%Y/%m/%d %H:%M:%S").to_string();
        self.write(step, format!("{level}: {at} {text}\n").as_bytes());
    }

    fn write(&mut self, step: &StepName, bytes: &[u8]) {
        if let Some(job) = self.jobs.get_mut(step)
            && let Some(log) = &mut job.log
            && let Err(cause) = log.write_all(bytes)
        {
            output::message(&format!("cannot write {}: {cause}", job.log_file.display()));
            job.log = None;
        }
        if let Some(socket) = &mut self.socket
            && let Err(cause) = socket.write_all(bytes)
        {
            output::message(&format!("the log socket no longer accepts data: {cause}"));
            self.socket = None;
        }
    }

    fn set_status(&self, step: &StepName, status: &str, exit_code: i32) {
        let Some(job) = self.jobs.get(step) else { return };
        let at = Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
        // A JSON string is also valid YAML.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let text = format!(
            "job_id: {}\nstatus: {status}\nexit_code: {exit_code}\nlog_file: {}\ntimestamp: {}\n",
            quoted(&job.id),
            quoted(&job.log_file.to_string_lossy()),
            quoted(&at),
        );
        let path = self.work_dir.join(&job.id).join("status.yaml");
        if let Err(cause) = replace(&path, text.as_bytes()) {
            output::message(&format!("cannot write {}: {cause}", path.display()));
        }
    }
}

/// Replaces a file atomically.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut new = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)?;
    new.write_all(bytes)?;
    new.persist(path)?;
    Ok(())
}

/// Connects to the log socket, which must already exist.
fn listener(path: &Path) -> Option<UnixStream> {
    let connected = UnixStream::connect(path).and_then(|socket| {
        socket.set_write_timeout(Some(LISTENS_WITHIN))?;
        Ok(socket)
    });
    connected
        .inspect_err(|cause| {
            output::message(&format!(
                "no process listens at RUNNER_LOG_SOCKET {}: {cause}; the log only goes to its file",
                path.display()
            ));
        })
        .ok()
}

//! `diff` and `shell`: inspect the images of a run's steps on this machine's engine.

use protocol::id::RunId;
use serde_json::json;

use super::context::{Context, DefaultVerbosity};
use super::exit::{Exit, Failure};
use super::output;
use super::typed::{Diff, OpenShell};
use crate::app;
use crate::app::kept::{self, Change};
use crate::client::KnownRun;
use crate::config::Config;

pub(super) async fn diff(context: &Context, typed: &Diff) -> Result<Exit, Failure> {
    let config = context.config(DefaultVerbosity::Little)?;
    let known = known(&config, &typed.run).await?;
    known.check_step(&typed.step)?;
    let kept = kept::find_commit(&known.record, Some(&typed.step)).map_err(failed)?;
    let changes = kept::changes(&config, &kept).await?;
    if context.style.json {
        let lines: Vec<_> = changes
            .iter()
            .map(|(path, change)| json!({ "path": path, "change": word(*change) }))
            .collect();
        output::document(&lines)?;
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    for (path, change) in &changes {
        let letter = match change {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Deleted => 'D',
        };
        text.push_str(&format!("{letter} {}\n", output::one_line(path)));
    }
    output::data(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// The run record: from this machine if `run` kept the run here, otherwise from the cluster.
async fn known(config: &Config, run: &RunId) -> Result<KnownRun, Failure> {
    if let Some(kept) = app::kept_run(config, run).await? {
        return Ok(kept.client().run(run).await?);
    }
    Ok(app::connect_client(config.clone())?.run(run).await?)
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Changed => "changed",
        Change::Deleted => "deleted",
    }
}

pub(super) async fn shell(context: &Context, typed: &OpenShell) -> Result<Exit, Failure> {
    let config = context.config(DefaultVerbosity::Little)?;
    let known = known(&config, &typed.run).await?;
    if let Some(step) = &typed.after {
        known.check_step(step)?;
    }
    let kept = kept::find_commit(&known.record, typed.after.as_ref()).map_err(failed)?;
    output::message(&format!("what step {} left; what is done here is not kept", kept.step));
    let words = if typed.words.is_empty() { vec!["sh".to_owned()] } else { typed.words.clone() };
    kept::shell(&config, &kept, &words).await.map_err(failed)?;
    Ok(Exit::Ok)
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn failed(cause: anyhow::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{cause:#}"))
}

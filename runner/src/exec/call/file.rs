//! Files written by a call, all below one directory.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use super::options::Options;
use super::with::StepArguments;
use crate::ports::ExecError;

/// Resolves the path of a file that a step writes. Returns its directory, and its path below that.
pub(super) fn place(
    with: StepArguments<'_>,
    options: &Options,
    path: &str,
) -> Result<(PathBuf, PathBuf), ExecError> {
    let Some(dir) = &options.files else {
        let why = "`pdf_output` is for a run with `run`: a worker keeps no files of a call; \
             leave it out, and the result holds a small PDF in base64";
        return Err(with.bad(why));
    };
    let below = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !below {
        return Err(with.bad("`pdf_output` is not a path below the working directory"));
    }
    Ok((dir.clone(), path.into()))
}

/// Writes a file atomically.
pub(super) async fn write(dir: PathBuf, path: PathBuf, bytes: Vec<u8>) -> std::io::Result<()> {
    let written = tokio::task::spawn_blocking(move || {
        let path = dir.join(path);
        let parent = path.parent().unwrap_or(&dir);
        std::fs::create_dir_all(parent)?;
        let mode = std::fs::Permissions::from_mode(0o644);
        let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(parent)?;
        file.write_all(&bytes)?;
        file.persist(&path)?;
        Ok(())
    });
    written.await.map_err(std::io::Error::other)?
}

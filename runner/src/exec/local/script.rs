//! The programs of a step, as files.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt as _;
use protocol::pipeline::Shell;
use tokio_util::io::ReaderStream;

use crate::exec::argv::FILES;
use crate::ports::{ByteStream, ExecError, Script};

/// Runs each program in its own process, because `exit` must end only that program. Variables and
/// functions carry over to the next program; the working directory does not.
const BASH: &str = r#"__bob_goes_on=$2 __bob_last=0
for ((__bob_at = 0; __bob_at < $3; __bob_at++)); do
  bash "$1/one" "$1/$__bob_at" "$1/state" "$PWD"
  __bob_code=$?
  if [ "$__bob_code" -ne 0 ]; then
    [ "$__bob_goes_on" = yes ] || exit "$__bob_code"
    __bob_last=$__bob_code
  fi
done
exit "$__bob_last"
"#;

/// Variables that are read-only in the shell itself cannot be restored, so errors are ignored.
const ONE: &str = r#"[ -e "$2" ] && . "$2" 2>/dev/null
__bob=("$@")
set --
cd -- "${__bob[2]}" || exit 1
trap '__bob_code=$?; trap - EXIT; { declare -p; declare -f; } >"${__bob[1]}" 2>/dev/null; exit "$__bob_code"' EXIT
. "${__bob[0]}"
"#;

/// Writes a script into a directory and returns the command that runs it.
pub(super) async fn write(dir: PathBuf, script: &Script) -> std::io::Result<Vec<OsString>> {
    let Script { shell, programs, goes_on } = script.clone();
    let written = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir)?;
        for (at, program) in programs.iter().enumerate() {
            std::fs::write(dir.join(at.to_string()), program)?;
        }
        let program = OsString::from(shell.program());
        if programs.len() == 1 {
            return Ok(vec![program, dir.join("0").into()]);
        }
        let all = match shell {
            Shell::Bash => {
                std::fs::write(dir.join("one"), ONE)?;
                BASH
            }
            // A plain shell cannot export functions, so one process runs all programs.
            Shell::Sh => FILES,
        };
        std::fs::write(dir.join("all"), all)?;
        let goes_on = if goes_on { "yes" } else { "no" };
        let count = programs.len().to_string().into();
        Ok(vec![program, dir.join("all").into(), dir.into(), goes_on.into(), count])
    });
    written.await.map_err(std::io::Error::other)?
}

/// A tar of a file or directory under its own name, or of the working directory's contents.
pub(super) async fn packed(path: PathBuf, asked: &str) -> Result<ByteStream, ExecError> {
    let nothing = || ExecError::NoSuchPath { path: asked.to_owned() };
    let meta = tokio::fs::symlink_metadata(&path).await.map_err(|_gone| nothing())?;
    let is_here = Path::new(asked).components().all(|part| part == Component::CurDir);
    let name = if is_here {
        PathBuf::new()
    } else {
        path.file_name().map(PathBuf::from).ok_or_else(nothing)?
    };
    let (write, read) = tokio::io::duplex(64 * 1024);
    let packing = async move {
        let mut tar = tokio_tar::Builder::new(write);
        tar.follow_symlinks(false);
        if meta.is_dir() {
            tar.append_dir_all(&name, &path).await?;
        } else {
            tar.append_path_with_name(&path, &name).await?;
        }
        tar.finish().await
    };
    // The packed bytes come first, then the error if there was one.
    let ended = futures::stream::once(packing).filter_map(|done| async { done.err().map(Err) });
    let bytes = ReaderStream::new(read);
    let both = futures::stream::select(bytes, ended.map(|done: std::io::Result<Bytes>| done));
    Ok(both.boxed())
}

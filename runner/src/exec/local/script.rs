//! The programs of a step, as files.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt as _;
use protocol::id::StepName;
use protocol::pipeline::Shell;
use tokio_util::io::ReaderStream;

use crate::ports::{ByteStream, ExecError, Script};

/// Runs one program. Its text is evaluated, so that the shell's messages begin with the name of the
/// step and not with a path. Without `cat` it is read from its file.
///
/// bash counts the lines of the text from the line of the `eval`. So each of these texts becomes
/// one line.
const ONE: &str = r#"if __bob_text=$(cat "$1" 2>/dev/null && echo .); then set --; eval "${__bob_text%.}"; else . "$1"; fi"#;

/// Runs programs in one process, because a plain shell cannot pass its functions on.
const SEVERAL: &str = r#"__bob_dir=$1 __bob_goes_on=$2 __bob_count=$3 __bob_at=0 __bob_last=0 __bob_work=$PWD;
set --;
while [ "$__bob_at" -lt "$__bob_count" ]; do
  cd "$__bob_work" || exit 1;
  if __bob_text=$(cat "$__bob_dir/$__bob_at" 2>/dev/null && echo .); then
    eval "${__bob_text%.}";
  else
    . "$__bob_dir/$__bob_at";
  fi;
  __bob_code=$?;
  if [ "$__bob_code" -ne 0 ]; then
    [ "$__bob_goes_on" = yes ] || exit "$__bob_code";
    __bob_last=$__bob_code;
  fi;
  __bob_at=$((__bob_at + 1));
done;
exit "$__bob_last""#;

/// Runs each program in a process of its own, so that `exit` ends only its own program. Variables
/// and functions are passed on, but not the working directory.
const BASH: &str = r#"__bob_goes_on=$2 __bob_last=0;
for ((__bob_at = 0; __bob_at < $3; __bob_at++)); do
  bash -c "$4" "$0" "$1/$__bob_at" "$1/state" "$PWD";
  __bob_code=$?;
  if [ "$__bob_code" -ne 0 ]; then
    [ "$__bob_goes_on" = yes ] || exit "$__bob_code";
    __bob_last=$__bob_code;
  fi;
done;
exit "$__bob_last""#;

/// Runs one program of several for bash. The shell's own read-only variables are left as they are.
const BASH_ONE: &str = r#"[ -e "$2" ] && . "$2" 2>/dev/null;
__bob=("$@");
set --;
cd -- "${__bob[2]}" || exit 1;
trap '__bob_code=$?; trap - EXIT; { declare -p; declare -f; } >"${__bob[1]}" 2>/dev/null; exit "$__bob_code"' EXIT;
eval "$(<"${__bob[0]}")""#;

/// Writes the programs of a step into a directory, and returns the words that run them. The words
/// hold no text of the step.
pub(super) async fn write(
    step: &StepName,
    dir: PathBuf,
    script: &Script,
) -> std::io::Result<Vec<OsString>> {
    let Script { shell, programs, goes_on } = script.clone();
    let name = step.as_str().to_owned();
    let written = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir)?;
        for (at, program) in programs.iter().enumerate() {
            std::fs::write(dir.join(at.to_string()), program)?;
        }
        let words = |text: &str, rest: Vec<OsString>| {
            let text = text.replace('\n', " ");
            let first = [shell.program(), "-c", &text, &name].map(OsString::from);
            first.into_iter().chain(rest).collect::<Vec<_>>()
        };
        if programs.len() == 1 {
            return Ok(words(ONE, vec![dir.join("0").into()]));
        }
        let goes_on = if goes_on { "yes" } else { "no" };
        let rest = vec![dir.into(), goes_on.into(), programs.len().to_string().into()];
        Ok(match shell {
            Shell::Bash => {
                words(BASH, rest.into_iter().chain([BASH_ONE.replace('\n', " ").into()]).collect())
            }
            Shell::Sh => words(SEVERAL, rest),
        })
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

//! The arguments that a container is started with, and the files that they read.
//!
//! The engine receives all arguments in one list. It cannot mix in the image's own entrypoint or
//! command, however it treats an empty list.

use crate::ports::{ExecError, Script, StepSpec};

/// The directory of a script's files in a container. It is a mount point below `/dev`, which is in
/// memory, so nothing of it remains in an image.
pub(super) const SCRIPT_DIR: &str = "/dev/bob-script";
/// Scripts longer than this, in bytes, are read from files. The kernel accepts at most 32 pages in
/// one argument, and an engine may add a few arguments of its own.
const INLINE_BYTES: usize = 64 * 1024;
/// The maximum size in bytes of all arguments and variables together that Linux ever accepts. A
/// container's limit can be lower; the engine then reports it.
const MAX_TOTAL_BYTES: usize = 6 << 20;

/// Runs programs in one shell, each from the step's directory.
const PROGRAMS: &str = r#"__bob_goes_on=$1 __bob_last=0 __bob_work=$PWD; shift
for __bob_program in "$@"; do
  cd "$__bob_work" || exit 1
  eval "$__bob_program"
  __bob_code=$?
  if [ "$__bob_code" -ne 0 ]; then
    [ "$__bob_goes_on" = yes ] || exit "$__bob_code"
    __bob_last=$__bob_code
  fi
done
exit "$__bob_last""#;

/// Runs programs from files in one shell, each from the step's directory.
const FILES: &str = r#"__bob_dir=$1 __bob_goes_on=$2 __bob_count=$3 __bob_at=0 __bob_last=0 __bob_work=$PWD
set --
while [ "$__bob_at" -lt "$__bob_count" ]; do
  cd "$__bob_work" || exit 1
  . "$__bob_dir/$__bob_at"
  __bob_code=$?
  if [ "$__bob_code" -ne 0 ]; then
    [ "$__bob_goes_on" = yes ] || exit "$__bob_code"
    __bob_last=$__bob_code
  fi
  __bob_at=$((__bob_at + 1))
done
exit "$__bob_last"
"#;

/// The arguments and script files of a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Argv {
    /// All arguments: the entrypoint and the command.
    pub(super) words: Vec<String>,
    /// The files of the script, by their names in [`SCRIPT_DIR`].
    pub(super) files: Vec<(String, String)>,
}

impl Argv {
    /// The arguments of a step on an image with the entrypoint `image`.
    pub(super) fn of(step: &StepSpec, image: &[String]) -> Self {
        let (command, files) = match &step.script {
            Some(script) => script_words(script),
            None => (step.words.clone(), Vec::new()),
        };
        let entrypoint = match (&step.entrypoint, &step.script) {
            (Some(own), _) => own.clone(),
            // The script's shell replaces the entrypoint. An entrypoint that is itself a shell
            // would take the script as its own arguments and succeed without running it.
            (None, Some(_)) => Vec::new(),
            (None, None) => image.to_vec(),
        };
        Self { words: [entrypoint, command].concat(), files }
    }

    /// The program that the words start.
    pub(super) fn program(&self) -> String {
        self.words.first().cloned().unwrap_or_default()
    }

    /// Prefixes the arguments with `first`, which ends in `exec "$@"`.
    pub(super) fn behind(mut self, first: Option<Vec<String>>) -> Self {
        self.words = [first.unwrap_or_default(), self.words].concat();
        self
    }
}

fn script_words(script: &Script) -> (Vec<String>, Vec<(String, String)>) {
    let Script { shell, programs, goes_on } = script;
    let shell = shell.program().to_owned();
    let goes_on = if *goes_on { "yes" } else { "no" }.to_owned();
    if programs.iter().map(String::len).sum::<usize>() <= INLINE_BYTES {
        if let [only] = &programs[..] {
            return (vec![shell, "-c".to_owned(), only.clone()], Vec::new());
        }
        let mut words = vec![shell.clone(), "-c".to_owned(), PROGRAMS.to_owned(), shell, goes_on];
        words.extend(programs.iter().cloned());
        return (words, Vec::new());
    }
    let name = |(at, program): (usize, &String)| (at.to_string(), program.clone());
    let files: Vec<_> = programs.iter().enumerate().map(name).collect();
    let dir = SCRIPT_DIR.to_owned();
    if files.len() == 1 {
        return (vec![shell, format!("{dir}/0")], files);
    }
    let count = files.len().to_string();
    (vec![shell.clone(), "-c".to_owned(), FILES.to_owned(), shell, dir, goes_on, count], files)
}

/// Rejects arguments and variables that no kernel accepts, before anything is created. An engine
/// reports them only when it starts the container, on the step's own standard error.
pub(super) fn check_length(step: &StepSpec, words: &[String]) -> Result<(), ExecError> {
    let refused = |cause: String| {
        Err(ExecError::Start { step: step.name.clone(), cause, code: TOO_LONG_CODE })
    };
    let most = rustix::param::page_size() * 32 - 1;
    let advice = "use `script`, which may be longer, or a file";
    if let Some((at, word)) = words.iter().enumerate().find(|(_, word)| word.len() > most) {
        return refused(format!(
            "word {} of its command has {} bytes, and the kernel takes at most {most} in one word: {advice}",
            at + 1,
            word.len()
        ));
    }
    let pair = |name: &str, value: &str| name.len() + 1 + value.len();
    if let Some((name, value)) = step.env.iter().find(|(name, value)| pair(name, value) > most) {
        return refused(format!(
            "variable {name} has {} bytes with its name, and the kernel takes at most {most} in one variable: use a file",
            pair(name, value)
        ));
    }
    let of_words = words.iter().map(String::len);
    let of_env = step.env.iter().map(|(name, value)| pair(name, value));
    let total: usize = of_words.chain(of_env).map(|bytes| bytes + 1 + size_of::<usize>()).sum();
    if total > MAX_TOTAL_BYTES {
        return refused(format!(
            "its command and variables have {total} bytes together, and the kernel takes at most {MAX_TOTAL_BYTES}: {advice}"
        ));
    }
    Ok(())
}

/// The exit code of a shell that cannot execute an existing command.
pub(super) const TOO_LONG_CODE: i32 = 126;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::job::tests::docker_step;
    use protocol::pipeline::{Shell, Vars};
    use serde_json::json;

    fn step() -> StepSpec {
        docker_step(json!({ "image": "i" }))
    }

    fn script(programs: &[&str]) -> StepSpec {
        let programs = programs.iter().map(|program| (*program).to_owned()).collect();
        let script = Script { shell: Shell::Sh, programs, goes_on: false };
        StepSpec { script: Some(script), words: Vec::new(), ..step() }
    }

    fn words(step: &StepSpec, image: &[&str]) -> Vec<String> {
        let image: Vec<String> = image.iter().map(|word| (*word).to_owned()).collect();
        Argv::of(step, &image).words
    }

    #[test]
    fn a_command_follows_the_images_entrypoint_and_a_script_replaces_it() {
        assert_eq!(words(&step(), &["sh", "-c"]), ["sh", "-c", "make", "all"]);
        assert_eq!(words(&script(&["exit 7"]), &["sh", "-c"]), ["sh", "-c", "exit 7"]);
        assert_eq!(words(&script(&["exit 7"]), &["true"]), ["sh", "-c", "exit 7"]);
    }

    #[test]
    fn an_entrypoint_of_the_step_counts_for_both() {
        let own = Some(vec!["tini".to_owned(), "--".to_owned()]);
        let with = |step: StepSpec| StepSpec { entrypoint: own.clone(), ..step };
        assert_eq!(words(&with(step()), &["/entry"]), ["tini", "--", "make", "all"]);
        assert_eq!(words(&with(script(&["x"])), &["/entry"]), ["tini", "--", "sh", "-c", "x"]);
        let none = StepSpec { entrypoint: Some(Vec::new()), ..step() };
        assert_eq!(words(&none, &["/entry"]), ["make", "all"]);
    }

    #[test]
    fn a_long_script_is_read_from_files_and_a_short_one_is_not() {
        let long = "#".repeat(INLINE_BYTES + 1);
        let one = Argv::of(&script(&[&long]), &["/entry".to_owned()]);
        assert_eq!(one.words, ["sh", "/dev/bob-script/0"]);
        assert_eq!(one.files, [("0".to_owned(), long.clone())]);
        let several = Argv::of(&script(&["a", &long]), &[]);
        assert_eq!(several.words[4..], ["/dev/bob-script", "no", "2"]);
        assert_eq!(several.files.len(), 2);
        assert!(Argv::of(&script(&["a", "b"]), &[]).files.is_empty());
        assert!(check_length(&script(&[&long]), &several.words).is_ok());
    }

    #[test]
    fn words_and_variables_that_the_kernel_refuses_are_named_without_their_text() {
        let long = "s3cret".repeat(400_000);
        let said = |step: &StepSpec, words: &[String]| match check_length(step, words) {
            Err(ExecError::Start { cause, code, .. }) => {
                assert_eq!(code, 126);
                assert!(!cause.contains("s3cret"), "{cause:.200}");
                cause
            }
            other => panic!("{other:?}"),
        };
        let words = ["echo".to_owned(), long.clone()];
        assert!(said(&step(), &words).contains("word 2 of its command has 2400000 bytes"));
        let env = Vars::from([("TEXT".to_owned(), long)]);
        let step = StepSpec { env, ..step() };
        assert!(said(&step, &words[..1]).contains("variable TEXT has 2400005 bytes"));
        let many = vec!["x".repeat(100_000); 70];
        assert!(said(&super::tests::step(), &many).contains("together"));
        assert!(check_length(&super::tests::step(), &many[..10]).is_ok());
    }
}

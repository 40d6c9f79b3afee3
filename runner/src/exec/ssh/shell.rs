//! The script sent to the host's shell: two lines on its standard input.
//!
//! The first line prepares the host before the step may start: it prints the mark on both streams
//! and waits. The second line is the step; nothing of it is in an argument list on either side.
//! Each further line requests a signal. The end of the input ends the step, because that is how the
//! host notices a lost worker or connection.

use protocol::pipeline::Shell;

use crate::ports::{Script, StepSpec};

/// The command passed to `ssh`. Any login shell can run it, because it uses no syntax that shells
/// interpret differently.
pub(super) const COMMAND: &str = r#"exec sh -c 'IFS= read -r bob && eval "$bob"'"#;

/// Runs the step in its own session, so that a signal reaches all its processes, while another
/// process reads requests. The step is not a background job, because it would ignore SIGINT. File
/// descriptors: 3 carries requests, 4 reports from the step's shell, 5 and 6 the step's output.
/// Uses only forms of `kill` that dash and busybox support.
const AROUND: &str = r#"
exec 3<&0 5>&1 6>&2 2>/dev/null;
printf "%s ready\n" "$mark" >&5;
printf "%s ready\n" "$mark" >&6;
{
  if command -v setsid >/dev/null; then
    ( exec setsid "$shell" -c "$inner" 4>&1 >&5 2>&6 5>&- 6>&- );
  else
    set -m;
    ( exec "$shell" -c "$inner" 4>&1 >&5 2>&6 5>&- 6>&- );
  fi;
  echo "code $?";
} | {
  code= reader= how=broke;
  while [ -z "$code" ] && IFS=" " read -r what value; do
    case $what in
      group)
        how=end group=$value;
        {
          while IFS= read -r signal; do
            case $signal in TERM|KILL) kill "-$signal" "-$group";; esac;
          done;
          kill -KILL "-$group";
        } <&3 >/dev/null 3<&- 5>&- 6>&- &
        reader=$!;
      ;;
      code) code=$value;;
      missing|nodir|nogroup) how=$what;;
    esac;
  done;
  if [ -n "$reader" ]; then
    kill -KILL "$reader";
    wait "$reader";
    kill -KILL "-$group";
  fi;
  printf "%s %s %s\n" "$mark" "$how" "$code" >&5;
  printf "%s %s %s\n" "$mark" "$how" "$code" >&6;
}
"#;

/// The step's own shell. It reads exactly the second line and no byte after it.
const INNER: &str = r#"IFS= read -r __bob_line <&3 || exit 255; eval "$__bob_line""#;

/// Set up before the step: an empty input, and a process group that only its signals reach.
const BEGIN: &str = concat!(
    "unset __bob_line; exec 3<&- </dev/null; ",
    r#"__bob_n=$(printf "\n."); __bob_n=${__bob_n%.}; "#,
    r#"kill -0 "-$$" 2>/dev/null || { echo nogroup >&4; exit 126; }; "#,
);

/// From here on the step runs.
const STARTED: &str = r#"echo "group $$" >&4; exec 4>&-; "#;

/// Runs the programs in one process, as the executor `local` does for a plain shell.
const FIRST: &str = "__bob_work=$PWD __bob_last=0; ";

/// The first line, which prepares the host.
pub(super) fn ready(mark: &str, shell: Shell) -> String {
    let around: Vec<&str> = AROUND.lines().map(str::trim).collect();
    let shell = shell.program();
    format!("mark={mark}; shell={shell}; inner='{INNER}';{}\n", around.join(" "))
}

/// The shell of a step.
pub(super) fn of(step: &StepSpec) -> Shell {
    step.script.as_ref().map(|script| script.shell).unwrap_or_default()
}

/// The second line, which runs the step. The error says why the step cannot be written as a line.
pub(super) fn step(step: &StepSpec) -> Result<String, String> {
    let mut line = BEGIN.to_owned();
    for (name, value) in &step.env {
        if !is_name(name) {
            return Err(format!("the variable {name:?} has a name that no shell knows"));
        }
        line += &format!("export {name}={}; ", quoted(value));
    }
    if let Some(dir) = &step.work_dir {
        let dir = quoted(dir);
        line += &format!("cd -- {dir} 2>/dev/null || {{ echo nodir >&4; exit 126; }}; ");
    }
    match &step.script {
        None => {
            let words: Vec<String> = step.words.iter().map(|word| quoted(word)).collect();
            let program = words.first().ok_or("there is nothing to run")?;
            line += &format!(
                "command -v -- {program} >/dev/null 2>&1 || {{ echo missing >&4; exit 127; }}; \
                 {STARTED}exec {}",
                words.join(" ")
            );
        }
        Some(script) => line += &programs(script)?,
    }
    if line.contains('\0') {
        return Err("the command or a variable has a NUL character".to_owned());
    }
    line.push('\n');
    Ok(line)
}

fn programs(script: &Script) -> Result<String, String> {
    let Script { shell, programs, goes_on } = script;
    if let [program] = programs.as_slice() {
        return Ok(format!("{STARTED}eval {}", quoted(program)));
    }
    match shell {
        Shell::Sh => {}
        Shell::Bash => {
            let why = "several programs of bash are not run on another host: \
                       write them as one, or let `shell` be sh";
            return Err(why.to_owned());
        }
    }
    let mut line = format!("{STARTED}{FIRST}");
    let failed = if *goes_on { "__bob_last=$__bob_code" } else { r#"exit "$__bob_code""# };
    for program in programs {
        line += &format!(
            r#"cd "$__bob_work" || exit 1; eval {}; __bob_code=$?; [ "$__bob_code" -eq 0 ] || {failed}; "#,
            quoted(program)
        );
    }
    line += r#"exit "$__bob_last""#;
    Ok(line)
}

/// Quotes a word for the shell on one line.
fn quoted(text: &str) -> String {
    let inside = text.replace('\'', r"'\''").replace('\n', r#"'"$__bob_n"'"#);
    format!("'{inside}'")
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars().all(fits) && text.chars().next().is_some_and(|first| !first.is_ascii_digit())
}

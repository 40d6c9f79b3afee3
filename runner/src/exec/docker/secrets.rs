//! Passes a step's secrets into its container.
//!
//! A Docker engine mounts a tmpfs only when it starts the container, so an archive uploaded before
//! the start does not reach it. Therefore a shell in front of the command reads the secrets from
//! standard input and writes them to files in memory. It then starts the command with an empty
//! input. No secret is in the engine's description of the container or on its disk. The image needs
//! `sh`. This is not possible with a terminal, because it would echo its input.

use std::fmt::Write as _;

use crate::exec::secrets_dir::{DIR, exports};
use crate::ports::{ExecError, StepSecret, StepSpec};

/// Reads pairs of lines, a name and the `printf %b` form of its value, until an empty name.
const RECEIVE: &str = r#"__bob_mask=$(umask) && umask 0377 || exit 126
while IFS= read -r __bob_name && [ -n "$__bob_name" ]; do
  IFS= read -r __bob_value && printf %b "$__bob_value" >"$__bob_dir/$__bob_name" || exit 126
done
umask "$__bob_mask" || exit 126
unset __bob_mask __bob_name __bob_value __bob_dir
"#;

/// The command prefix that receives secrets.
pub(super) fn receiving(given: &[StepSecret]) -> Vec<String> {
    let exports = exports(given);
    let program = format!("__bob_dir={DIR}\n{RECEIVE}{exports}exec \"$@\" </dev/null");
    ["sh", "-c", &program, "sh"].map(str::to_owned).to_vec()
}

/// The secrets in the format that the receiving shell reads.
pub(super) fn written(given: &[StepSecret]) -> Vec<u8> {
    let mut text = String::new();
    for StepSecret { name, value, .. } in given {
        text.push_str(name);
        text.push('\n');
        for byte in value.expose() {
            if byte.is_ascii_alphanumeric() {
                text.push(char::from(*byte));
            } else {
                // Writing to a `String` cannot fail.
                write!(text, "\\0{byte:03o}").ok();
            }
        }
        text.push('\n');
    }
    text.push('\n');
    text.into_bytes()
}

/// Checks that a step can receive its secrets.
pub(super) fn can_be_given(step: &StepSpec, has_tty: bool) -> Result<(), ExecError> {
    if step.secrets.granted.is_empty() || !has_tty {
        return Ok(());
    }
    Err(ExecError::Unsupported(format!(
        "step {} has a terminal and secrets, and a Docker engine can hand it none without showing them: leave `tty` out, or unset BOB_DOCKER_URL to have podman run it",
        step.name
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::job::tests::docker_step;
    use crate::ports::{Secret, StepSecrets};
    use serde_json::json;

    fn given(value: &[u8]) -> Vec<StepSecret> {
        vec![StepSecret { name: "a b".into(), env: Some("A".into()), value: Secret::new(value) }]
    }

    #[test]
    fn the_command_says_nothing_of_a_secret_and_the_input_every_byte_of_it() {
        let words = receiving(&given(b"hunter2"));
        assert!(words[2].ends_with("exec \"$@\" </dev/null"), "{words:?}");
        assert!(!words.concat().contains("hunter2"));
        let written = String::from_utf8(written(&given(b"a\n\\0\xff"))).unwrap();
        assert_eq!(written, "a b\na\\0012\\01340\\0377\n\n");
    }

    #[test]
    fn a_step_with_a_terminal_is_given_none() {
        let with = json!({ "image": "i", "tty": true });
        let secrets = StepSecrets { granted: given(b"x"), forbidden: None };
        let step = StepSpec { secrets, ..docker_step(with) };
        let said = can_be_given(&step, true).unwrap_err().to_string();
        assert!(said.contains(step.name.as_str()) && said.contains("tty"), "{said}");
        assert!(can_be_given(&step, false).is_ok());
    }
}

//! How a command in a container receives its secrets, on any engine.

use protocol::shell;

use crate::ports::StepSecret;

/// The directory of a step's secrets in its container.
pub(super) const DIR: &str = "/run/secrets";

/// Shell lines that export the secrets as variables. They read the files in [`DIR`].
pub(super) fn exports(given: &[StepSecret]) -> String {
    let lines = given.iter().filter_map(|given| {
        let variable = given.env.as_ref()?;
        let file = shell::join(&[format!("{DIR}/{}", given.name)]);
        // Command substitution strips trailing newlines, so a dot is added and removed again.
        Some(format!(
            "{variable}=$(cat {file} && echo .) && {variable}=${{{variable}%.}} && export {variable} || exit 126\n"
        ))
    });
    lines.collect()
}

/// A command prefix that exports secrets as variables. Setting them through the engine would reveal
/// them in its description of the container.
pub(super) fn exporting(given: &[StepSecret]) -> Option<Vec<String>> {
    let lines = exports(given);
    let program = format!("{lines}exec \"$@\"");
    (!lines.is_empty()).then(|| ["sh", "-c", &program, "sh"].map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Secret;

    fn given(name: &str, env: Option<&str>) -> StepSecret {
        let (name, env) = (name.to_owned(), env.map(str::to_owned));
        StepSecret { name, env, value: Secret::new(*b"hunter2") }
    }

    #[test]
    fn a_command_goes_through_a_shell_only_where_a_variable_is_asked_for() {
        assert_eq!(exporting(&[given("a", None)]), None);
        let words = exporting(&[given("a", None), given("it's b", Some("B"))]).unwrap();
        assert!(words[2].starts_with("B=$(cat ") && words[2].contains("B=${B%.}"), "{words:?}");
        assert!(words[2].ends_with("exec \"$@\"") && !words.concat().contains("hunter2"));
    }
}

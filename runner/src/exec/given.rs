//! How a command in a container comes to its secrets, whatever engine it runs on.

use protocol::shell;

use crate::ports::Given;

/// Where a step has its secrets.
pub(super) const DIR: &str = "/run/secrets";

/// The lines of a shell that make variables of secrets which lie there as files.
pub(super) fn exports(given: &[Given]) -> String {
    let lines = given.iter().filter_map(|given| {
        let variable = given.env.as_ref()?;
        let file = shell::join(&[format!("{DIR}/{}", given.name)]);
        // What a shell reads so loses the newlines at its end: there is a dot behind them.
        Some(format!(
            "{variable}=$(cat {file} && echo .) && {variable}=${{{variable}%.}} && export {variable} || exit 126\n"
        ))
    });
    lines.collect()
}

/// What a command goes through that wants secrets as variables: a shell that reads them. Said to the
/// engine, they would be in its description of the container.
pub(super) fn exporting(given: &[Given]) -> Option<Vec<String>> {
    let lines = exports(given);
    let program = format!("{lines}exec \"$@\"");
    (!lines.is_empty()).then(|| ["sh", "-c", &program, "sh"].map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Secret;

    fn given(name: &str, env: Option<&str>) -> Given {
        let (name, env) = (name.to_owned(), env.map(str::to_owned));
        Given { name, env, value: Secret::new(*b"hunter2") }
    }

    #[test]
    fn a_command_goes_through_a_shell_only_where_a_variable_is_asked_for() {
        assert_eq!(exporting(&[given("a", None)]), None);
        let words = exporting(&[given("a", None), given("it's b", Some("B"))]).unwrap();
        assert!(words[2].starts_with("B=$(cat ") && words[2].contains("B=${B%.}"), "{words:?}");
        assert!(words[2].ends_with("exec \"$@\"") && !words.concat().contains("hunter2"));
    }
}

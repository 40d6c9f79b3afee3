//! `version`, `schema`, `settings`, `completions`: information about the program itself.

use clap::CommandFactory as _;
use protocol::schema;
use serde_json::json;

use super::args::Typed;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{self, Table, TextStyle};
use super::typed::Shell;
use super::values::Document;
use super::version::{COMMIT, title};

pub(super) fn version(context: &Context) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let commit = COMMIT.unwrap_or("unknown");
    let protocol = schema::VERSION;
    if context.style.json {
        let all = json!({ "version": version, "commit": commit, "protocol": protocol });
        output::document(&all)?;
    } else {
        output::line(&format!("bob-runner {}", title()))?;
    }
    Ok(Exit::Ok)
}

pub(super) fn schema(what: Document) -> Result<Exit, Failure> {
    match what {
        Document::Schema(what) => output::document(&schema::schema(what))?,
        Document::Openapi => output::document(&crate::app::openapi())?,
    }
    Ok(Exit::Ok)
}

pub(super) fn settings(context: &Context) -> Result<Exit, Failure> {
    let loaded = context.loaded()?;
    for warning in &loaded.warnings {
        context.warn(warning);
    }
    if context.style.json {
        let all: Vec<_> = loaded
            .effective
            .iter()
            .map(|effective| {
                json!({
                    "name": effective.setting.name,
                    "variable": effective.setting.variable,
                    "value": effective.value,
                    "from": effective.at,
                })
            })
            .collect();
        output::document(&all)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]);
    for effective in &loaded.effective {
        let (value, ink) = match (&effective.value, effective.setting.default_in_words) {
            (Some(value), _) => (output::one_line(value), TextStyle::Plain),
            (None, Some(words)) => (words.replace('`', ""), TextStyle::Dim),
            (None, None) => ("not set".to_owned(), TextStyle::Dim),
        };
        let from = effective.at.clone().unwrap_or_else(|| "default".to_owned());
        let from_ink = if effective.at.is_some() { TextStyle::Cyan } else { TextStyle::Dim };
        table.row(vec![
            (effective.setting.name.to_owned(), TextStyle::Plain),
            (value, ink),
            (from, from_ink),
        ]);
    }
    output::data(table.render(context.style.colour).as_bytes())?;
    Ok(Exit::Ok)
}

pub(super) fn completions(shell: Shell) -> Result<Exit, Failure> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Typed::command(), "bob-runner", &mut script);
    output::data(&script)?;
    Ok(Exit::Ok)
}

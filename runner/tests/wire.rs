//! The tables of `docs/wire.md` name the commands, options, exit codes and settings of the program.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../protocol/tests/tables/mod.rs"]
mod tables;

use clap::{Arg, Command};
use protocol::pipeline::Token;
use runner::cli::{Exit, command_line};
use runner::config::setting::{SETTINGS, ValueForm};
use runner::rules::callback::Notification;
use serde_json::json;

use tables::{Table, check, code, list, names, page, table};

#[test]
fn the_tables_of_the_wire_contract_match_the_program() {
    let program = command_line();
    let global: Vec<&Arg> = program.get_arguments().filter(|arg| arg.is_global_set()).collect();
    let global = names("runner/global options", global.iter().map(|arg| code(&option(arg))));
    let mut commands = Vec::new();
    for command in program.get_subcommands().filter(|it| it.get_name() != INTERNAL) {
        rows_of(command, "", &mut commands);
    }
    check("runner/", &[global, table("runner/commands", commands), exit_codes(), outbox_entry()]);
}

/// A command that only bob-runner itself starts.
const INTERNAL: &str = "guard";

/// A row for each command below a command.
fn rows_of(command: &Command, path: &str, rows: &mut Vec<Vec<String>>) {
    let path = format!("{path}{}", command.get_name());
    if command.has_subcommands() {
        for command in command.get_subcommands() {
            rows_of(command, &format!("{path} "), rows);
        }
        return;
    }
    let arguments = || command.get_arguments().filter(|arg| !arg.is_hide_set());
    let positional =
        |arg: &Arg| if arg.is_last_set() { format!("-- {arg}") } else { arg.to_string() };
    let positionals = arguments().filter(|arg| arg.is_positional()).map(positional);
    let usage: Vec<String> = [path].into_iter().chain(positionals).collect();
    let options = arguments().filter(|arg| !arg.is_positional()).map(option);
    rows.push(vec![code(&usage.join(" ")), list(options)]);
}

/// An option as it is typed: `-f, --follow`, `--var NAME=VALUE`.
fn option(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let value = arg.get_value_names().filter(|_| arg.get_action().takes_values());
    let value = value.map(|names| format!(" {}", names.join(" "))).unwrap_or_default();
    format!("{short}--{}{value}", arg.get_long().unwrap())
}

fn exit_codes() -> Table {
    let mut codes = vec![Exit::Ok];
    while let Some(next) = next(*codes.last().unwrap()) {
        codes.push(next);
    }
    names("runner/exit codes", codes.into_iter().map(|exit| (exit as u8).to_string()))
}

/// Lists the exit codes one by one, so that the compiler reports a missing one.
fn next(exit: Exit) -> Option<Exit> {
    match exit {
        Exit::Ok => Some(Exit::Failed),
        Exit::Failed => Some(Exit::Usage),
        Exit::Usage => Some(Exit::Stopped),
        Exit::Stopped => Some(Exit::Invalid),
        Exit::Invalid => Some(Exit::Unavailable),
        Exit::Unavailable => Some(Exit::Settings),
        Exit::Settings => Some(Exit::Interrupted),
        Exit::Interrupted => Some(Exit::Terminated),
        Exit::Terminated => None,
    }
}

fn outbox_entry() -> Table {
    let mut entry = Notification {
        pipeline: ("g".into(), "n".into()),
        trusted: true,
        url: "http://h".into(),
        secret: Some(Token::Literal("s".into())),
        body: json!({}),
        tries: 1,
        since: 0,
        due: 0,
    };
    let all = serde_json::to_value(&entry).unwrap();
    (entry.secret, entry.trusted) = (None, false);
    let least = serde_json::to_value(&entry).unwrap();
    let mark = |name: &str| if least.get(name).is_some() { "" } else { "?" };
    let fields = all.as_object().unwrap().keys();
    let fields = fields.map(|name| code(&format!("{name}{}", mark(name))));
    names("runner/outbox entry", fields)
}

/// Variables of bob-runner that are not settings, and prefixes of variables.
const OTHERS: [&str; 4] = ["BOB_CONFIG", "BOB_SECRETS", "BOB_SECRET_", "BOB_"];

#[test]
fn every_variable_that_the_wire_contract_names_exists() {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let page = page();
    let named = page.split(|c| !is_part(c)).filter(|word| word.starts_with("BOB_"));
    for variable in named {
        let is_setting = SETTINGS.iter().any(|setting| {
            let is_file = setting.form == ValueForm::Secret && setting.file_variable() == variable;
            setting.variable == variable || is_file
        });
        assert!(is_setting || OTHERS.contains(&variable), "{variable} does not exist");
    }
}

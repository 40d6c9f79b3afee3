//! `validate`, `plan`, and reading pipeline files for other commands.

use protocol::diagnostic::{Class, Diagnostic};
use protocol::dialect::{self, Dialect, Parsed};
use protocol::pipeline::Pipeline;

use super::args::{Plan, Validate};
use super::context::{Context, DefaultVerbosity};
use super::exit::{Exit, Failure};
use super::folder;
use super::input::{STDIN, bytes_of, shown_name};
use super::output::{self, Style, TextStyle};
use crate::app::doctor;
use crate::config::LiteralSecrets;

/// A pipeline file, or a directory of prunner files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'s> {
    pub(super) file: &'s str,
    /// The dialect, if given on the command line.
    pub(super) dialect: Option<Dialect>,
    /// The glob for files in a directory, if given on the command line.
    pub(super) pattern: Option<&'s str>,
}

/// Parses a file or a directory. Standard input has no name from which to detect the dialect.
fn parsed(context: &Context, source: Source<'_>) -> Result<Parsed, Failure> {
    let Source { file, dialect, pattern } = source;
    let is_folder = folder::is_directory(file);
    let wrong = |text: String| Err(Failure::new(Exit::Usage, text));
    match dialect {
        Some(Dialect::Prunner) | None if is_folder => {
            return folder::parsed(file, pattern, &context.environment);
        }
        Some(_) if is_folder => {
            return wrong(format!(
                "{file} is a directory, which only prunner's files are read from"
            ));
        }
        Some(_) | None if pattern.is_some() => {
            return wrong(format!(
                "--pattern is for a directory, and {} is none",
                shown_name(file)
            ));
        }
        Some(_) | None => {}
    }
    let bytes = bytes_of(file)?;
    if file != "-" {
        return Ok(dialect::parse_as(dialect, Some(file), &bytes));
    }
    let mut parsed = dialect::parse_as(dialect, None, &bytes);
    for fault in &mut parsed.diagnostics {
        fault.file = Some(STDIN.to_owned());
    }
    Ok(parsed)
}

/// The pipelines of a file to store. Reports all diagnostics first.
pub(super) fn to_store(context: &Context, file: &str) -> Result<Vec<Pipeline>, Failure> {
    let source = Source { file, dialect: None, pattern: None };
    used(context, to_leave(context, source)?, |_| true)
}

/// Parses a file that is sent to the cluster. Clear-text secrets are errors, so that nobody else
/// can read them there.
fn to_leave(context: &Context, source: Source<'_>) -> Result<Parsed, Failure> {
    let mut parsed = parsed(context, source)?;
    if parsed.has_literal_secrets()
        && context.own_config(DefaultVerbosity::Little)?.worker.literal_secrets
            == LiteralSecrets::Reject
    {
        parsed.refuse_literal_secrets("set BOB_LITERAL_SECRETS=allow here and on the workers");
    }
    Ok(parsed)
}

/// Reports the diagnostics for which `matters` returns `true`, and fails if one of them is an
/// error.
fn used(
    context: &Context,
    parsed: Parsed,
    matters: impl Fn(&Diagnostic) -> bool,
) -> Result<Vec<Pipeline>, Failure> {
    let faults: Vec<_> = parsed.diagnostics.into_iter().filter(matters).collect();
    for fault in &faults {
        output::message(&format_diagnostic(fault, context.style.colour_err));
    }
    if faults.iter().any(|fault| fault.class.is_refusal()) {
        return Err(Failure::already_reported(Exit::Invalid));
    }
    Ok(parsed.pipelines)
}

/// The pipeline of a file to run locally, and its dialect: the one with that name, or the only one.
pub(super) fn to_run(
    context: &Context,
    source: Source<'_>,
    name: Option<&str>,
) -> Result<(Pipeline, Option<Dialect>), Failure> {
    let parsed = parsed(context, source)?;
    let dialect = parsed.dialect;
    let found = one_of(context, (source.file, name), parsed)?;
    Ok((found, dialect))
}

/// The pipeline of a file to submit: the one with that name, or the only one. `alone` removes the
/// settings about several runs.
pub(super) fn to_send(
    context: &Context,
    source: Source<'_>,
    name: Option<&str>,
    alone: bool,
) -> Result<Pipeline, Failure> {
    let mut found = one_of(context, (source.file, name), to_leave(context, source)?)?;
    if alone {
        found.admission = None;
        found.retention_count = None;
    }
    Ok(found)
}

fn one_of(
    context: &Context,
    (file, name): (&str, Option<&str>),
    parsed: Parsed,
) -> Result<Pipeline, Failure> {
    let named: Vec<String> = parsed.pipelines.iter().map(|one| one.name.clone()).collect();
    let chosen = match name {
        Some(name) => Some(name),
        None => match &named[..] {
            [only] => Some(only.as_str()),
            _ => None,
        },
    };
    // Unsupported parts of other pipelines do not matter.
    let is_of = |fault: &Diagnostic| {
        let path = fault.path.strip_prefix("pipelines.");
        path.is_none_or(|path| Some(path) == chosen)
    };
    let pipelines = used(context, parsed, |fault| fault.class == Class::Error || is_of(fault))?;
    let found = pipelines.into_iter().find(|one| Some(one.name.as_str()) == chosen);
    found.ok_or_else(|| {
        let (shown, all) = (shown_name(file), named.join(", "));
        let text = match name {
            _ if named.is_empty() => format!("{shown} holds no pipeline"),
            Some(name) => format!("{shown} holds no pipeline {name:?}; it holds {all}"),
            None => format!("{shown} holds several pipelines: say which with --pipeline: {all}"),
        };
        Failure::new(Exit::Invalid, text)
    })
}

fn format_diagnostic(fault: &Diagnostic, colour: bool) -> String {
    let ink = match fault.class {
        Class::Error | Class::Unsupported => TextStyle::Red,
        Class::Warning => TextStyle::Yellow,
    };
    ink.paint(&output::one_line(&fault.to_string()), colour)
}

pub(super) async fn validate(context: &Context, typed: &Validate) -> Result<Exit, Failure> {
    let host = if typed.here {
        let config = context.config(DefaultVerbosity::Little)?;
        Some(doctor::abilities(&config.engine).await?)
    } else {
        None
    };
    let mut faults = Vec::new();
    let mut fine = Vec::new();
    for file in &typed.files.files {
        let pattern = typed.pattern.pattern.as_deref().filter(|_| folder::is_directory(file));
        let source = Source { file, dialect: typed.dialect, pattern };
        let mut parsed = match parsed(context, source) {
            Ok(parsed) => parsed,
            Err(failure) if failure.exit == Exit::Usage => return Err(failure),
            Err(Failure { message, .. }) => {
                faults.push(unreadable(file, message.unwrap_or_default()));
                continue;
            }
        };
        if let Some(host) = &host {
            let lacking = parsed.pipelines.iter().flat_map(|pipeline| host.unmet_demands(pipeline));
            parsed.diagnostics.extend(lacking.map(|(path, message)| Diagnostic {
                class: Class::Unsupported,
                path: path.to_owned(),
                ..unreadable(file, message)
            }));
        }
        if !parsed.is_refused() {
            fine.push((shown_name(file).to_owned(), parsed.pipelines));
        }
        faults.append(&mut parsed.diagnostics);
    }
    let refused = faults.iter().any(|fault| fault.class.is_refusal());
    if context.style.json {
        output::document(&faults)?;
    } else {
        report(context.style, &faults, &fine)?;
    }
    Ok(if refused { Exit::Invalid } else { Exit::Ok })
}

fn report(
    style: Style,
    faults: &[Diagnostic],
    fine: &[(String, Vec<Pipeline>)],
) -> Result<(), Failure> {
    for fault in faults {
        output::line(&format_diagnostic(fault, style.colour))?;
    }
    for (file, pipelines) in fine {
        for pipeline in pipelines {
            let ok = TextStyle::Green.paint("valid", style.colour);
            let (group, name, steps) = (&pipeline.group, &pipeline.name, pipeline.steps.len());
            let noun = if steps == 1 { "step" } else { "steps" };
            output::line(&format!("{file}: {ok}: pipeline {group}/{name}, {steps} {noun}"))?;
        }
    }
    Ok(())
}

fn unreadable(file: &str, message: String) -> Diagnostic {
    Diagnostic {
        class: Class::Error,
        file: Some(shown_name(file).to_owned()),
        line: 0,
        column: 0,
        path: String::new(),
        message,
        hint: None,
    }
}

pub(super) fn plan(context: &Context, typed: &Plan) -> Result<Exit, Failure> {
    let pattern = typed.pattern.pattern.as_deref();
    let source = Source { file: &typed.file, dialect: typed.dialect, pattern };
    let parsed = parsed(context, source)?;
    for fault in &parsed.diagnostics {
        output::message(&format_diagnostic(fault, context.style.colour_err));
    }
    let shown: Vec<Pipeline> = parsed.pipelines.iter().map(Pipeline::masked).collect();
    match shown.as_slice() {
        [] => {}
        [one] => output::document(one)?,
        several => output::document(&several)?,
    }
    Ok(if parsed.is_refused() { Exit::Invalid } else { Exit::Ok })
}

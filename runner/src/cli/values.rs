//! Parsers for the values of arguments, and help about the settings behind them.

use clap::builder::PossibleValue;
use protocol::dialect::Dialect;
use protocol::run::Status;
use protocol::schema::{SchemaName, UnknownSchema};

use crate::config::setting::Key;

/// The help of a flag that overrides a setting.
pub(super) fn help_of<T>(key: &Key<T>) -> &'static str {
    key.setting().about.trim_end_matches('.')
}

/// The help of a flag whose default is a setting.
pub(super) fn help_with_default<T>(help: &str, default: &Key<T>) -> String {
    format!("{help} [default: `{}`]", default.variable())
}

pub(super) fn dialect(typed: &str) -> Result<Dialect, String> {
    let named = Dialect::NAMED.into_iter().find(|(name, _)| *name == typed);
    named.map(|(_, dialect)| dialect).ok_or_else(|| "bob, prunner, job and ci are known".to_owned())
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    match protocol::command::bad_variable(name, value) {
        Some(expected) => Err(format!("it must have {expected}")),
        None => Ok((name.to_owned(), value.to_owned())),
    }
}

pub(super) fn param(text: &str) -> Result<(String, serde_json::Value), String> {
    let named = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, json) = named.ok_or("it must be NAME=JSON")?;
    // The error contains the position, but none of the input.
    let value = serde_json::from_str(json).map_err(|cause| format!("it is not JSON: {cause}"))?;
    Ok((name.to_owned(), value))
}

pub(super) fn status(text: &str) -> Result<Status, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_unknown| {
        "it must be one of pending, initializing, initialized, running, passed, failed, stopped"
            .into()
    })
}

/// A published document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Document {
    /// A schema of the wire contract.
    Schema(SchemaName),
    /// The description of the HTTP API.
    Openapi,
}

/// The name of [`Document::Openapi`].
const OPENAPI: &str = "openapi";

pub(super) fn document_names() -> impl clap::builder::TypedValueParser<Value = Document> {
    use clap::builder::TypedValueParser as _;
    let names = SchemaName::ALL.map(SchemaName::as_str).into_iter().chain([OPENAPI]);
    let names = names.map(PossibleValue::new);
    clap::builder::PossibleValuesParser::new(names).try_map(|name| match name.as_str() {
        OPENAPI => Ok(Document::Openapi),
        name => {
            name.parse().map(Document::Schema).map_err(|unknown: UnknownSchema| unknown.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_name_and_can_have_an_empty_value() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        for bad in ["A", "=b", "A=\0"] {
            assert!(variable(bad).is_err(), "{bad:?} was taken");
        }
    }
}

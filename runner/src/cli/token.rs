//! `token`: signs a token of the HTTP API for development.

use serde_json::json;

use super::context::{Context, DefaultVerbosity};
use super::exit::{Exit, Failure};
use super::output;
use super::typed::Token;
use crate::app;

pub(super) fn token(context: &Context, typed: Token) -> Result<Exit, Failure> {
    let config = context.config(DefaultVerbosity::Little)?;
    let Token { sub, scope, ttl } = typed;
    let signed = app::sign_token(&config, sub, scope, ttl)
        .map_err(|error| Failure::new(Exit::Settings, error.to_string()))?;
    if context.style.json {
        output::document(&json!({ "token": signed }))?;
    } else {
        output::line(&signed)?;
    }
    Ok(Exit::Ok)
}

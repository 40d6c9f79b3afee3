//! `pipeline`, `provider`, `store`, `logger`: manage stored definitions.

use protocol::id::RegisteredName;
use protocol::pipeline::mask_stored_definition;
use protocol::run as stored;
use serde_json::{Value, json};

use super::args::{Pipelines, Register, Registered};
use super::context::Context;
use super::exit::{Exit, Failure};
use super::files;
use super::input::bytes_of;
use super::output::{self, Table, TextStyle, one_line};
use crate::client::{Applied, Registry, check_service_url};

pub(super) async fn pipeline(context: &Context, typed: Pipelines) -> Result<Exit, Failure> {
    match typed {
        Pipelines::Apply(typed) => apply_pipelines(context, &typed.files).await,
        Pipelines::List => list_pipelines(context).await,
        Pipelines::Delete(typed) => {
            let client = context.client()?;
            let was_there = client.delete_pipeline(&typed.pipeline).await?;
            deleted(context, "pipeline", &typed.pipeline.to_string(), was_there)
        }
    }
}

async fn apply_pipelines(context: &Context, files: &[String]) -> Result<Exit, Failure> {
    // Parse all files before storing anything.
    let mut pipelines = Vec::new();
    let mut refused = None;
    for file in files {
        match files::to_store(context, file) {
            Ok(found) => pipelines.extend(found),
            Err(failure) => {
                if let Some(message) = &failure.message {
                    output::message(message);
                }
                refused = Some(Failure::already_reported(failure.exit));
            }
        }
    }
    if let Some(failure) = refused {
        return Err(failure);
    }
    let client = context.client()?;
    for pipeline in &pipelines {
        let id = pipeline.id().map_err(|bad| Failure::new(Exit::Invalid, bad.to_string()))?;
        let what = client.apply_pipeline(&id, pipeline).await?;
        applied(context, "pipeline", &id.to_string(), what)?;
    }
    Ok(Exit::Ok)
}

async fn list_pipelines(context: &Context) -> Result<Exit, Failure> {
    let mut pipelines = context.readable(context.client()?.pipelines().await?);
    if context.style.json {
        for stored in &mut pipelines {
            mask_stored_definition(&mut stored.pipeline);
        }
        output::document(&pipelines)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(&["PIPELINE", "STEPS", "STATE", "IMAGE"]);
    for stored in &pipelines {
        let text = |key: &str| stored.pipeline.get(key).and_then(Value::as_str).unwrap_or("?");
        let steps = stored.pipeline.get("steps").and_then(Value::as_array).map_or(0, Vec::len);
        let (state, ink) = if stored.paused {
            ("paused", TextStyle::Yellow)
        } else {
            ("accepts runs", TextStyle::Green)
        };
        table.row(vec![
            (one_line(&format!("{}/{}", text("group"), text("name"))), TextStyle::Plain),
            (steps.to_string(), TextStyle::Plain),
            (state.to_owned(), ink),
            (one_line(text("image")), TextStyle::Dim),
        ]);
    }
    output::data(table.render(context.style.colour).as_bytes())?;
    Ok(Exit::Ok)
}

pub(super) async fn providers(context: &Context, typed: Registered) -> Result<Exit, Failure> {
    registry(context, Registry::Providers, typed).await
}

pub(super) async fn stores(context: &Context, typed: Registered) -> Result<Exit, Failure> {
    registry(context, Registry::Stores, typed).await
}

pub(super) async fn loggers(context: &Context, typed: Registered) -> Result<Exit, Failure> {
    registry(context, Registry::Loggers, typed).await
}

async fn registry(
    context: &Context,
    registry: Registry,
    typed: Registered,
) -> Result<Exit, Failure> {
    match typed {
        Registered::Apply(typed) => {
            let services = services(&typed)?;
            let client = context.client()?;
            for service in &services {
                let what = client.register(registry, service).await?;
                applied(context, registry.noun(), service.name.as_str(), what)?;
            }
            Ok(Exit::Ok)
        }
        Registered::List => list_registered(context, registry).await,
        Registered::Delete(typed) => {
            let was_there = context.client()?.unregister(registry, &typed.name).await?;
            deleted(context, registry.noun(), typed.name.as_str(), was_there)
        }
    }
}

async fn list_registered(context: &Context, registry: Registry) -> Result<Exit, Failure> {
    let mut services = context.readable(context.client()?.registered(registry).await?);
    if context.style.json {
        for service in &mut services {
            service.url = crate::config::without_credentials(&service.url);
        }
        output::document(&services)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(&["NAME", "URL"]);
    for service in &services {
        let url = crate::config::without_credentials(&service.url);
        table.row(vec![
            (one_line(service.name.as_str()), TextStyle::Plain),
            (one_line(&url), TextStyle::Plain),
        ]);
    }
    output::data(table.render(context.style.colour).as_bytes())?;
    Ok(Exit::Ok)
}

/// The registrations from flags or files, or every fault in them.
fn services(typed: &Register) -> Result<Vec<stored::Registered>, Failure> {
    let mut services = Vec::new();
    let mut faults = Vec::new();
    if let (Some(name), Some(url)) = (&typed.name, &typed.url) {
        match service(name, url) {
            Ok(service) => services.push(service),
            Err(found) => faults.extend(found),
        }
    }
    for file in &typed.files {
        match services_of_file(file) {
            Ok(found) => services.extend(found),
            Err(found) => faults.extend(found.iter().map(|fault| format!("{file}: {fault}"))),
        }
    }
    if faults.is_empty() {
        return Ok(services);
    }
    Err(Failure::new(Exit::Invalid, faults.join("\n")))
}

fn services_of_file(file: &str) -> Result<Vec<stored::Registered>, Vec<String>> {
    let bytes = bytes_of(file)
        .map_err(|failure| vec![failure.message.unwrap_or_else(|| "cannot be read".to_owned())])?;
    let name = (file != "-").then_some(file);
    let document = protocol::dialect::document(name, &bytes)
        .map_err(|fault| vec![format!("{}:{}: {}", fault.line, fault.column, fault.message)])?;
    let items = match document {
        Value::Array(items) => items,
        one @ (Value::Object(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)) => vec![one],
    };
    let mut services = Vec::new();
    let mut faults = Vec::new();
    for item in &items {
        match service_of(item) {
            Ok(service) => services.push(service),
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(services) } else { Err(faults) }
}

fn service_of(item: &Value) -> Result<stored::Registered, Vec<String>> {
    let Value::Object(map) = item else {
        return Err(vec!["expected a map with `name` and `url`".to_owned()]);
    };
    let unknown = map.keys().filter(|key| !["name", "url"].contains(&key.as_str()));
    let mut faults: Vec<String> =
        unknown.map(|key| format!("unknown key {key:?}; `name` and `url` belong here")).collect();
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    match (text("name"), text("url")) {
        (Some(name), Some(url)) => match service(name, url) {
            Ok(service) if faults.is_empty() => return Ok(service),
            Ok(_) => {}
            Err(found) => faults.extend(found),
        },
        (name, url) => {
            let missing = [("name", name), ("url", url)];
            let missing = missing.iter().filter(|(_, value)| value.is_none());
            faults.extend(missing.map(|(key, _)| format!("`{key}` is missing")));
        }
    }
    Err(faults)
}

fn service(name: &str, url: &str) -> Result<stored::Registered, Vec<String>> {
    let mut faults = Vec::new();
    let parsed_name = name.parse::<RegisteredName>().map_err(|bad| faults.push(bad.to_string()));
    if let Err(bad) = check_service_url(url) {
        faults.push(bad);
    }
    match parsed_name {
        Ok(name) if faults.is_empty() => {
            Ok(stored::Registered { name, url: url.trim_end_matches('/').to_owned() })
        }
        Ok(_) | Err(()) => Err(faults),
    }
}

fn applied(context: &Context, noun: &str, name: &str, what: Applied) -> Result<(), Failure> {
    if context.style.json {
        let kind = noun.replace(' ', "-");
        let line = json!({ "kind": kind, "name": name, "result": what.as_str() });
        return output::line(&line.to_string());
    }
    output::line(&format!("{noun} {name} {}", what.as_str()))
}

fn deleted(context: &Context, noun: &str, name: &str, was_there: bool) -> Result<Exit, Failure> {
    let what = if was_there { "deleted" } else { "absent" };
    if context.style.json {
        let kind = noun.replace(' ', "-");
        output::line(&json!({ "kind": kind, "name": name, "result": what }).to_string())?;
    } else if was_there {
        output::line(&format!("{noun} {name} deleted"))?;
    } else {
        output::message(&format!("there is no {noun} {name}"));
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_a_name_and_an_http_address() {
        assert_eq!(service("logs", "http://h:8002/").unwrap().url, "http://h:8002");
        assert!(service("logs", "https://u:p@h/path").is_ok());
        for bad in ["", "h:8002", "ftp://h", "http://", "http://h?x=1", "http://h#x"] {
            assert_eq!(service("logs", bad).unwrap_err().len(), 1, "{bad}");
        }
        let both = service("a/b", "nowhere:hunter2@x").unwrap_err();
        assert_eq!(both.len(), 2, "{both:?}");
        assert!(!both.join("").contains("hunter2"), "{both:?}");
    }

    #[test]
    fn every_fault_of_a_registration_is_reported() {
        let faults = service_of(&json!({ "nam": "x", "url": "ftp://h" })).unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(service_of(&json!("x")).is_err());
        assert_eq!(service_of(&json!({ "name": "x", "url": "http://h" })).unwrap().url, "http://h");
    }
}

//! The executor `sevdesk`: invoices and contacts of sevDesk.

use std::path::PathBuf;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::AUTHORIZATION;
use serde_json::{Map, Value, json};

use super::access::{Access, Trust};
use super::answer::Answer;
use super::api::Api;
use super::options::Options;
use super::request::{Body, Call, Halt, Repeat, Request};
use super::with::StepArguments;
use super::{address, file};
use crate::ports::ExecError;

/// The keys that a save request has next to the invoice, not in it.
const BESIDE: [&str; 6] = [
    "invoicePosSave",
    "invoicePosDelete",
    "discountSave",
    "discountDelete",
    "filename",
    "takeDefaultAddress",
];
/// The status of a draft.
const DRAFT: u16 = 100;
/// The maximum size of a response with a PDF, in bytes.
const MOST_OF_PDF: usize = 24 * 1024 * 1024;
/// The maximum size of a PDF stored in a result, in bytes.
const MOST_IN_RESULT: usize = 64 * 1024;

/// The executor `sevdesk`.
pub(super) struct Sevdesk;

/// The action of a step.
pub(super) enum SevdeskAction {
    /// Creates an invoice for an existing contact or for one created first.
    Create { contact: Recipient, invoice: Map<String, Value>, compat: bool },
    /// Sends one request and treats its response as `then` says.
    One {
        method: Method,
        path: Vec<String>,
        query: Map<String, Value>,
        body: Body,
        then: ResultFrom,
    },
}

/// The recipient of an invoice.
pub(super) enum Recipient {
    Id(String),
    New(Map<String, Value>),
}

/// How a response becomes the result.
pub(super) enum ResultFrom {
    /// The whole response is the result.
    All,
    /// Only the status of the invoice is the result.
    Status,
    /// The PDF in the response is the result, or is written to the given file.
    Pdf(Option<(PathBuf, PathBuf)>),
}

#[async_trait]
impl Api for Sevdesk {
    type Request = SevdeskAction;

    fn read(
        &self,
        with: StepArguments<'_>,
        options: &Options,
    ) -> Result<(SevdeskAction, Access), ExecError> {
        let service = address::service(with.base_url()?);
        let service = service.map_err(|why| with.bad(&format!("`base_url` {why}")))?;
        let token = with.must("api_token")?;
        let asked = asked(with, options)?;
        let access = Access::new(service, Trust::System);
        let access = access.with_secret(AUTHORIZATION, token, token);
        let bad = || with.bad("`api_token` has a character that a header cannot have");
        Ok((asked, access.ok_or_else(bad)?))
    }

    async fn act(&self, asked: SevdeskAction, call: &mut Call) -> Result<Value, Halt> {
        let (method, path, query, body, then) = match asked {
            SevdeskAction::Create { contact, invoice, compat } => {
                return create(call, contact, invoice, compat).await;
            }
            SevdeskAction::One { method, path, query, body, then } => {
                (method, path, query, body, then)
            }
        };
        let repeat = if method.is_safe() { Repeat::Always } else { Repeat::TooMany };
        let mut request = Request::new(method, call.url(&path, &query)?, body, repeat);
        if matches!(then, ResultFrom::Pdf(_)) {
            request.most = MOST_OF_PDF;
        }
        let answer = call.good(&request).await?;
        match then {
            ResultFrom::All => Ok(answer.data()),
            ResultFrom::Status => status(&answer.data()),
            ResultFrom::Pdf(place) => pdf(&answer, place, call).await,
        }
    }
}

fn asked(with: StepArguments<'_>, options: &Options) -> Result<SevdeskAction, ExecError> {
    let compat = with.switch("compat")?.unwrap_or(false);
    let (get, post) = (Method::GET, Method::POST);
    let action = with.must("action")?;
    let invoice = || {
        let id = with.must_id("invoice_id")?;
        let plain = id.bytes().all(|c| c.is_ascii_digit());
        if plain { Ok(id) } else { Err(with.bad("`invoice_id` is not a number")) }
    };
    let own = |rest: &str| -> Result<Vec<String>, ExecError> {
        let rest = Some(rest.to_owned()).filter(|rest| !rest.is_empty());
        Ok(["Invoice".to_owned(), invoice()?].into_iter().chain(rest).collect())
    };
    let one = |method, path, body, then| {
        Ok(SevdeskAction::One { method, path, query: Map::new(), body, then })
    };
    match action {
        "create_invoice" => {
            let contact = recipient(with)?;
            let invoice = with.must_map("invoice_data")?.clone();
            Ok(SevdeskAction::Create { contact, invoice, compat })
        }
        "save_invoice_draft" => {
            let data = with.must_map("invoice_data")?.clone();
            if compat {
                return one(post, path(&["Invoice"]), Body::Json(data.into()), ResultFrom::All);
            }
            let body = Body::Json(saved(data, None, Some(DRAFT)));
            one(post, path(&SAVE), body, ResultFrom::All)
        }
        "cancel_invoice" if compat => {
            let body = Body::Json(json!({ "status": DRAFT }));
            one(Method::PATCH, own("")?, body, ResultFrom::All)
        }
        "cancel_invoice" => one(post, own("cancelInvoice")?, Body::Nothing, ResultFrom::All),
        "delete_invoice" => one(Method::DELETE, own("")?, Body::Nothing, ResultFrom::All),
        "get_invoice" => one(get, own("")?, Body::Nothing, ResultFrom::All),
        "get_invoice_status" => one(get, own("")?, Body::Nothing, ResultFrom::Status),
        "get_invoice_pdf" => {
            let place = with.text("pdf_output")?.map(|path| file::place(with, options, path));
            one(get, own("getPdf")?, Body::Nothing, ResultFrom::Pdf(place.transpose()?))
        }
        "send_invoice" => one(post, own("sendViaEmail")?, mail(with)?, ResultFrom::All),
        "create_contact" => {
            let body = Body::Json(with.must_map("contact_data")?.clone().into());
            one(post, path(&["Contact"]), body, ResultFrom::All)
        }
        "list_invoices" => Ok(SevdeskAction::One {
            method: get,
            path: path(&["Invoice"]),
            query: with.map("filter")?.cloned().unwrap_or_default(),
            body: Body::Nothing,
            then: ResultFrom::All,
        }),
        _other => Err(with.bad("`action` is none of sevDesk's")),
    }
}

/// Who receives a new invoice.
fn recipient(with: StepArguments<'_>) -> Result<Recipient, ExecError> {
    match (with.id("contact_id")?, with.map("contact_data")?) {
        (Some(id), _) if id.bytes().all(|c| c.is_ascii_digit()) => Ok(Recipient::Id(id)),
        (Some(_), _) => Err(with.bad("`contact_id` is not a number")),
        (None, Some(data)) => Ok(Recipient::New(data.clone())),
        (None, None) => Err(with.bad("`contact_id` or `contact_data` is missing")),
    }
}

/// The path that saves an invoice together with its parts.
const SAVE: [&str; 3] = ["Invoice", "Factory", "saveInvoice"];

fn path(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|&part| part.to_owned()).collect()
}

fn mail(with: StepArguments<'_>) -> Result<Body, ExecError> {
    let mut mail = Map::new();
    for (ours, theirs) in [("to_email", "toEmail"), ("subject", "subject"), ("text", "text")] {
        if let Some(text) = with.text(ours)? {
            mail.insert(theirs.to_owned(), text.into());
        }
    }
    Ok(if mail.is_empty() { Body::Nothing } else { Body::Json(mail.into()) })
}

/// The body of a save request. If `data` has an `invoice`, `data` is the whole body; otherwise it
/// is the invoice and the keys next to it.
fn saved(mut data: Map<String, Value>, contact: Option<Value>, status: Option<u16>) -> Value {
    let (mut invoice, mut body) = match data.remove("invoice") {
        Some(Value::Object(invoice)) => (invoice, data),
        odd => {
            data.extend(odd.map(|odd| ("invoice".to_owned(), odd)));
            let beside = BESIDE.iter().filter_map(|key| data.remove_entry(*key)).collect();
            (data, beside)
        }
    };
    invoice.entry("objectName").or_insert_with(|| "Invoice".into());
    invoice.entry("mapAll").or_insert(Value::Bool(true));
    if let Some(contact) = contact {
        invoice.insert("contact".to_owned(), contact);
    }
    if let Some(status) = status {
        invoice.insert("status".to_owned(), status.into());
    }
    body.insert("invoice".to_owned(), invoice.into());
    body.into()
}

async fn create(
    call: &mut Call,
    contact: Recipient,
    invoice: Map<String, Value>,
    compat: bool,
) -> Result<Value, Halt> {
    let (id, made) = match contact {
        Recipient::Id(id) => (number(&id), None),
        Recipient::New(data) => {
            let url = call.url(&path(&["Contact"]), &Map::new())?;
            let body = Body::Json(data.into());
            let request = Request::new(Method::POST, url, body, Repeat::TooMany);
            let made = call.good(&request).await?.data();
            let id = match &made["objects"]["id"] {
                Value::String(text) => number(text),
                id @ Value::Number(_) => id.clone(),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                    let why =
                        "sevDesk made a contact and named no id of it, so no invoice was made";
                    return Err(Halt::Failed { why: why.to_owned(), data: made, code: 1 });
                }
            };
            (id.clone(), Some(id))
        }
    };
    let (parts, body) = if compat {
        (path(&["Invoice"]), json!({ "contact": { "id": id }, "invoice": invoice }))
    } else {
        let contact = json!({ "id": id, "objectName": "Contact" });
        (path(&SAVE), saved(invoice, Some(contact), None))
    };
    let url = call.url(&parts, &Map::new())?;
    let request = Request::new(Method::POST, url, Body::Json(body), Repeat::TooMany);
    match (call.good(&request).await, made) {
        (Ok(answer), _) => Ok(answer.data()),
        // Name the contact that was created: a retry would create another one.
        (Err(Halt::Failed { why, data, code }), Some(id)) => {
            Err(Halt::Failed { why: format!("{why}; contact {id} was made and stays"), data, code })
        }
        (Err(Halt::Stopped(what)), Some(id)) => {
            Err(Halt::Stopped(format!("{what}; contact {id} was made and stays")))
        }
        (Err(halt), _) => Err(halt),
    }
}

/// An id as the number that sevDesk expects, if it fits.
fn number(id: &str) -> Value {
    id.parse::<u64>().map_or_else(|_too_long| id.into(), Value::from)
}

/// The status of the invoice in a response, which holds one invoice or a list of one.
fn status(data: &Value) -> Result<Value, Halt> {
    let objects = &data["objects"];
    let invoice = objects.get(0).unwrap_or(objects);
    let status = &invoice["status"];
    if status.is_null() {
        let why = "sevDesk answered without a status of the invoice".to_owned();
        return Err(Halt::Failed { why, data: data.clone(), code: 1 });
    }
    Ok(json!({ "id": invoice["id"], "status": status }))
}

/// Takes the PDF from a response and stores it in the result or in a file.
async fn pdf(
    answer: &Answer,
    place: Option<(PathBuf, PathBuf)>,
    call: &mut Call,
) -> Result<Value, Halt> {
    let (name, bytes) = content(answer)?;
    let size = bytes.len();
    let Some((dir, file)) = place else {
        if size > MOST_IN_RESULT {
            let why = format!(
                "the PDF has {size} bytes, and a result holds {MOST_IN_RESULT} of one: name a \
                 file in `pdf_output`, where the step runs with `run`"
            );
            return Err(Halt::failed(why));
        }
        return Ok(json!({ "filename": name, "size": size, "base64": STANDARD.encode(&bytes) }));
    };
    let shown = file.display().to_string();
    if let Err(cause) = file::write(dir, file, bytes).await {
        return Err(Halt::failed(format!("cannot write pdf_output {shown}: {cause}")));
    }
    call.tell(&format!("wrote {shown}: {size} bytes")).await;
    Ok(json!({ "filename": name, "size": size, "path": shown }))
}

/// The name and the bytes of a PDF, sent either raw or in JSON.
fn content(answer: &Answer) -> Result<(Value, Vec<u8>), Halt> {
    if answer.body.starts_with(b"%PDF") {
        return Ok((Value::Null, answer.body.clone()));
    }
    let data = answer.data();
    let file = data.get("objects").unwrap_or(&data);
    let Some(text) = file["content"].as_str() else {
        return Err(Halt::failed("sevDesk answered without a PDF"));
    };
    let text: String = text.split_whitespace().collect();
    let bytes = STANDARD.decode(text);
    let bytes = bytes.map_err(|cause| Halt::failed(format!("the PDF is not base64: {cause}")))?;
    Ok((file["filename"].clone(), bytes))
}

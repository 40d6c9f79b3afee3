//! The executor `lexware`: invoices of Lexware Office.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use serde_json::{Map, Value, json};

use super::access::{Access, Trust};
use super::address;
use super::api::Api;
use super::options::Options;
use super::pace::Pace;
use super::request::{Body, Call, Halt, Repeat, Request};
use super::with::StepArguments;
use crate::ports::ExecError;

/// The fields that a credit note copies from its invoice.
const TAKEN_OVER: [&str; 4] = ["address", "lineItems", "totalPrice", "taxConditions"];

/// The executor `lexware`.
pub(super) struct Lexware {
    pace: Arc<Pace>,
}

impl Lexware {
    /// Sends at most one request per account in each `gap`.
    pub(super) fn new(gap: Duration) -> Self {
        Self { pace: Arc::new(Pace::new(gap)) }
    }
}

/// The action of a step.
pub(super) enum LexwareAction {
    Create { invoice: Value, finalize: bool },
    Cancel { id: String },
}

#[async_trait]
impl Api for Lexware {
    type Request = LexwareAction;

    fn read(
        &self,
        with: StepArguments<'_>,
        _options: &Options,
    ) -> Result<(LexwareAction, Access), ExecError> {
        let service = address::service(with.base_url()?);
        let service = service.map_err(|why| with.bad(&format!("`base_url` {why}")))?;
        let key = with.must("api_key")?;
        let asked = match with.must("action")? {
            "create_invoice" => {
                let customer = with.must_id("customer_id")?;
                let invoice = invoice(with.must_map("invoice_data")?.clone(), &customer);
                LexwareAction::Create {
                    invoice,
                    finalize: with.switch("finalize")?.unwrap_or(false),
                }
            }
            "cancel_invoice" => {
                let id = with.must_id("invoice_id")?;
                if !address::is_part(&id) {
                    return Err(with.bad("`invoice_id` is not an id"));
                }
                LexwareAction::Cancel { id }
            }
            _other => {
                return Err(with.bad("`action` is not create_invoice or cancel_invoice"));
            }
        };
        let turns = Some(self.pace.of(service.as_str(), key));
        let access = Access { turns, ..Access::new(service, Trust::System) };
        let access = access.with_secret(AUTHORIZATION, &format!("Bearer {key}"), key);
        let mut access = access
            .ok_or_else(|| with.bad("`api_key` has a character that a header cannot have"))?;
        access.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Ok((asked, access))
    }

    async fn act(&self, asked: LexwareAction, call: &mut Call) -> Result<Value, Halt> {
        match asked {
            LexwareAction::Create { invoice, finalize } => {
                let query = if finalize { json!({ "finalize": "true" }) } else { json!({}) };
                let request = post(call, &["invoices"], &query, invoice)?;
                Ok(call.good(&request).await?.data())
            }
            LexwareAction::Cancel { id } => cancel(call, &id).await,
        }
    }
}

/// Addresses an invoice to a customer unless the invoice has an address.
fn invoice(mut data: Map<String, Value>, customer: &str) -> Value {
    data.entry("address").or_insert_with(|| json!({ "contactId": customer }));
    data.into()
}

fn post(call: &Call, path: &[&str], query: &Value, body: Value) -> Result<Request, Halt> {
    let path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
    let query = query.as_object().cloned().unwrap_or_default();
    let url = call.url(&path, &query)?;
    Ok(Request::new(Method::POST, url, Body::Json(body), Repeat::TooMany))
}

/// Creates a credit note over the whole invoice, because the API cannot cancel one.
async fn cancel(call: &mut Call, id: &str) -> Result<Value, Halt> {
    let url = call.url(&["invoices".to_owned(), id.to_owned()], &Map::new())?;
    let asked = Request::new(Method::GET, url, Body::Nothing, Repeat::Always);
    let invoice = call.good(&asked).await?.data();
    let mut note = Map::new();
    // A credit note is dated the day it is made.
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000+00:00");
    note.insert("voucherDate".to_owned(), now.to_string().into());
    for key in TAKEN_OVER {
        match invoice.get(key) {
            Some(value) if !value.is_null() => note.insert(key.to_owned(), value.clone()),
            Some(_) | None => {
                let why = format!("invoice {id} has no `{key}`, so no credit note can be made");
                return Err(Halt::failed(why));
            }
        };
    }
    let query = json!({ "precedingSalesVoucherId": id, "finalize": "true" });
    let request = post(call, &["credit-notes"], &query, note.into())?;
    let answer = call.send(&request).await?;
    match answer.status.as_u16() {
        200..=299 => Ok(answer.data()),
        406 => {
            let hint = "an invoice that is a draft, or has a credit note already, cannot be \
                 cancelled";
            Err(call.rejected(&answer, &request, Some(hint)))
        }
        _refused => Err(call.rejected(&answer, &request, None)),
    }
}

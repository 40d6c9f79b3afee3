//! Conversion between [`Message`] and AMQP properties.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use protocol::names;

use crate::ports::Message;

/// Persistent delivery.
const DELIVERY_MODE: u8 = 2;
/// The maximum size of the headers. All properties together must fit into one frame.
const HEADER_BYTES: usize = 64 * 1024;
/// Headers that the broker adds, which must not be part of a new message.
const BROKERS_OWN: &[&str] =
    &["x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count"];

/// Returns the properties for publishing a message, or `None` if one of them is not valid in AMQP.
pub(super) fn properties(message: &Message) -> Option<BasicProperties> {
    let mut properties = BasicProperties::default()
        .with_content_type(names::CONTENT_TYPE.into())
        .with_delivery_mode(DELIVERY_MODE);
    if let Some(kind) = &message.kind {
        properties = properties.with_type(ShortString::try_new(kind.as_str()).ok()?);
    }
    if let Some(id) = &message.id {
        properties = properties.with_message_id(ShortString::try_new(id.as_str()).ok()?);
    }
    let mut headers = FieldTable::default();
    let mut bytes = 0;
    for (name, value) in &message.headers {
        bytes += name.len() + value.len();
        if bytes > HEADER_BYTES {
            tracing::warn!(header = name, "a header is left out of a message, there are too many");
            bytes -= name.len() + value.len();
        } else if !BROKERS_OWN.iter().any(|own| name.starts_with(own)) {
            let value = AMQPValue::LongString(LongString::from(value.as_str()));
            headers.insert(ShortString::try_new(name.as_str()).ok()?, value);
        }
    }
    Some(if headers.inner().is_empty() { properties } else { properties.with_headers(headers) })
}

/// Converts a received message.
pub(super) fn message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
    Message {
        kind: text(properties.kind()),
        id: text(properties.message_id()),
        headers: properties.headers().as_ref().map(flatten).unwrap_or_default(),
        body,
    }
}

/// Returns the text headers, and the broker's own headers as text. Fields of the latest death are
/// flattened to `x-death-reason` and so on.
fn flatten(table: &FieldTable) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    for (name, value) in table {
        let name = name.as_str();
        let own = BROKERS_OWN.iter().any(|own| name.starts_with(own));
        let is_text = matches!(value, AMQPValue::LongString(_) | AMQPValue::ShortString(_));
        if is_text || own {
            headers.extend(scalar(value).map(|text| (name.to_owned(), text)));
        }
        if let AMQPValue::FieldArray(deaths) = value
            && own
            && let Some(AMQPValue::FieldTable(death)) = deaths.as_slice().first()
        {
            for (field, value) in death {
                let named = format!("{name}-{}", field.as_str());
                headers.extend(scalar(value).map(|text| (named, text)));
            }
        }
    }
    headers
}

#[expect(clippy::wildcard_enum_match_arm, reason = "AMQP has seventeen types, and these are text")]
fn scalar(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        AMQPValue::Boolean(flag) => Some(flag.to_string()),
        AMQPValue::ShortShortInt(number) => Some(number.to_string()),
        AMQPValue::ShortShortUInt(number) => Some(number.to_string()),
        AMQPValue::ShortInt(number) => Some(number.to_string()),
        AMQPValue::ShortUInt(number) => Some(number.to_string()),
        AMQPValue::LongInt(number) => Some(number.to_string()),
        AMQPValue::LongUInt(number) => Some(number.to_string()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        AMQPValue::Timestamp(seconds) => Some(seconds.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::FieldArray;

    fn table(fields: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in fields {
            table.insert(ShortString::from(*name), value.clone());
        }
        table
    }

    #[test]
    fn death_headers_are_flattened_and_foreign_types_omitted() {
        let death = table(&[
            ("reason", AMQPValue::LongString("delivery_limit".into())),
            ("count", AMQPValue::LongLongInt(1)),
        ]);
        let headers = table(&[
            ("traceparent", AMQPValue::LongString("00-ab".into())),
            ("x-first-death-reason", AMQPValue::LongString("delivery_limit".into())),
            ("x-delivery-count", AMQPValue::LongLongInt(21)),
            (
                "x-death",
                AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])),
            ),
            ("number", AMQPValue::LongInt(7)),
            ("bytes", AMQPValue::LongString(vec![0xff].into())),
        ]);
        let message = message(&BasicProperties::default().with_headers(headers), Vec::new());
        let got: Vec<(&str, &str)> =
            message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            got,
            [
                ("traceparent", "00-ab"),
                ("x-death-count", "1"),
                ("x-death-reason", "delivery_limit"),
                ("x-delivery-count", "21"),
                ("x-first-death-reason", "delivery_limit"),
            ]
        );
    }

    #[test]
    fn a_republished_message_has_no_death_headers() {
        let headers = [("x-first-death-reason", "rejected"), ("traceparent", "00-ab")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let message = Message { headers: headers.into(), ..Message::default() };
        let properties = properties(&message).unwrap();
        let names: Vec<&str> = properties
            .headers()
            .as_ref()
            .unwrap()
            .inner()
            .keys()
            .map(ShortString::as_str)
            .collect();
        assert_eq!(names, ["traceparent"]);
    }

    #[test]
    fn values_that_do_not_fit_amqp_are_refused_without_a_panic() {
        let message = Message { id: Some("x".repeat(256)), ..Message::default() };
        assert!(properties(&message).is_none());
    }
}

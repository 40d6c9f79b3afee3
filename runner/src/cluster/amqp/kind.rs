//! Finds out the type of an existing queue or exchange by declaring it differently.
//!
//! AMQP has no request for the type. The broker rejects a declaration that differs and names the
//! first differing argument. The arguments are adapted one by one until the type is the one that
//! differs, or none does.

use std::collections::BTreeMap;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, ShortString};

use super::{Fault, Live};

const QUEUE_TYPE: &str = "x-queue-type";
/// Exceeds the number of arguments of any queue.
const TRIES: usize = 24;

/// The first differing argument, as reported by the broker.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    argument: String,
    /// The existing object's value, if it has the argument.
    current: Option<String>,
    /// Whether the value is text.
    is_text: bool,
}

impl Difference {
    /// Parses `inequivalent arg 'A' for queue 'Q' in vhost '/': received X but current is Y`. Y is
    /// `none`, `'value'`, or `the value 'value' of type 'longstr'`.
    fn parse(said: &str) -> Option<Self> {
        let (_, rest) = said.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        let (received, current) = rest.rsplit_once(" but current is ")?;
        let type_of = |text: &str| {
            let (_, kind) = text.split_once("' of type '")?;
            Some(kind.starts_with("longstr"))
        };
        let value = current.strip_prefix("the value ").unwrap_or(current);
        let current = value.strip_prefix('\'').map(|value| {
            let end = value.split_once("' of type '").map(|(value, _)| value);
            end.unwrap_or_else(|| value.trim_end_matches('\'')).to_owned()
        });
        let is_number = received.rsplit('\'').nth(1).is_some_and(|it| it.parse::<i64>().is_ok());
        let is_text = type_of(value).unwrap_or(!is_number);
        Some(Self { argument: argument.to_owned(), current, is_text })
    }
}

/// Returns why an exchange cannot be used, if it has a different type.
pub(super) fn of_exchange(name: &str, said: &str) -> Option<Fault> {
    let Difference { argument, current, .. } = Difference::parse(said)?;
    let current = current.filter(|_| argument == "type")?;
    Some(Fault::WrongKind(format!(
        "exchange {name} is of type {current}, and bob-runner needs one of type direct: delete it \
         (`rabbitmqadmin delete exchange name={name}`), or use another virtual host in BOB_QUEUE_URL"
    )))
}

/// Returns why a queue cannot be used, if it does not have the wanted type. `said` is the broker's
/// reply to its declaration with all arguments. Also returns `None` if the type cannot be
/// determined.
pub(super) async fn of_queue(live: &Live, name: &str, wanted: &str, said: &str) -> Option<Fault> {
    let mut difference = Difference::parse(said)?;
    let mut arguments = BTreeMap::from([(ShortString::from(QUEUE_TYPE), text(wanted))]);
    for _ in 0..TRIES {
        let Difference { argument, current, is_text } = difference;
        match argument.as_str() {
            QUEUE_TYPE => {
                return Some(mismatch(name, wanted, current.as_deref().unwrap_or("classic")));
            }
            "durable" | "auto_delete" | "exclusive" => {
                return Some(mismatch(name, wanted, "classic, and not durable"));
            }
            other => {
                let other = ShortString::try_new(other).ok()?;
                match current {
                    // Only our declaration has the argument.
                    None => arguments.remove(&other),
                    Some(value) if is_text => arguments.insert(other, text(&value)),
                    Some(value) => {
                        arguments.insert(other, AMQPValue::LongLongInt(value.parse().ok()?))
                    }
                };
            }
        }
        let channel = live.channel().await.ok()?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let name = ShortString::try_new(name).ok()?;
        match channel
            .queue_declare(name, options, arguments.clone().into())
            .await
            .map_err(Fault::from)
        {
            Err(Fault::Differs(said)) => difference = Difference::parse(&said)?,
            // The queue has the wanted type, and other arguments differ.
            Ok(_) | Err(_) => return None,
        }
    }
    None
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn mismatch(name: &str, wanted: &str, current: &str) -> Fault {
    let kind = |of: &str| match of {
        "stream" => "a stream".to_owned(),
        other => format!("a queue of type {other}"),
    };
    Fault::WrongKind(format!(
        "{name} is {}, and bob-runner needs {}: delete it with its messages (`rabbitmqctl \
         delete_queue {name}`), or use another virtual host in BOB_QUEUE_URL",
        kind(current),
        kind(wanted)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mismatch_errors_of_the_broker_are_parsed() {
        let cases = [
            ("received 'direct' but current is 'fanout'", Some("fanout"), true),
            ("received the value 'quorum' of type 'longstr' but current is none", None, true),
            (
                "received none but current is the value 'bob.dlx' of type 'longstr'",
                Some("bob.dlx"),
                true,
            ),
            ("received none but current is the value '5' of type 'long'", Some("5"), false),
            ("received '20' but current is '30'", Some("30"), false),
            ("received 'true' but current is 'false'", Some("false"), true),
        ];
        for (said, current, is_text) in cases {
            let said = format!("inequivalent arg 'x-a' for queue 'q but' in vhost '/': {said}");
            let found = Difference::parse(&said).unwrap();
            assert_eq!(found.argument, "x-a");
            assert_eq!(found.current.as_deref(), current, "{said}");
            if current.is_some() {
                assert_eq!(found.is_text, is_text, "{said}");
            }
        }
        assert_eq!(Difference::parse("invalid arg 'x-a'"), None);
    }

    #[test]
    fn an_exchange_of_another_type_is_reported_with_the_name_to_delete() {
        let of = |argument| {
            format!(
                "inequivalent arg '{argument}' for exchange 'x': received 'a' but current is 'b'"
            )
        };
        let fault = of_exchange("bob.direct", &of("type")).unwrap();
        assert!(fault.cause().contains("delete exchange name=bob.direct"), "{}", fault.cause());
        assert!(of_exchange("bob.direct", &of("durable")).is_none(), "it can be used");
    }
}

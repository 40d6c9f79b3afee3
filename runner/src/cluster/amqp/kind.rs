//! Determines whether an existing queue or exchange has the wrong type.
//!
//! AMQP has no request for the type. But the broker rejects a declaration that differs from the
//! existing queue, and names the first argument that differs. [`queue_mismatch`] therefore repeats
//! the declaration, each time with the existing value of that argument, until the type is the
//! argument that differs, or the broker accepts the declaration.

use std::collections::BTreeMap;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, ShortString};

use super::{Fault, Live};

const QUEUE_TYPE: &str = "x-queue-type";
/// The maximum number of declarations. It exceeds the number of arguments of any queue.
const MAX_DECLARATIONS: usize = 24;

/// The first differing argument, as reported by the broker.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    argument: String,
    /// The value of the existing queue or exchange. `None` if it does not have the argument.
    current: Option<String>,
    /// Whether the existing value is a string. Otherwise it is a number.
    is_text: bool,
}

impl Difference {
    /// Parses `inequivalent arg 'A' for queue 'Q' in vhost '/': received X but current is Y`. Y is
    /// `none`, `'value'`, or `the value 'value' of type 'longstr'`.
    fn parse(reply: &str) -> Option<Self> {
        let (_, rest) = reply.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        let (received, current) = rest.rsplit_once(" but current is ")?;
        let current = current.strip_prefix("the value ").unwrap_or(current);
        let is_text = match current.split_once("' of type '") {
            Some((_, value_type)) => value_type.starts_with("longstr"),
            // Without a type in the reply, the existing value has that of the received one.
            None => {
                let received = received.rsplit('\'').nth(1);
                received.is_none_or(|value| value.parse::<i64>().is_err())
            }
        };
        let current = current.strip_prefix('\'').map(|rest| match rest.split_once("' of type '") {
            Some((value, _)) => value.to_owned(),
            None => rest.trim_end_matches('\'').to_owned(),
        });
        Some(Self { argument: argument.to_owned(), current, is_text })
    }
}

/// Returns the fault of an existing exchange that has the wrong type. `reply` is the broker's error
/// for its declaration. Returns `None` if the type is not what differs.
pub(super) fn exchange_mismatch(name: &str, reply: &str) -> Option<Fault> {
    let Difference { argument, current, .. } = Difference::parse(reply)?;
    let current = current.filter(|_| argument == "type")?;
    Some(Fault::WrongKind(format!(
        "exchange {name} is of type {current}, but bob-runner needs one of type direct: delete it \
         (`rabbitmqadmin delete exchange name={name}`), or use another virtual host in BOB_QUEUE_URL"
    )))
}

/// Returns the fault of an existing queue that does not have the type `wanted`. `reply` is the
/// broker's error for its declaration with all arguments. Returns `None` if the queue has that type,
/// or if its type cannot be determined.
pub(super) async fn queue_mismatch(
    live: &Live,
    name: &str,
    wanted: &str,
    reply: &str,
) -> Option<Fault> {
    let mut difference = Difference::parse(reply)?;
    let mut arguments = BTreeMap::from([(ShortString::from(QUEUE_TYPE), text(wanted))]);
    for _ in 0..MAX_DECLARATIONS {
        let Difference { argument, current, is_text } = difference;
        match argument.as_str() {
            QUEUE_TYPE => {
                return Some(wrong_queue_type(
                    name,
                    wanted,
                    current.as_deref().unwrap_or("classic"),
                ));
            }
            "durable" | "auto_delete" | "exclusive" => {
                return Some(wrong_queue_type(name, wanted, "classic that is not durable"));
            }
            other => {
                let other = ShortString::try_new(other).ok()?;
                match current {
                    // The existing queue does not have the argument.
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
            Err(Fault::Differs(reply)) => difference = Difference::parse(&reply)?,
            // If the declaration was accepted, the queue has the type `wanted`. After another error, its
            // type is unknown.
            Ok(_) | Err(_) => return None,
        }
    }
    None
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn wrong_queue_type(name: &str, wanted: &str, current: &str) -> Fault {
    let describe = |queue_type: &str| match queue_type {
        "stream" => "a stream".to_owned(),
        other => format!("a queue of type {other}"),
    };
    Fault::WrongKind(format!(
        "{name} is {}, but bob-runner needs {}: delete it with its messages (`rabbitmqctl \
         delete_queue {name}`), or use another virtual host in BOB_QUEUE_URL",
        describe(current),
        describe(wanted)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_the_broker_about_differing_arguments_are_parsed() {
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
        for (values, current, is_text) in cases {
            let reply = format!("inequivalent arg 'x-a' for queue 'q but' in vhost '/': {values}");
            let parsed = Difference::parse(&reply).unwrap();
            assert_eq!(parsed.argument, "x-a");
            assert_eq!(parsed.current.as_deref(), current, "{reply}");
            if current.is_some() {
                assert_eq!(parsed.is_text, is_text, "{reply}");
            }
        }
        assert_eq!(Difference::parse("invalid arg 'x-a'"), None);
    }

    #[test]
    fn an_exchange_of_another_type_is_reported_with_the_name_to_delete() {
        let reply = |argument| {
            format!(
                "inequivalent arg '{argument}' for exchange 'x': received 'a' but current is 'b'"
            )
        };
        let fault = exchange_mismatch("bob.direct", &reply("type")).unwrap();
        assert!(fault.cause().contains("delete exchange name=bob.direct"), "{}", fault.cause());
        let fault = exchange_mismatch("bob.direct", &reply("durable"));
        assert!(fault.is_none(), "the exchange can be used");
    }
}

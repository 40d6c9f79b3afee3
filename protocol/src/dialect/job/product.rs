//! The `product` of a job: the settings for its executor, read by a table of keys per executor.

use serde_json::{Map, Value as Json};

use crate::dialect::bob::rules;
use crate::dialect::container;
use crate::dialect::handover::{entrypoint, object, token, url};
use crate::dialect::limits::limits;
use crate::dialect::reader::{Aliases, Field, Fields, Keys, Reader};
use crate::dialect::tree::Value;
use crate::pipeline::{ProcessLimits, Token, Vars, bad_variable};

type Rule = fn(&str) -> Option<&'static str>;

/// The type of a value.
#[derive(Clone, Copy)]
pub(super) enum ValueKind {
    /// A text that satisfies a rule.
    Text(Rule),
    /// The address of an API.
    Url,
    /// One of a set of words.
    Word(&'static [&'static str]),
    /// A number or a text. Empty counts as absent.
    Number,
    Port,
    Span,
    Switch,
    /// A text or `{secret-name: NAME}`.
    Secret,
    /// Any map.
    Map,
    /// Host directories mounted into a container.
    Mounts,
    /// Resource limits for processes.
    Limits,
    /// Words before a container's command.
    Entrypoint,
    /// Additional environment variables.
    Vars,
    /// Lines of a program: a text or a list of texts.
    Lines,
    /// Like `Lines`, but the list can contain lists.
    Nested,
}

/// Whether a key is required.
#[derive(Clone, Copy)]
pub(super) enum Need {
    Must(&'static str),
    May,
    Usual(&'static str),
}

/// A key of a product.
#[derive(Clone, Copy)]
pub(super) struct Key(pub(super) &'static str, pub(super) ValueKind, pub(super) Need);

/// The keys of a product.
pub(super) struct Product {
    pub(super) keys: &'static [Key],
    pub(super) known: Keys,
    /// Alternative names: `(alternative, known)`.
    pub(super) aliases: Aliases,
}

/// The names of keys, for the reader.
pub(super) const fn names<const N: usize>(keys: &[Key; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = keys[at].0;
        at += 1;
    }
    names
}

const DOCKER_KEYS: [Key; 9] = [
    Key(
        "image",
        ValueKind::Text(rules::image),
        Need::Must("the image that the container begins with"),
    ),
    Key("entrypoint", ValueKind::Entrypoint, Need::May),
    Key("before_script", ValueKind::Lines, Need::May),
    Key("commands", ValueKind::Lines, Need::May),
    Key("script", ValueKind::Lines, Need::May),
    Key("namespace", ValueKind::Text(rules::plain), Need::Usual("runner")),
    Key("mounts", ValueKind::Mounts, Need::May),
    Key("env", ValueKind::Vars, Need::May),
    Key("tty", ValueKind::Switch, Need::May),
];

pub(super) const DOCKER: Product = Product {
    keys: &DOCKER_KEYS,
    known: Keys {
        known: &names(&DOCKER_KEYS),
        instead: &[
            ("command", "did you mean `commands`?"),
            ("variables", "it belongs to the job, or write `env`"),
            ("volumes", "did you mean `mounts`?"),
        ],
    },
    aliases: &[],
};

const LOCAL_KEYS: [Key; 3] = [
    Key("before_script", ValueKind::Lines, Need::May),
    Key("commands", ValueKind::Lines, Need::May),
    Key(ProcessLimits::KEY, ValueKind::Limits, Need::May),
];

/// Keys that belong to another executor.
const ELSEWHERE: &[(&str, &str)] = &[
    ("command", "did you mean `commands`?"),
    ("image", "only the docker executor has images"),
    ("env", "it belongs to the job, as `variables`"),
    ("variables", "it belongs to the job"),
];

pub(super) const LOCAL: Product = Product {
    keys: &LOCAL_KEYS,
    known: Keys { known: &names(&LOCAL_KEYS), instead: ELSEWHERE },
    aliases: &[("script", "commands")],
};

const CUSTOM_KEYS: [Key; 3] = [
    Key("before_script", ValueKind::Lines, Need::May),
    Key("script", ValueKind::Nested, Need::May),
    Key(ProcessLimits::KEY, ValueKind::Limits, Need::May),
];

pub(super) const CUSTOM: Product = Product {
    keys: &CUSTOM_KEYS,
    known: Keys { known: &names(&CUSTOM_KEYS), instead: ELSEWHERE },
    aliases: &[("commands", "script")],
};

const SSH_KEYS: [Key; 8] = [
    Key("host", ValueKind::Text(word), Need::Must("where the commands are run")),
    Key("user", ValueKind::Text(word), Need::Usual("root")),
    Key("port", ValueKind::Port, Need::May),
    Key("keyfile", ValueKind::Text(rules::plain), Need::May),
    Key("known_hosts", ValueKind::Word(&["strict", "accept-new", "off"]), Need::May),
    Key("known_hosts_file", ValueKind::Text(rules::plain), Need::May),
    Key("connect_timeout", ValueKind::Span, Need::May),
    Key("commands", ValueKind::Lines, Need::May),
];

pub(super) const SSH: Product = Product {
    keys: &SSH_KEYS,
    known: Keys { known: &names(&SSH_KEYS), instead: ELSEWHERE },
    aliases: &[("script", "commands")],
};

/// A parsed product.
pub(super) struct Read<'a> {
    pub(super) fields: Fields<'a>,
    pub(super) with: Map<String, Json>,
    /// The programs, in table order.
    pub(super) texts: Vec<Vec<String>>,
    pub(super) vars: Vars,
    pub(super) entrypoint: Option<Vec<String>>,
}

pub(super) fn read<'a>(
    reader: &mut Reader,
    field: &Field<'a>,
    product: &Product,
) -> Option<Read<'a>> {
    let fields = reader.map_by(field, &product.known, product.aliases)?;
    let mut read =
        Read { fields, with: Map::new(), texts: Vec::new(), vars: Vars::new(), entrypoint: None };
    for Key(name, kind, need) in product.keys {
        let found = match need {
            Need::Must(what) => reader.required(&read.fields, name, what),
            Need::May | Need::Usual(_) => read.fields.get(name),
        };
        let Some(found) = found else {
            if let Need::Usual(value) = need {
                read.with.insert((*name).to_owned(), (*value).into());
            }
            continue;
        };
        match kind {
            ValueKind::Lines | ValueKind::Nested => {
                read.texts.extend(lines(reader, &found, matches!(kind, ValueKind::Nested)));
            }
            ValueKind::Vars => {
                read.vars = reader.scalars(&found, bad_variable).unwrap_or_default();
            }
            ValueKind::Entrypoint => read.entrypoint = entrypoint(reader, &found),
            ValueKind::Text(_)
            | ValueKind::Url
            | ValueKind::Word(_)
            | ValueKind::Number
            | ValueKind::Port
            | ValueKind::Span
            | ValueKind::Switch
            | ValueKind::Secret
            | ValueKind::Map
            | ValueKind::Mounts
            | ValueKind::Limits => {
                if let Some(value) = value(reader, &found, *kind) {
                    read.with.insert((*name).to_owned(), value);
                }
            }
        }
    }
    Some(read)
}

fn value(reader: &mut Reader, field: &Field<'_>, kind: ValueKind) -> Option<Json> {
    match kind {
        ValueKind::Text(rule) => reader.checked_text(field, rule).map(Json::from),
        ValueKind::Url => {
            let url = url(reader, field)?;
            if url.is_empty() {
                reader.fault(field, format!("{} is empty", field.name()), None);
            }
            Some(url.into())
        }
        ValueKind::Word(words) => {
            let words: Vec<(&str, &str)> = words.iter().map(|word| (*word, *word)).collect();
            reader.word(field, &words).map(Json::from)
        }
        ValueKind::Number => number(reader, field),
        ValueKind::Port => reader.count(field, 1, u32::from(u16::MAX)).map(Json::from),
        ValueKind::Span => serde_json::to_value(reader.span(field)?).ok(),
        ValueKind::Switch => reader.switch(field).map(Json::from),
        ValueKind::Secret => match token(reader, field)? {
            Token::Literal(text) if text.is_empty() => {
                reader.fault(field, format!("{} is empty", field.name()), None);
                None
            }
            token @ (Token::Literal(_) | Token::Named { .. }) => serde_json::to_value(token).ok(),
        },
        ValueKind::Map => object(reader, field).map(Json::Object),
        ValueKind::Mounts => container::mounts(reader, field),
        ValueKind::Limits => limits(reader, field),
        // Not values of `with`: the caller of `read` handles them.
        ValueKind::Vars | ValueKind::Lines | ValueKind::Nested | ValueKind::Entrypoint => None,
    }
}

/// Machine and invoice numbers are names, so `100` and `"100"` are equal.
fn number(reader: &mut Reader, field: &Field<'_>) -> Option<Json> {
    match &field.node.value {
        Value::Number(text) | Value::String(text) => {
            if let Some(why) = segment(text) {
                reader.fault(field, format!("{} {why}", field.name()), None);
                return None;
            }
            (!text.is_empty()).then(|| text.clone().into())
        }
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
            reader.mismatch(field, "a number or a string", None);
            None
        }
    }
}

fn lines(reader: &mut Reader, field: &Field<'_>, nested: bool) -> Option<Vec<String>> {
    if let Value::String(text) = &field.node.value {
        return line(reader, field, text).map(|text| vec![text]);
    }
    let Some(items) = field.items() else {
        reader.mismatch(field, "a string or a list of strings", None);
        return None;
    };
    let mut lines = Vec::new();
    for item in items {
        // A scalar such as in `[sleep, 5]` is unambiguous.
        match (&item.node.value, item.node.scalar()) {
            (_, Some(text)) => lines.extend(line(reader, &item, text)),
            (Value::List(_), None) if nested => {
                lines.extend(self::lines(reader, &item, false).unwrap_or_default());
            }
            (_, None) => reader.mismatch(&item, "a string", None),
        }
    }
    Some(lines)
}

fn line(reader: &mut Reader, field: &Field<'_>, text: &str) -> Option<String> {
    if text.contains('\0') {
        reader.fault(field, format!("{} has a NUL character", field.name()), None);
        return None;
    }
    Some(text.to_owned())
}

/// A name passed as a program argument, which must not look like an option.
fn word(text: &str) -> Option<&'static str> {
    if text.starts_with('-') {
        return Some("begins with `-`, as options do");
    }
    let inside = text.starts_with("${");
    let odd = text.chars().any(char::is_whitespace) && !inside;
    rules::plain(text).or_else(|| odd.then_some("has a blank"))
}

/// A path segment of a URL.
fn segment(text: &str) -> Option<&'static str> {
    if text.starts_with("${") {
        return None;
    }
    let odd = text.chars().any(|c| c.is_control() || c.is_whitespace() || "/?#".contains(c));
    odd.then_some("has a character that a part of an address cannot have")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_values_are_refused() {
        for bad in ["", "-oProxyCommand=x", "a b", "a\nb"] {
            assert!(word(bad).is_some(), "{bad:?}");
        }
        for bad in ["1/2", "1?x", "a b"] {
            assert!(segment(bad).is_some(), "{bad:?}");
        }
    }
}

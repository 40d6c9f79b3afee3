//! Actions of the accounting services.

use serde_json::{Map, Value as Json};

use super::product::{self, Key, Need, Product, ValueKind, names};
use crate::dialect::bob::rules;
use crate::dialect::reader::{Field, Keys, Reader};

/// A service: its product keys and its actions.
pub(super) struct Service {
    product: Product,
    /// Keys allowed for every action.
    common: &'static [&'static str],
    actions: &'static [Action],
}

/// An action: its name, required keys (`a|b` means one of the two), and optional keys.
struct Action(&'static str, &'static [&'static str], &'static [&'static str]);

const SEVDESK_KEYS: [Key; 13] = [
    Key("type", ValueKind::Text(rules::plain), Need::May),
    Key("api_token", ValueKind::Secret, Need::Must("the token of the account")),
    Key("base_url", ValueKind::Url, Need::May),
    Key("invoice_data", ValueKind::Map, Need::May),
    Key("invoice_id", ValueKind::Number, Need::May),
    Key("contact_id", ValueKind::Number, Need::May),
    Key("contact_data", ValueKind::Map, Need::May),
    Key("pdf_output", ValueKind::Text(rules::artifact_path), Need::May),
    Key("to_email", ValueKind::Text(rules::plain), Need::May),
    Key("subject", ValueKind::Text(rules::plain), Need::May),
    Key("text", ValueKind::Text(any), Need::May),
    Key("filter", ValueKind::Map, Need::May),
    // Enables the calls of the original runner, which differ from sevDesk's documentation.
    Key("compat", ValueKind::Switch, Need::May),
];

pub(super) const SEVDESK: Service = Service {
    product: Product {
        keys: &SEVDESK_KEYS,
        known: Keys { known: &names(&SEVDESK_KEYS), instead: &[("api_key", "say `api_token`")] },
        aliases: &[("toEmail", "to_email")],
    },
    common: &["api_token", "base_url"],
    actions: &[
        Action("create_invoice", &["invoice_data", "contact_id|contact_data"], &["compat"]),
        Action("save_invoice_draft", &["invoice_data"], &["compat"]),
        Action("cancel_invoice", &["invoice_id"], &["compat"]),
        Action("delete_invoice", &["invoice_id"], &[]),
        Action("get_invoice", &["invoice_id"], &[]),
        Action("get_invoice_status", &["invoice_id"], &[]),
        Action("get_invoice_pdf", &["invoice_id"], &["pdf_output"]),
        Action("send_invoice", &["invoice_id"], &["to_email", "subject", "text"]),
        Action("create_contact", &["contact_data"], &[]),
        Action("list_invoices", &[], &["filter"]),
    ],
};

const LEXWARE_KEYS: [Key; 7] = [
    Key("type", ValueKind::Text(rules::plain), Need::May),
    Key("api_key", ValueKind::Secret, Need::Must("the key of the account")),
    Key("base_url", ValueKind::Url, Need::May),
    Key("customer_id", ValueKind::Number, Need::May),
    Key("invoice_data", ValueKind::Map, Need::May),
    Key("invoice_id", ValueKind::Number, Need::May),
    Key("finalize", ValueKind::Switch, Need::May),
];

pub(super) const LEXWARE: Service = Service {
    product: Product {
        keys: &LEXWARE_KEYS,
        known: Keys { known: &names(&LEXWARE_KEYS), instead: &[("api_token", "say `api_key`")] },
        aliases: &[],
    },
    common: &["api_key", "base_url"],
    actions: &[
        Action("create_invoice", &["customer_id", "invoice_data"], &["finalize"]),
        Action("cancel_invoice", &["invoice_id"], &[]),
    ],
};

fn any(_text: &str) -> Option<&'static str> {
    None
}

/// Reads the product of a job. `label` is the job's `type`.
pub(super) fn read(
    reader: &mut Reader,
    field: &Field<'_>,
    label: Option<&Field<'_>>,
    service: &Service,
) -> Option<Map<String, Json>> {
    let mut read = product::read(reader, field, &service.product)?;
    let own = read.fields.get("type");
    let words: Vec<(&str, &Action)> =
        service.actions.iter().map(|action| (action.0, action)).collect();
    let Some(named) = own.as_ref().or(label) else {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let hint = format!("one of {}", words.join(", "));
        drop(reader.required(&read.fields, "type", &hint));
        return None;
    };
    let Action(action, must, may) = reader.word(named, &words)?;
    for one in *must {
        if one.split('|').any(|key| read.with.contains_key(key)) {
            continue;
        }
        // A key that is present but invalid already has a fault.
        if one
            .split('|')
            .any(|key| find(service, key).is_some_and(|k| read.fields.get(k).is_some()))
            && !reader.is_clean()
        {
            continue;
        }
        let what = one.split('|').map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" or ");
        reader.fault(field, format!("{what} is missing"), Some(&format!("`{action}` needs it")));
    }
    for Key(key, _, _) in service.product.keys {
        let fits = *key == "type"
            || service.common.contains(key)
            || may.contains(key)
            || must.iter().any(|one| one.split('|').any(|one| one == *key));
        if let (false, Some(field)) = (fits, read.fields.get(key)) {
            reader.fault(&field, format!("`{key}` is not for `{action}`"), Some("leave it out"));
        }
    }
    read.with.remove("type");
    read.with.insert("action".to_owned(), (*action).into());
    // If the product names the action, the job's `type` is a label.
    if let (Some(_), Some(label)) = (&own, label)
        && let Some(label) = reader.checked_text(label, rules::plain)
    {
        read.with.insert("label".to_owned(), label.into());
    }
    Some(read.with)
}

fn find(service: &Service, name: &str) -> Option<&'static str> {
    service.product.keys.iter().map(|Key(key, _, _)| *key).find(|key| *key == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_an_action_are_keys_of_its_service() {
        for service in [SEVDESK, LEXWARE] {
            for Action(action, must, may) in service.actions {
                let keys = must.iter().flat_map(|one| one.split('|')).chain(may.iter().copied());
                for key in keys.chain(service.common.iter().copied()) {
                    assert!(find(&service, key).is_some(), "{action}: {key}");
                }
            }
        }
    }
}

//! Proxmox VE calls: shortcuts, and calls written out in full.

use serde_json::{Map, Value as Json};

use super::product::{self, Key, Need, Product, Read, ValueKind, names};
use crate::dialect::bob::rules;
use crate::dialect::reader::{Field, Keys, Reader};
use crate::dialect::tree::quoted;

/// A shortcut: its name, required parameters, method, and the path below the machine type. A path
/// with `{vmid}` requires one.
struct Shortcut(&'static str, &'static [&'static str], &'static str, &'static str);

#[rustfmt::skip]
const SHORTCUTS: [Shortcut; 31] = [
    Shortcut("kvm_create", &["vmid"], "POST", ""),
    Shortcut("lxc_create", &["vmid", "ostemplate"], "POST", ""),
    Shortcut("kvm_start", &[], "POST", "/{vmid}/status/start"),
    Shortcut("lxc_start", &[], "POST", "/{vmid}/status/start"),
    Shortcut("kvm_stop", &[], "POST", "/{vmid}/status/stop"),
    Shortcut("lxc_stop", &[], "POST", "/{vmid}/status/stop"),
    Shortcut("kvm_delete", &[], "DELETE", "/{vmid}"),
    Shortcut("lxc_delete", &[], "DELETE", "/{vmid}"),
    Shortcut("kvm_status", &[], "GET", "/{vmid}/status/current"),
    Shortcut("lxc_status", &[], "GET", "/{vmid}/status/current"),
    Shortcut("kvm_config", &[], "GET", "/{vmid}/config"),
    Shortcut("lxc_config", &[], "GET", "/{vmid}/config"),
    Shortcut("kvm_agent_exec", &["command"], "POST", "/{vmid}/agent/exec"),
    Shortcut("kvm_vncproxy", &[], "POST", "/{vmid}/vncproxy"),
    Shortcut("lxc_vncproxy", &[], "POST", "/{vmid}/vncproxy"),
    Shortcut("kvm_vncwebsocket", &[], "GET", "/{vmid}/vncwebsocket"),
    Shortcut("lxc_vncwebsocket", &[], "GET", "/{vmid}/vncwebsocket"),
    Shortcut("kvm_migrate", &["target"], "POST", "/{vmid}/migrate"),
    Shortcut("lxc_migrate", &["target"], "POST", "/{vmid}/migrate"),
    Shortcut("kvm_clone", &["newid"], "POST", "/{vmid}/clone"),
    Shortcut("lxc_clone", &["newid"], "POST", "/{vmid}/clone"),
    Shortcut("kvm_resize", &["disk", "size"], "PUT", "/{vmid}/resize"),
    Shortcut("lxc_resize", &["disk", "size"], "PUT", "/{vmid}/resize"),
    Shortcut("kvm_firewall", &[], "GET", "/{vmid}/firewall/options"),
    Shortcut("lxc_firewall", &[], "GET", "/{vmid}/firewall/options"),
    Shortcut("kvm_metrics", &[], "GET", "/{vmid}/rrddata"),
    Shortcut("lxc_metrics", &[], "GET", "/{vmid}/rrddata"),
    Shortcut("kvm_list", &[], "GET", ""),
    Shortcut("lxc_list", &[], "GET", ""),
    Shortcut("kvm_snapshot", &["snapname"], "POST", "/{vmid}/snapshot"),
    Shortcut("lxc_snapshot", &["snapname"], "POST", "/{vmid}/snapshot"),
];

/// Shortcuts that cannot exist, with a hint for each.
const NO_SHORTCUT: [(&str, &str); 1] =
    [("lxc_agent_exec", "containers have no agent: run the command with the ssh executor")];

/// Parameters with another name in Proxmox: shortcut, name in the file, name in Proxmox.
const RENAMED: [(&str, &str, &str); 1] = [("lxc_clone", "name", "hostname")];

/// Default parameters: shortcut, name, value.
const DEFAULT_POLL: [(&str, &str, &str); 2] =
    [("kvm_metrics", "timeframe", "hour"), ("lxc_metrics", "timeframe", "hour")];

/// Calls whose default method is GET.
const READING: [&str; 2] = ["status/current", "config"];

const KEYS: [Key; 14] = [
    Key("host", ValueKind::Url, Need::Must("the address, such as https://host:8006")),
    Key("node", ValueKind::Text(part), Need::Must("the node of the cluster")),
    Key("token_id", ValueKind::Text(token_id), Need::Must("such as user@realm!name")),
    Key("token_secret", ValueKind::Secret, Need::Must("the secret of the token")),
    Key("vmid", ValueKind::Number, Need::May),
    Key("type", ValueKind::Word(&["qemu", "lxc"]), Need::May),
    Key("api_command", ValueKind::Text(command), Need::May),
    Key("api_method", ValueKind::Word(&["GET", "POST", "PUT", "DELETE"]), Need::May),
    Key("params", ValueKind::Map, Need::May),
    Key("ca_file", ValueKind::Text(rules::plain), Need::May),
    Key("fingerprint", ValueKind::Text(rules::plain), Need::May),
    Key("insecure", ValueKind::Switch, Need::May),
    Key("wait", ValueKind::Switch, Need::May),
    Key("wait_timeout", ValueKind::Span, Need::May),
];

const PRODUCT: Product = Product {
    keys: &KEYS,
    known: Keys {
        known: &names(&KEYS),
        instead: &[("url", "did you mean `host`?"), ("token", "say `token_id` and `token_secret`")],
    },
    aliases: &[("api_params", "params")],
};

/// Reads the product of a job. `label` is the job's `type`: a shortcut, or a free label for a call
/// written out in full.
pub(super) fn read(
    reader: &mut Reader,
    field: &Field<'_>,
    label: Option<&Field<'_>>,
) -> Option<Map<String, Json>> {
    let read = product::read(reader, field, &PRODUCT)?;
    let word = match label {
        Some(label) => Some(reader.checked_text(label, rules::plain)?),
        None => None,
    };
    let shortcut = word.as_ref().and_then(|word| SHORTCUTS.iter().find(|known| known.0 == *word));
    match (shortcut, read.fields.get("api_command")) {
        (Some(shortcut), None) => short(reader, field, read, shortcut),
        (Some(Shortcut(name, ..)), Some(second)) => {
            let message = format!("the job is a `{name}` already, which says what is called");
            reader.fault(&second, message, Some("remove one of them"));
            None
        }
        (None, Some(_)) => written_out(reader, field, read, word),
        (None, None) => {
            unknown(reader, field, label, word.as_deref());
            None
        }
    }
}

fn unknown(
    reader: &mut Reader,
    product: &Field<'_>,
    label: Option<&Field<'_>>,
    word: Option<&str>,
) {
    let (Some(label), Some(word)) = (label, word) else {
        let message = "nothing says what is called".to_owned();
        let hint = "write a shortcut as the `type` of the job, such as kvm_start, or `api_command`";
        reader.fault(product, message, Some(hint));
        return;
    };
    let instead = NO_SHORTCUT.iter().find(|(known, _)| *known == word);
    let hint = match (instead, reader.nearest(word, SHORTCUTS.iter().map(|known| known.0))) {
        (Some((_, hint)), _) => (*hint).to_owned(),
        (None, Some(known)) => format!("did you mean `{known}`?"),
        (None, None) => "write `api_command` in `product` for any other call".to_owned(),
    };
    reader.fault(label, format!("there is no shortcut {}", quoted(word)), Some(&hint));
}

/// The machine type in Proxmox's terms.
fn kind_of(shortcut: &str) -> &'static str {
    if shortcut.starts_with("lxc_") { "lxc" } else { "qemu" }
}

fn short(
    reader: &mut Reader,
    product: &Field<'_>,
    read: Read<'_>,
    shortcut: &Shortcut,
) -> Option<Map<String, Json>> {
    let Shortcut(name, must, method, path) = shortcut;
    let Read { fields, mut with, .. } = read;
    let kind = kind_of(name);
    if let (Some(field), Some(given)) = (fields.get("type"), with.get("type"))
        && given != kind
    {
        let message = format!("`{name}` is for machines of the type `{kind}`");
        reader.fault(&field, message, Some("leave `type` out here"));
    }
    if let Some(field) = fields.get("api_method") {
        let message = format!("`{name}` has the method {method}");
        reader.fault(&field, message, Some("leave `api_method` out"));
    }
    let mut params = params_of(&mut with);
    for (_, written, own) in RENAMED.iter().filter(|(of, _, _)| of == name) {
        if !params.contains_key(*own)
            && let Some(value) = params.remove(*written)
        {
            params.insert((*own).to_owned(), value);
        }
    }
    for (_, key, value) in DEFAULT_POLL.iter().filter(|(of, _, _)| of == name) {
        params.entry(*key).or_insert_with(|| (*value).into());
    }
    // A machine that does not exist yet is not part of the path.
    if must.contains(&"vmid")
        && !params.contains_key("vmid")
        && let Some(vmid) = with.remove("vmid")
    {
        params.insert("vmid".to_owned(), vmid);
    }
    let place = fields.get("params").unwrap_or_else(|| product.clone());
    let hint = format!("`{name}` needs it");
    for key in *must {
        if params.get(*key).is_none_or(|value| *value == Json::Null || *value == "") {
            reader.fault(&place, format!("`{key}` is missing in `params`"), Some(&hint));
        }
    }
    if path.contains("{vmid}") && !with.contains_key("vmid") {
        drop(reader.required(&fields, "vmid", &hint));
    }
    with.insert("command".to_owned(), (*name).into());
    finish(&mut with, kind, method, &format!("/{{node}}/{kind}{path}"), params);
    Some(with)
}

fn written_out(
    reader: &mut Reader,
    product: &Field<'_>,
    read: Read<'_>,
    label: Option<String>,
) -> Option<Map<String, Json>> {
    let Read { fields, mut with, .. } = read;
    if fields.get("type").is_none() {
        let hint = Some("`qemu` or `lxc`, as a call that is written out can be for both");
        reader.fault(product, "`type` is missing in `product`".to_owned(), hint);
    }
    let params = params_of(&mut with);
    let (Some(Json::String(command)), Some(Json::String(kind))) =
        (with.remove("api_command"), with.remove("type"))
    else {
        return None;
    };
    let usual = if READING.contains(&command.as_str()) { "GET" } else { "POST" };
    let method = with.remove("api_method");
    let method = method.as_ref().and_then(Json::as_str).unwrap_or(usual);
    let machine = with.contains_key("vmid") && command != "create";
    let machine = if machine { "/{vmid}" } else { "" };
    let path = format!("/{{node}}/{kind}{machine}/{command}");
    with.insert("command".to_owned(), command.into());
    finish(&mut with, &kind, method, &path, params);
    // For a call written out in full, the job's `type` is a label.
    if let Some(label) = label {
        with.insert("label".to_owned(), label.into());
    }
    Some(with)
}

fn params_of(with: &mut Map<String, Json>) -> Map<String, Json> {
    with.remove("params").and_then(|params| params.as_object().cloned()).unwrap_or_default()
}

/// Placeholders in braces are filled in when the call is made, because their values can be results.
fn finish(
    with: &mut Map<String, Json>,
    kind: &str,
    method: &str,
    path: &str,
    params: Map<String, Json>,
) {
    with.insert("type".to_owned(), kind.into());
    with.insert("method".to_owned(), method.into());
    with.insert("path".to_owned(), format!("/api2/json/nodes{path}").into());
    if !params.is_empty() {
        with.insert("params".to_owned(), params.into());
    }
}

/// A name used as a path segment.
fn part(text: &str) -> Option<&'static str> {
    let odd = !text.starts_with("${") && text.contains(['/', '?', '#', ' ']);
    rules::plain(text)
        .or_else(|| odd.then_some("has a character that a part of an address cannot have"))
}

fn token_id(text: &str) -> Option<&'static str> {
    let is_whole = text.starts_with("${")
        || text.split_once('!').is_some_and(|(user, name)| user.contains('@') && !name.is_empty());
    rules::plain(text).or_else(|| (!is_whole).then_some("is not a token such as user@realm!name"))
}

fn command(text: &str) -> Option<&'static str> {
    let odd = text.contains(['?', '#', ' ', '{']) && !text.contains("${");
    let leaves = text.starts_with('/') || text.split('/').any(|part| part == "..");
    let odd = odd || leaves;
    rules::plain(text)
        .or_else(|| odd.then_some("is not a path below a machine, such as status/start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortcuts_are_unique_and_their_descriptions_refer_to_existing_ones() {
        let known = |name: &str| SHORTCUTS.iter().filter(|shortcut| shortcut.0 == name).count();
        for Shortcut(name, _, method, path) in &SHORTCUTS {
            assert_eq!(known(name), 1, "{name}");
            assert!(name.starts_with("kvm_") || name.starts_with("lxc_"), "{name}");
            assert!(["GET", "POST", "PUT", "DELETE"].contains(method), "{name}");
            assert!(path.is_empty() || path.starts_with("/{vmid}"), "{name}");
        }
        assert!(RENAMED.iter().chain(&DEFAULT_POLL).all(|(of, _, _)| known(of) == 1));
        assert!(NO_SHORTCUT.iter().all(|(of, _)| known(of) == 0));
    }

    #[test]
    fn values_that_would_change_the_call_are_refused() {
        for bad in ["", "/x", "../x", "a?b", "a b", "a\nb"] {
            assert!(command(bad).is_some(), "{bad:?}");
        }
        for bad in ["", "a/b", "a b"] {
            assert!(part(bad).is_some(), "{bad:?}");
        }
        for bad in ["", "root", "root@pam", "root@pam!"] {
            assert!(token_id(bad).is_some(), "{bad:?}");
        }
    }
}

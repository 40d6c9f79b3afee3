//! Extension headers of an entry: long names and pax records.

use std::io;

use tokio_tar::{EntryType, Header};

use super::entry::{About, BLOCK, EntryKind, bad};

/// The longest name that fits into a header.
const NAME: usize = 100;

/// The extensions for the next entry.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Its name, if given.
    name: Option<Vec<u8>>,
    /// Its link target, if given.
    link: Option<Vec<u8>>,
    /// Its size, if given.
    size: Option<Vec<u8>>,
    /// Other pax records, in order.
    others: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether there was a pax header.
    recorded: bool,
}

impl Records {
    /// Whether there were no extensions.
    pub(super) fn is_empty(&self) -> bool {
        !self.recorded && self.name.is_none() && self.link.is_none()
    }

    /// The entry's name.
    pub(super) fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// The entry's link target.
    pub(super) fn link(&self) -> Option<&[u8]> {
        self.link.as_deref()
    }

    /// The entry's size.
    pub(super) fn size(&self) -> io::Result<Option<u64>> {
        let Some(size) = &self.size else { return Ok(None) };
        let number = std::str::from_utf8(size).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| bad("the archive has a size that is not a number"))
    }

    /// Adds the content of an extension header.
    pub(super) fn add(&mut self, about: About, said: &[u8]) -> io::Result<()> {
        match about {
            About::Name => set_once(&mut self.name, until_nul(said)),
            About::Link => set_once(&mut self.link, until_nul(said)),
            About::Records => {
                if std::mem::replace(&mut self.recorded, true) {
                    return Err(bad("the archive describes an entry twice"));
                }
                for record in parsed(said) {
                    let (key, value) = record?;
                    match key {
                        b"path" => set_once(&mut self.name, value)?,
                        b"linkpath" => set_once(&mut self.link, value)?,
                        b"size" => set_once(&mut self.size, value)?,
                        _ if key.starts_with(b"GNU.sparse.") => {
                            return Err(bad("the archive has a sparse file, which is not taken"));
                        }
                        // An empty value deletes a record that was not given.
                        _ if value.is_empty() => {}
                        _ => self.others.push((key.to_vec(), value.to_vec())),
                    }
                }
                Ok(())
            }
        }
    }

    /// Writes the entry's headers with its new names. Long names become records.
    ///
    /// The header is rebuilt from the relevant fields only. Some readers take a part of the name
    /// from bytes that other header formats use differently.
    pub(super) fn write(&self, given: &Header, entry: &Rewritten<'_>) -> Vec<u8> {
        let mut records = Vec::new();
        for (key, value) in &self.others {
            push(&mut records, key, value);
        }
        if let (EntryKind::File, Some(size)) = (entry.kind, &self.size) {
            push(&mut records, b"size", size);
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(match entry.kind {
            EntryKind::File => EntryType::Regular,
            EntryKind::Directory => EntryType::Directory,
            EntryKind::Symlink => EntryType::Symlink,
            EntryKind::HardLink => EntryType::Link,
        });
        header.set_size(entry.size);
        if let (Some((user, group)), Some(ustar)) = (owners(given), header.as_ustar_mut()) {
            (ustar.uname, ustar.gname) = (user, group);
        }
        let (old, place) = (given.as_old(), header.as_old_mut());
        (place.mode, place.uid, place.gid, place.mtime) = (old.mode, old.uid, old.gid, old.mtime);
        if !put(&mut place.name, entry.name) {
            push(&mut records, b"path", entry.name);
        }
        if !put(&mut place.linkname, entry.link) {
            push(&mut records, b"linkpath", entry.link);
        }
        header.set_cksum();
        let mut out = Vec::new();
        if !records.is_empty() {
            let mut about = Header::new_ustar();
            put(&mut about.as_old_mut().name, b"././@PaxHeader");
            about.set_entry_type(EntryType::XHeader);
            about.set_mode(0o644);
            about.set_uid(0);
            about.set_gid(0);
            about.set_mtime(0);
            about.set_size(records.len() as u64);
            about.set_cksum();
            out.extend_from_slice(about.as_bytes());
            records.resize(records.len().next_multiple_of(BLOCK), 0);
            out.append(&mut records);
        }
        out.extend_from_slice(header.as_bytes());
        out
    }
}

/// An entry to be written.
pub(super) struct Rewritten<'a> {
    /// Its kind.
    pub(super) kind: EntryKind,
    /// The size of its content.
    pub(super) size: u64,
    /// Its name.
    pub(super) name: &'a [u8],
    /// Its link target. Empty if it is not a link.
    pub(super) link: &'a [u8],
}

/// The names of user and group, if the header format has them.
fn owners(header: &Header) -> Option<([u8; 32], [u8; 32])> {
    let ustar = header.as_ustar().map(|ustar| (ustar.uname, ustar.gname));
    ustar.or_else(|| header.as_gnu().map(|gnu| (gnu.uname, gnu.gname)))
}

/// Checks records that apply to all following entries.
pub(super) fn check_global(said: &[u8]) -> io::Result<()> {
    for record in parsed(said) {
        let (key, _) = record?;
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            let key = String::from_utf8_lossy(key);
            return Err(bad(format!(
                "the archive says the {key} of every entry, which is not taken"
            )));
        }
    }
    Ok(())
}

type Record<'a> = (&'a [u8], &'a [u8]);

/// Parses records of the form `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
fn parsed(mut said: &[u8]) -> impl Iterator<Item = io::Result<Record<'_>>> {
    std::iter::from_fn(move || {
        if said.is_empty() {
            return None;
        }
        let record = first(said);
        said = record.map_or(&[], |(_, rest)| rest);
        Some(record.map(|(record, _)| record).ok_or_else(|| bad("the archive has a bad record")))
    })
}

/// Parses the first record. Returns it and the rest.
fn first(said: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let digits = said.iter().position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&said[..digits]).ok()?;
    // `parse` alone would accept a sign.
    let length: usize =
        number.bytes().all(|byte| byte.is_ascii_digit()).then_some(number)?.parse().ok()?;
    let (record, rest) = said.split_at_checked(length)?;
    let text = record.get(digits + 1..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    Some(((&text[..equals], &text[equals + 1..]), rest))
}

/// Rejects a duplicate: readers differ in which of two values they use.
fn set_once(place: &mut Option<Vec<u8>>, value: &[u8]) -> io::Result<()> {
    if value.is_empty() {
        return Err(bad("the archive gives an entry an empty name or size"));
    }
    if place.replace(value.to_vec()).is_some() {
        return Err(bad("the archive says the name or size of an entry twice"));
    }
    Ok(())
}

fn until_nul(said: &[u8]) -> &[u8] {
    said.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Copies a text into a header field, truncated if needed. Returns whether it fits.
fn put(place: &mut [u8; NAME], text: &[u8]) -> bool {
    let fits = text.len().min(NAME);
    place.fill(0);
    place[..fits].copy_from_slice(&text[..fits]);
    fits == text.len()
}

/// Appends a record. Its length prefix counts itself.
fn push(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

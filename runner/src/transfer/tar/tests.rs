//! Valid, hostile and broken archives.

use std::collections::BTreeMap;

use futures::StreamExt;
use tokio_tar::{Archive, Builder, EntryType, Header};
use tokio_util::io::StreamReader;

use super::*;

/// An entry: kind, name, link target, content.
type Given<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

fn header(kind: EntryType, name: &[u8], link: &[u8], size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    // Not `set_path`, which rejects the names under test.
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_mode(0o640);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(99);
    header.set_size(size);
    header.set_cksum();
    header
}

async fn tar(entries: &[Given<'_>]) -> Vec<u8> {
    let mut builder = Builder::new_non_terminated(Vec::new());
    for (kind, name, link, bytes) in entries {
        let header = header(*kind, name.as_bytes(), link.as_bytes(), bytes.len() as u64);
        builder.append(&header, *bytes).await.unwrap();
    }
    // Adds the two zero blocks at the end.
    builder.into_inner().await.unwrap()
}

/// Passes a tar through the rewriter in pieces of this size.
async fn through(tar: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let pieces: Vec<_> = tar.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let out = below(Mount::new("src").unwrap(), stream::iter(pieces).boxed());
    out.try_fold(Vec::new(), |mut all, bytes| async move {
        all.extend_from_slice(&bytes);
        Ok(all)
    })
    .await
}

async fn refusal(tar: &[u8]) -> String {
    through(tar, 1000).await.expect_err("it is to be refused").to_string()
}

/// The entries as an independent reader sees them: name to kind, link and content.
async fn read(tar: Vec<u8>) -> BTreeMap<String, (EntryType, String, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let reader = StreamReader::new(stream::iter([Ok::<_, io::Error>(Bytes::from(tar))]));
    let mut entries = Archive::new(reader).entries().unwrap();
    while let Some(entry) = entries.next().await {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().unwrap().into_owned()).unwrap();
        let link = entry.link_name_bytes().unwrap().map(|link| link.into_owned());
        let mut bytes = Vec::new();
        tokio::io::copy(&mut entry, &mut bytes).await.unwrap();
        let kind = entry.header().entry_type();
        let link = String::from_utf8(link.unwrap_or_default()).unwrap();
        found.insert(name, (kind, link, bytes));
    }
    found
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut said = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (1..9).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n);
        said.extend_from_slice(format!("{} {key}={value}\n", length.unwrap()).as_bytes());
    }
    said
}

fn text(bytes: &str) -> (EntryType, &str, &str, &[u8]) {
    (EntryType::Regular, "x", "", bytes.as_bytes())
}

#[tokio::test]
async fn every_entry_is_placed_below_the_mount_and_keeps_its_type() {
    let given = tar(&[
        (EntryType::Directory, "./", "", b""),
        (EntryType::Directory, "a/", "", b""),
        (EntryType::Regular, "./a//b.txt", "", b"hello"),
        (EntryType::Regular, "old-dir/", "", b""),
        (EntryType::Symlink, "a/up", "../a/b.txt", b""),
        (EntryType::Link, "hard", "a/b.txt", b""),
        (EntryType::Continuous, "empty", "", b""),
        (EntryType::Regular, "blocks", "", &[7; 1024]),
    ])
    .await;
    let whole = through(&given, usize::MAX).await.unwrap();
    for piece in [1, 511, 513] {
        assert!(through(&given, piece).await.unwrap() == whole, "in pieces of {piece}");
    }
    let found = read(whole).await;
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    let expected = [
        "src/",
        "src/a/",
        "src/a/b.txt",
        "src/a/up",
        "src/blocks",
        "src/empty",
        "src/hard",
        "src/old-dir/",
    ];
    assert_eq!(names, expected);
    assert_eq!(found["src/a/b.txt"].2, b"hello");
    assert_eq!(found["src/a/up"].1, "../a/b.txt");
    assert_eq!(found["src/hard"].1, "src/a/b.txt", "a hard link names an entry of the archive");
    assert_eq!(found["src/old-dir/"].0, EntryType::Directory);
    assert_eq!(found["src/blocks"].2, [7; 1024]);
}

#[tokio::test]
async fn an_entry_keeps_its_mode_owner_and_time() {
    let out = through(&tar(&[text("x")]).await, 100).await.unwrap();
    let header = Header::from_byte_slice(&out[..BLOCK]);
    assert_eq!((header.mode().unwrap(), header.mtime().unwrap()), (0o640, 99));
    assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (7, 8));
    assert_eq!(&out[out.len() - 1024..], [0; 1024], "it ends like a tar");
}

#[tokio::test]
async fn long_names_survive_in_every_form() {
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(200));
    let target = format!("{}/x", "t".repeat(150));
    let gnu = tar(&[
        (EntryType::GNULongName, "././@LongLink", "", format!("{long}\0").as_bytes()),
        (EntryType::GNULongLink, "././@LongLink", "", format!("{target}\0").as_bytes()),
        (EntryType::Symlink, "cut", "cut", b""),
    ])
    .await;
    let said = pax(&[("path", &long), ("linkpath", &target), ("mtime", "1.5"), ("comment", "")]);
    let mut by_records =
        header(EntryType::XHeader, b"x", b"", said.len() as u64).as_bytes().to_vec();
    by_records.extend_from_slice(&said);
    by_records.resize(by_records.len().next_multiple_of(BLOCK), 0);
    by_records.extend_from_slice(&tar(&[(EntryType::Symlink, "cut", "cut", b"")]).await);
    for given in [gnu, by_records] {
        let found = read(through(&given, 700).await.unwrap()).await;
        let (name, (kind, link, _)) = found.first_key_value().unwrap();
        assert_eq!(name, &format!("src/{long}"));
        assert_eq!((*kind, link.as_str()), (EntryType::Symlink, target.as_str()));
    }

    let mut ustar = Header::new_ustar();
    ustar.set_path(format!("{}/name", "p".repeat(120))).unwrap();
    ustar.set_size(0);
    ustar.set_cksum();
    let given = [ustar.as_bytes().as_slice(), &[0; 1024]].concat();
    let found = read(through(&given, 700).await.unwrap()).await;
    assert!(found.contains_key(&format!("src/{}/name", "p".repeat(120))), "{found:?}");
}

#[tokio::test]
async fn entries_that_escape_their_target_are_refused_by_name() {
    let file = EntryType::Regular;
    let (soft, hard) = (EntryType::Symlink, EntryType::Link);
    let cases: &[(Given<'_>, &str)] = &[
        ((file, "/etc/passwd", "", b""), "absolute"),
        ((file, "../evil", "", b""), "`..`"),
        ((file, "a/../../evil", "", b""), "`..`"),
        ((file, "a/..", "", b""), "`..`"),
        ((EntryType::Directory, "..", "", b""), "`..`"),
        ((soft, "a/link", "/etc", b""), "outside"),
        ((soft, "link", "..", b""), "outside"),
        ((soft, "a/link", "../../x", b""), "outside"),
        ((soft, "a/link", "b/../../../x", b""), "outside"),
        ((soft, "link", "", b""), "outside"),
        ((soft, "./", "a", b""), "whole target"),
        ((hard, "hard", "/etc/shadow", b""), "outside"),
        ((hard, "hard", "../x", b""), "outside"),
        ((hard, "hard", "", b""), "outside"),
        ((EntryType::Char, "null", "", b""), "device"),
        ((EntryType::Block, "disk", "", b""), "device"),
        ((EntryType::Fifo, "pipe", "", b""), "pipe"),
        ((EntryType::GNUSparse, "sparse", "", b""), "kind 'S'"),
        ((EntryType::Other(b'V'), "volume", "", b""), "kind 'V'"),
    ];
    for (given, why) in cases {
        let error = refusal(&tar(&[*given]).await).await;
        let name = format!("{:?}", given.1);
        assert!(error.contains(&name) && error.contains(why), "{}: {error}", given.1);
    }
}

#[tokio::test]
async fn an_archive_without_entries_is_refused() {
    let empty = tar(&[]).await;
    assert!(refusal(&empty).await.contains("the archive is empty"));
}

#[tokio::test]
async fn no_entry_is_written_through_a_link_of_the_same_archive() {
    let soft = EntryType::Symlink;
    let through_links: &[&[Given<'_>]] = &[
        &[(soft, "a", "b", b""), (EntryType::Regular, "a/x", "", b"")],
        &[(soft, "a", ".", b""), (EntryType::Link, "h", "a/x", b"")],
        &[(soft, "a", "b", b""), (EntryType::Link, "h", "a", b""), (soft, "h/x", "y", b"")],
        // Links after a name can lead up again, so that two links together leave the mount.
        &[(soft, "d/e/l", "../..", b""), (soft, "m", "d/e/l/..", b"")],
        &[(soft, "m", "d/e/l/..", b""), (soft, "d/e/l", "../..", b"")],
    ];
    for entries in through_links {
        let error = refusal(&tar(entries).await).await;
        assert!(error.contains("link"), "{error}");
    }
    let good = [(soft, "a", "b/c", b"".as_slice()), (soft, "b/c", "../d", b"")];
    assert_eq!(read(through(&tar(&good).await, 99).await.unwrap()).await.len(), 2);
}

#[tokio::test]
async fn names_in_extended_headers_are_checked_and_must_not_repeat() {
    let behind = |kind, said: &[u8], more: Vec<u8>| {
        let mut all = header(kind, b"x", b"", said.len() as u64).as_bytes().to_vec();
        all.extend_from_slice(said);
        all.resize(all.len().next_multiple_of(BLOCK), 0);
        all.extend_from_slice(&more);
        all
    };
    let plain = tar(&[text("x")]).await;
    let (records, global) = (EntryType::XHeader, EntryType::XGlobalHeader);
    let evil = pax(&[("path", "../evil")]);
    let cases = [
        (behind(records, &evil, plain.clone()), "`..`"),
        (behind(EntryType::GNULongName, b"/abs\0", plain.clone()), "absolute"),
        (behind(global, &evil, plain.clone()), "every entry"),
        (behind(records, &pax(&[("path", "a"), ("path", "b")]), plain.clone()), "twice"),
        (behind(records, &pax(&[("path", "")]), plain.clone()), "empty"),
        (behind(records, &pax(&[("path", "a\0b")]), plain.clone()), "NUL"),
        (behind(records, &pax(&[("size", "x")]), plain.clone()), "not a number"),
        (behind(records, &pax(&[("size", "18446744073709551615")]), plain.clone()), "not a number"),
        (behind(records, &pax(&[("GNU.sparse.major", "1")]), plain.clone()), "sparse"),
        (behind(records, b"9999 path=a\n", plain.clone()), "bad record"),
        (behind(records, b"+8 a=b\n", plain.clone()), "bad record"),
        (behind(records, &pax(&[("path", &"n".repeat(5000))]), plain.clone()), "4096"),
        (behind(records, b"", behind(records, b"", plain.clone())), "twice"),
        (
            behind(
                EntryType::GNULongName,
                b"a",
                behind(records, &pax(&[("path", "b")]), plain.clone()),
            ),
            "twice",
        ),
        (behind(records, &pax(&[("path", "a")]), vec![0; 1024]), "does not follow"),
    ];
    for (given, why) in cases {
        let error = refusal(&given).await;
        assert!(error.contains(why), "{why}: {error}");
    }
    let remark = behind(global, &pax(&[("comment", "0123abcd")]), plain.clone());
    assert!(read(through(&remark, 99).await.unwrap()).await.contains_key("src/x"));
    let huge = header(records, b"x", b"", 1 << 40).as_bytes().to_vec();
    assert!(refusal(&huge).await.contains("more than"), "it is not held in memory");
}

#[tokio::test]
async fn headers_of_other_formats_cannot_hide_a_name() {
    // Some readers take these bytes of a GNU header for a name prefix and would leave the target.
    let mut hidden = header(EntryType::Regular, b"x", b"", 0);
    hidden.as_mut_bytes()[345..354].copy_from_slice(b"../../etc");
    hidden.set_cksum();
    let given = [hidden.as_bytes().as_slice(), &[0; 1024]].concat();
    let out = through(&given, 99).await.unwrap();
    assert!(!out.windows(3).any(|bytes| bytes == b"../"), "the header is rebuilt");
    assert!(read(out).await.contains_key("src/x"));
}

#[tokio::test]
async fn an_archive_truncated_at_any_point_is_an_error() {
    let given = tar(&[text("hello"), (EntryType::Regular, "big", "", &[1; 3000])]).await;
    let end = given.len() - 1024;
    for cut in [0, 1, 511, 512, 700, 1024, 1536, 4000, end, end + 1] {
        let error = refusal(&given[..cut]).await;
        assert!(error.contains("ends"), "cut at {cut}: {error}");
    }
    assert!(through(&given[..end + 512], 99).await.is_ok(), "one block of zeros is an end");

    let broken = stream::iter([Ok(Bytes::from(given)), Err(io::Error::other("the line is dead"))]);
    let out: Vec<_> = below(Mount::new("m").unwrap(), broken.boxed()).collect().await;
    assert!(out.last().unwrap().is_err(), "an error after the end is reported too");
}

#[tokio::test]
async fn data_that_is_not_a_tar_is_reported_as_such() {
    assert!(refusal(&[b'<'; 2000]).await.contains("not a tar archive"));
    let mut damaged = tar(&[text("x"), text("y")]).await;
    damaged[1024 + 100] ^= 1;
    assert!(refusal(&damaged).await.contains("damaged after entry \"x\""));
}

#[test]
fn a_mount_is_a_directory_below() {
    for bad in ["", ".", "..", "/", "/abs", "a/../b", "a\0"] {
        assert!(Mount::new(bad).is_err(), "{bad:?} was taken");
    }
    assert_eq!(Mount::new("a//b/").unwrap().0, b"a/b");
}

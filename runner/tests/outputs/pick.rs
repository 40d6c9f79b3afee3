//! Which files of a step an output includes: row A11 of the features.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use protocol::id::Epoch;
use protocol::pipeline::{Layout, Missing, Output, OutputKind, PullPolicy, RelativeTo, Selection};
use runner::exec::local::{Local, Options};
use runner::ports::{
    ArchiveMatch, ByteStream, ExecError, KeptOutputs, Outputs as _, RunScope, Steps as _,
    TransferError, Workspace,
};
use runner::transfer::{Directory, Keeper};

use super::{files, origin};

/// A step's directory, and one for its outputs.
struct Step {
    left: tempfile::TempDir,
    kept: tempfile::TempDir,
    outputs: KeptOutputs,
}

impl Step {
    /// A step that left files, each containing its own path.
    fn that_left(paths: &[&str]) -> Self {
        let left = tempfile::tempdir().unwrap();
        for path in paths {
            let file = left.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, path).unwrap();
        }
        let outputs = KeptOutputs::new(vec!["job".into()], origin());
        Self { left, kept: tempfile::tempdir().unwrap(), outputs }
    }

    fn keeper(&self) -> Keeper {
        Keeper::new(Arc::new(Directory::new(self.kept.path().to_owned())))
    }

    /// The export of the local executor.
    async fn export(&self, path: &str) -> Result<ByteStream, ExecError> {
        let local = Local::new(Options {
            supervisor: (PathBuf::from("unused"), Vec::new()),
            runs: self.kept.path().join("unused"),
            work_dir: Some(self.left.path().to_owned()),
            cgroup: None,
            inherited: Vec::new(),
            memory: Vec::new(),
        });
        let run = RunScope {
            run: "r-1".parse().unwrap(),
            epoch: Epoch(1),
            cluster: Arc::from("c"),
            image: String::new(),
            pull: PullPolicy::Missing,
            has_own_images: false,
        };
        local.export(&run, &Workspace::None, path).await
    }

    async fn keep(&mut self, path: &str, kind: Option<OutputKind>, layout: Layout) -> ArchiveMatch {
        let output = output(path.into(), kind, layout);
        let selection = Selection::of(&output).unwrap();
        match self.export(selection.base()).await {
            Ok(tar) => {
                let keeper = self.keeper();
                keeper.keep(&mut self.outputs, &selection, selection.base(), tar).await.unwrap()
            }
            Err(ExecError::NoSuchPath { .. }) => ArchiveMatch::default(),
            Err(cause) => panic!("{cause}"),
        }
    }

    /// The paths of the stored files. Also checks their contents.
    fn kept(&self) -> Vec<String> {
        let dir = self.kept.path().join("job");
        let path = |file: &PathBuf| file.strip_prefix(&dir).unwrap().to_str().unwrap().to_owned();
        let kept: Vec<String> = files(&dir).iter().map(path).collect();
        let mut told: Vec<String> =
            self.outputs.files().iter().map(|file| file.path.clone()).collect();
        told.sort();
        assert_eq!(kept, told, "the reported outputs are the stored ones");
        for file in self.outputs.files() {
            assert_eq!(std::fs::read_to_string(dir.join(&file.path)).unwrap(), file.from);
            assert_eq!((file.stored.size, file.stored.sha256.len()), (file.from.len() as u64, 64));
        }
        kept
    }
}

// Rows: A11
#[tokio::test]
async fn a_glob_selects_matches_and_two_stars_descend_into_directories() {
    let paths = ["a.log", "out/b.log", "out/x/y/c.log", "out/d.txt"];
    let mut step = Step::that_left(&paths);
    assert!(step.keep("out/*.log", None, Layout::Relative).await.matched);
    assert_eq!(step.kept(), ["out/b.log"]);
    assert!(step.keep("**/*.log", None, Layout::Relative).await.matched);
    assert_eq!(step.kept(), ["a.log", "out/b.log", "out/x/y/c.log"]);
    assert!(step.keep("out/{d,e}.tx?", None, Layout::Relative).await.matched);
    assert_eq!(step.kept().len(), 4);
    assert_eq!(step.outputs.notices(), Vec::<String>::new());
}

// Rows: A11
#[tokio::test]
async fn a_directory_is_stored_with_all_its_files() {
    let mut step = Step::that_left(&["build/report/index.html", "build/report/css/x.css", "z"]);
    assert!(step.keep("build/report", Some(OutputKind::Dir), Layout::Flat).await.matched);
    assert_eq!(step.kept(), ["report/css/x.css", "report/index.html"]);
    assert!(step.keep(".", None, Layout::Relative).await.matched);
    assert_eq!(step.kept().len(), 5);
    assert!(!step.keep("z", Some(OutputKind::Dir), Layout::Flat).await.matched);
    assert!(!step.keep("build", Some(OutputKind::File), Layout::Flat).await.matched);
}

// Rows: A11
#[tokio::test]
async fn flat_outputs_share_one_directory_and_the_later_one_wins() {
    let mut step = Step::that_left(&["a/result.json", "b/result.json", "b/c/other.json"]);
    assert!(step.keep("a/*.json", None, Layout::Flat).await.matched);
    assert!(step.keep("b/**/*.json", None, Layout::Flat).await.matched);
    assert_eq!(step.kept(), ["other.json", "result.json"]);
    assert_eq!(
        std::fs::read_to_string(step.kept.path().join("job/result.json")).unwrap(),
        "b/result.json"
    );
    assert_eq!(step.outputs.notices().len(), 1);
    let note = &step.outputs.notices()[0];
    assert!(note.contains("a/result.json") && note.contains("b/result.json"), "{note}");
}

// Rows: A11
#[tokio::test]
async fn a_missing_output_is_reported() {
    let mut step = Step::that_left(&["out/a.txt"]);
    for missing in ["result.json", "out/*.log", "nowhere/**", "out/a.txt/b"] {
        assert_eq!(
            step.keep(missing, None, Layout::Flat).await,
            ArchiveMatch::default(),
            "{missing}"
        );
    }
    assert_eq!(step.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn storing_an_output_again_changes_nothing_and_gives_no_notice() {
    let mut step = Step::that_left(&["out/a.txt"]);
    for _ in 0..2 {
        assert!(step.keep("out", None, Layout::Relative).await.matched);
    }
    assert_eq!(step.kept(), ["out/a.txt"]);
    assert_eq!(step.outputs.notices(), Vec::<String>::new());
}

#[tokio::test]
async fn a_symlink_and_an_empty_directory_are_skipped_with_a_notice() {
    let mut step = Step::that_left(&["out/a.txt"]);
    std::os::unix::fs::symlink("/etc/passwd", step.left.path().join("out/link")).unwrap();
    std::fs::create_dir(step.left.path().join("out/empty")).unwrap();
    assert!(step.keep("out/*", None, Layout::Flat).await.matched);
    assert_eq!(step.kept(), ["a.txt"]);
    let notes = step.outputs.notices().join("\n");
    assert!(notes.contains("\"out/link\" is not kept, as it is a symbolic link"), "{notes}");
    assert!(notes.contains("nothing of \"out/empty\" is kept"), "{notes}");
}

#[tokio::test]
async fn a_name_that_is_not_utf8_is_skipped_with_a_notice() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut step = Step::that_left(&["out/a.txt"]);
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"out/\xff.txt"));
    std::fs::write(step.left.path().join(odd), "x").unwrap();
    assert!(step.keep("out/*.txt", None, Layout::Flat).await.matched);
    assert_eq!(step.kept(), ["a.txt"]);
    assert!(
        step.outputs.notices()[0].contains("not named in UTF-8"),
        "{:?}",
        step.outputs.notices()
    );
}

/// An archive with these entries: kind, name, link, content.
async fn archive(entries: &[(u8, &str, &str, &[u8])]) -> Vec<u8> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    for (kind, name, link, bytes) in entries {
        let mut header = tokio_tar::Header::new_ustar();
        header.set_entry_type(tokio_tar::EntryType::new(*kind));
        header.set_size(bytes.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).await.unwrap();
    }
    tar.into_inner().await.unwrap()
}

fn output(path: String, kind: Option<OutputKind>, layout: Layout) -> Output {
    Output { path, kind, missing: Missing::Warn, layout, relative_to: RelativeTo::WorkDir }
}

async fn kept_of(step: &mut Step, at: &str, tar: Vec<u8>) -> Result<ArchiveMatch, TransferError> {
    let path = format!("{at}/**");
    let layout = Layout::Relative;
    let output = output(path, None, layout);
    let selection = Selection::of(&output).unwrap();
    let tar = stream::iter([Ok(Bytes::from(tar))]).boxed();
    step.keeper().keep(&mut step.outputs, &selection, at, tar).await
}

#[tokio::test]
async fn an_archive_with_escaping_or_foreign_entries_is_refused() {
    for name in ["/etc/passwd", "out/../../x", "other/x"] {
        let mut step = Step::that_left(&[]);
        let tar = archive(&[(b'5', "out/", "", b""), (b'0', name, "", b"evil")]).await;
        let error = kept_of(&mut step, "out", tar).await.unwrap_err().to_string();
        assert!(error.contains("cannot be trusted") && error.contains(name), "{error}");
        assert_eq!(files(step.kept.path()), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_hard_link_is_returned_so_that_its_content_can_be_requested() {
    let mut step = Step::that_left(&["out/b"]);
    let tar = [(b'0', "out/a", "", b"out/a".as_slice()), (b'1', "out/b", "out/a", b"")];
    let found = kept_of(&mut step, "out", archive(&tar).await).await.unwrap();
    assert_eq!(found, ArchiveMatch { matched: true, links: vec!["out/b".into()] });
    assert_eq!(step.kept(), ["out/a"]);
    let again = archive(&[(b'0', "b", "", b"out/b")]).await;
    let output = output("out/**".into(), None, Layout::Relative);
    let selection = Selection::of(&output).unwrap();
    let tar = stream::iter([Ok(Bytes::from(again))]).boxed();
    let found = step.keeper().keep(&mut step.outputs, &selection, "out/b", tar).await.unwrap();
    assert_eq!(found, ArchiveMatch { matched: true, links: Vec::new() });
    assert_eq!(step.kept(), ["out/a", "out/b"]);
}

#[tokio::test]
async fn nothing_is_stored_of_a_file_that_a_truncated_archive_cuts_off() {
    let mut step = Step::that_left(&[]);
    let mut tar = archive(&[(b'0', "out/a", "", &[7; 5000])]).await;
    tar.truncate(2048);
    let error = kept_of(&mut step, "out", tar).await.unwrap_err().to_string();
    assert!(error.contains("\"out/a\" broke off"), "{error}");
    assert_eq!(files(step.kept.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn devices_and_pipes_are_skipped_and_counted_if_many() {
    let mut step = Step::that_left(&[]);
    let names: Vec<String> = (0..30).map(|number| format!("out/pipe-{number}")).collect();
    let entries: Vec<(u8, &str, &str, &[u8])> =
        names.iter().map(|name| (b'6', name.as_str(), "", b"".as_slice())).collect();
    let found = kept_of(&mut step, "out", archive(&entries).await).await.unwrap();
    assert_eq!(found, ArchiveMatch::default());
    assert_eq!(step.outputs.notices().len(), 21);
    assert!(step.outputs.notices()[20].starts_with("10 more"), "{:?}", step.outputs.notices()[20]);
}

#[tokio::test]
async fn only_directories_without_files_are_reported_as_empty() {
    let mut step = Step::that_left(&["out/a", "d/b/c/x", "d/b-b/x"]);
    for empty in ["d/b-a", "d/e/e"] {
        std::fs::create_dir_all(step.left.path().join(empty)).unwrap();
    }
    assert!(step.keep("d/**", None, Layout::Relative).await.matched);
    let told = |dir: &str| format!("nothing of {dir:?} is kept, as there is no file in it");
    let mut notices = step.outputs.notices();
    notices.sort();
    assert_eq!(notices, [told("d/b-a"), told("d/e"), told("d/e/e")]);
}

#[tokio::test]
async fn many_empty_directories_beside_many_files_are_counted() {
    let names: Vec<String> = (0..20_000).map(|number| format!("out/d/{number}/")).collect();
    let files: Vec<String> = (0..200).map(|number| format!("out/f/{number}")).collect();
    let dirs = names.iter().map(|name| (b'5', name.as_str(), "", b"".as_slice()));
    let files = files.iter().map(|name| (b'0', name.as_str(), "", name.as_bytes()));
    let entries: Vec<(u8, &str, &str, &[u8])> = dirs.chain(files).collect();
    let mut step = Step::that_left(&[]);
    let found = kept_of(&mut step, "out", archive(&entries).await).await.unwrap();
    assert!(found.matched);
    assert_eq!(step.kept().len(), 200);
    let notices = step.outputs.notices();
    assert_eq!(notices.len(), 21);
    assert_eq!(notices[20], "nothing of 19980 more directories without files is kept");
}

#[tokio::test]
async fn an_archive_with_too_many_entries_is_refused_with_the_limit() {
    let entries = [(b'0', "out/a", "", b"out/a".as_slice()), (b'5', "out/b/", "", b"")];
    let tar = archive(&entries).await;
    for (most, is_kept) in [(2, true), (1, false)] {
        let step = Step::that_left(&[]);
        let mut outputs = step.outputs.clone();
        let selection = Selection::of(&output("out/**".into(), None, Layout::Relative)).unwrap();
        let keeper = step.keeper().with_most_entries(most);
        let tar = stream::iter([Ok(Bytes::from(tar.clone()))]).boxed();
        match keeper.keep(&mut outputs, &selection, "out", tar).await {
            Ok(_) => assert!(is_kept),
            Err(error) => assert!(!is_kept && error.to_string().contains("more than 1 files")),
        }
    }
}

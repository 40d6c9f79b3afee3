//! The queue file. It is locked while it is written or taken.
//!
//! A server takes jobs by renaming the file to a name of its store and creating an empty one in its
//! place. It reads the renamed file by offset, and removes it when every line has become a start. A
//! writer that ignores the lock can still have it open, so the file is checked again before its
//! removal.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use protocol::dialect::Job;

/// The mode of a new queue file. Its commands can contain secrets, and anyone who can write to it
/// can run commands as the server's user.
const MODE: u32 = 0o600;

/// Opens and locks the queue file, creating it if needed.
fn locked(queue: &Path) -> io::Result<File> {
    loop {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(MODE).open(queue)?;
        file.lock()?;
        let ours = file.metadata()?;
        if !ours.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        match std::fs::metadata(queue) {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            // A server took the file while this process waited for the lock.
            Ok(_) => {}
            Err(cause) if cause.kind() == ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
    }
}

fn dir_of(queue: &Path) -> &Path {
    queue.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Appends a job.
pub(super) fn add(queue: &Path, job: &Job) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir_of(queue))?;
    let mut file = locked(queue)?;
    let before = file.metadata()?.len();
    let mut line = String::new();
    if before > 0 {
        let mut last = [0];
        file.seek(SeekFrom::Start(before - 1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            // The last writer died or wrote no newline. Its text is a line of its own.
            line.push('\n');
        }
    }
    line.push_str(&job.line());
    line.push('\n');
    let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
    if let Err(cause) = written {
        // Do not leave half a job.
        file.set_len(before)?;
        return Err(cause.into());
    }
    if before == 0 {
        // Also sync the name of a new file.
        File::open(dir_of(queue))?.sync_all()?;
    }
    Ok(())
}

/// A line of a taken file.
#[derive(Debug)]
pub(super) struct Line {
    file: OsString,
    from: u64,
    to: u64,
    /// The text without its newline.
    pub(super) bytes: Vec<u8>,
}

impl Line {
    /// An identifier that is unique among all lines that were ever in the queue.
    pub(super) fn place(&self) -> String {
        format!("{} {}", self.file.display(), self.from)
    }
}

/// The progress in a taken file.
#[derive(Debug, Default)]
struct Progress {
    /// Every line before this offset has become a start.
    offset: u64,
    /// The size at the last check, if there was no complete new line then.
    quiet_at: Option<u64>,
}

/// The queue file as taken by a server.
#[derive(Debug)]
pub(super) struct Spool {
    queue: PathBuf,
    /// The name prefix of files taken for this server's store.
    prefix: String,
    /// The taken files, oldest first.
    taken: BTreeMap<OsString, Progress>,
}

impl Spool {
    /// Creates the file if needed, and finds files that an earlier process on the same store took
    /// and did not finish.
    pub(super) fn open(queue: &Path, store: &str) -> anyhow::Result<Self> {
        let name = queue.file_name().context("it has no name")?;
        std::fs::create_dir_all(dir_of(queue))?;
        check(&locked(queue)?)?;
        let prefix = format!("{}.taken-{store}-", name.display());
        let mut taken = BTreeMap::new();
        for entry in std::fs::read_dir(dir_of(queue))? {
            let name = entry?.file_name();
            if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
                taken.insert(name, Progress::default());
            }
        }
        Ok(Self { queue: queue.to_owned(), prefix, taken })
    }

    /// The new lines, in order.
    pub(super) fn look(&mut self) -> anyhow::Result<Vec<Line>> {
        self.take()?;
        let mut lines = Vec::new();
        for name in self.taken.keys().cloned().collect::<Vec<_>>() {
            lines.extend(self.look_at(&name)?);
        }
        Ok(lines)
    }

    /// Moves the file aside if it is not empty.
    fn take(&mut self) -> anyhow::Result<()> {
        match std::fs::metadata(&self.queue) {
            Ok(now) if now.len() > 0 => {}
            Ok(_) => return Ok(()),
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(cause.into()),
        }
        let file = locked(&self.queue)?;
        check(&file)?;
        // Version 7 UUIDs sort by age.
        let name = OsString::from(format!("{}{}", self.prefix, uuid::Uuid::now_v7()));
        std::fs::rename(&self.queue, dir_of(&self.queue).join(&name))?;
        self.taken.insert(name, Progress::default());
        // Keep the permissions of other writers.
        let new = OpenOptions::new().append(true).create(true).mode(MODE).open(&self.queue)?;
        new.set_permissions(Permissions::from_mode(file.metadata()?.mode() & 0o777))?;
        File::open(dir_of(&self.queue))?.sync_all()?;
        Ok(())
    }

    fn look_at(&mut self, name: &OsString) -> anyhow::Result<Vec<Line>> {
        let path = dir_of(&self.queue).join(name);
        let Some(progress) = self.taken.get_mut(name) else { return Ok(Vec::new()) };
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        file.seek(SeekFrom::Start(progress.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let size = progress.offset + bytes.len() as u64;
        let was_quiet = progress.quiet_at == Some(size);
        let (mut lines, mut from) = (Vec::new(), progress.offset);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let to = from + piece.len() as u64;
            let whole = piece.strip_suffix(b"\n");
            // A last line without a newline is complete if it has not grown since the last check.
            if whole.is_some() || was_quiet {
                let bytes = whole.unwrap_or(piece).to_vec();
                lines.push(Line { file: name.clone(), from, to, bytes });
            }
            from = to;
        }
        if lines.is_empty() {
            progress.quiet_at = Some(size);
            if was_quiet && bytes.is_empty() {
                std::fs::remove_file(&path)?;
                self.taken.remove(name);
            }
        }
        Ok(lines)
    }

    /// Marks a line as done.
    pub(super) fn is_taken(&mut self, line: &Line) {
        if let Some(progress) = self.taken.get_mut(&line.file) {
            progress.offset = line.to;
        }
    }

    /// Saves an invalid line for inspection and returns the file's path.
    pub(super) fn refuse(&self, line: &Line) -> anyhow::Result<PathBuf> {
        let mut name = self.queue.file_name().unwrap_or_default().to_owned();
        name.push(".refused");
        let path = dir_of(&self.queue).join(name);
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).mode(MODE).open(&path)?;
        file.write_all(&[&line.bytes[..], b"\n"].concat())?;
        file.sync_all()?;
        Ok(path)
    }
}

/// Rejects a file that others can write to: they could run anything as the server's user.
fn check(file: &File) -> anyhow::Result<()> {
    let meta = file.metadata()?;
    ensure!(
        meta.mode() & 0o002 == 0,
        "every user of this host can write to it; run `chmod o-w` on it"
    );
    let own = rustix::process::geteuid();
    ensure!(
        meta.uid() == own.as_raw() || meta.uid() == 0,
        "it belongs to the user {} and not to {}, who runs its jobs; `chown` it",
        meta.uid(),
        own.as_raw()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(queue: &Path, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(queue).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn places(lines: &[Line]) -> Vec<(String, String)> {
        let text = |line: &Line| String::from_utf8(line.bytes.clone()).unwrap();
        lines.iter().map(|line| (line.place(), text(line))).collect()
    }

    #[test]
    fn lines_that_were_taken_but_not_finished_are_the_same_for_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("queue");
        add(&queue, &Job::new("one".into())).unwrap();
        append(&queue, "same\nsame\n");
        let mut before = Spool::open(&queue, "s").unwrap();
        let lines = before.look().unwrap();
        before.is_taken(&lines[0]);
        let all = places(&lines);
        assert!(all[1].1 == all[2].1 && all[1].0 != all[2].0, "two lines are two jobs: {all:?}");
        let mut after = Spool::open(&queue, "s").unwrap();
        assert_eq!(places(&after.look().unwrap()), all);
        let mut of_others = Spool::open(&queue, "t").unwrap();
        assert!(of_others.look().unwrap().is_empty(), "it belongs to no other store");
        // The same text in the next file is another job.
        append(&queue, "one\n");
        let next = places(&of_others.look().unwrap());
        assert!(next[0].1 == all[0].1 && next[0].0 != all[0].0, "{next:?}");
    }

    #[test]
    fn a_late_writer_to_a_taken_file_loses_nothing_before_the_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("queue");
        append(&queue, "first\n");
        let mut late = OpenOptions::new().append(true).open(&queue).unwrap();
        let mut spool = Spool::open(&queue, "s").unwrap();
        let mut seen = Vec::new();
        let mut look = |spool: &mut Spool| {
            for line in spool.look().unwrap() {
                spool.is_taken(&line);
                seen.push(String::from_utf8(line.bytes).unwrap());
            }
            seen.clone()
        };
        assert_eq!(look(&mut spool), ["first"]);
        late.write_all(b"sec").unwrap();
        assert_eq!(look(&mut spool), ["first"], "it might be incomplete");
        late.write_all(b"ond").unwrap();
        assert_eq!(look(&mut spool), ["first"]);
        assert_eq!(look(&mut spool), ["first", "second"], "no writer continues it");
        look(&mut spool);
        look(&mut spool);
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["queue"]);
    }

    #[test]
    fn a_partial_line_of_a_dead_writer_does_not_join_the_next_job() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("queue");
        append(&queue, "half");
        add(&queue, &Job::new("a\nb".into())).unwrap();
        let text = std::fs::read_to_string(&queue).unwrap();
        assert_eq!(text, "half\n{\"command\":\"a\\nb\"}\n");
    }

    #[test]
    fn a_queue_file_keeps_its_permissions_when_it_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("queue");
        append(&queue, "a\n");
        std::fs::set_permissions(&queue, Permissions::from_mode(0o660)).unwrap();
        let mut spool = Spool::open(&queue, "s").unwrap();
        assert_eq!(spool.look().unwrap().len(), 1);
        assert_eq!(std::fs::metadata(&queue).unwrap().mode() & 0o777, 0o660);
    }
}

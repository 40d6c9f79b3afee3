//! Explains why a program cannot be executed. The kernel reports the same error for a missing
//! program and for a missing interpreter of it, so the beginning of its file decides.

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use crate::ports::{ByteStream, ExecError};

/// The kernel reads no more of a `#!` line.
pub(super) const HEAD_BYTES: usize = 256;

/// The beginning of a program's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Head {
    /// The file does not exist.
    Missing,
    /// The file cannot be read.
    Unknown,
    /// Its first bytes, at most [`HEAD_BYTES`].
    Bytes(Vec<u8>),
}

impl Head {
    /// The beginning of the only file in a tar.
    pub(super) async fn of_tar(tar: ByteStream) -> Self {
        let reader = StreamReader::new(tar.map_err(std::io::Error::other));
        let Ok(mut entries) = tokio_tar::Archive::new(reader).entries() else {
            return Self::Unknown;
        };
        let Some(Ok(entry)) = entries.next().await else { return Self::Unknown };
        if !entry.header().entry_type().is_file() {
            return Self::Unknown;
        }
        let (mut bytes, mut entry) = (Vec::new(), entry.take(HEAD_BYTES as u64));
        match entry.read_to_end(&mut bytes).await {
            Ok(_) => Self::Bytes(bytes),
            Err(_) => Self::Unknown,
        }
    }

    /// The beginning of a program's file, from the archive that an engine made of it.
    pub(super) async fn of_archive(archive: Result<ByteStream, ExecError>) -> Self {
        match archive {
            Ok(tar) => Self::of_tar(tar).await,
            Err(ExecError::NoSuchPath { .. }) => Self::Missing,
            Err(_) => Self::Unknown,
        }
    }

    fn kind(&self) -> ProgramKind<'_> {
        match self {
            Self::Missing => ProgramKind::Missing,
            Self::Unknown => ProgramKind::Unknown,
            Self::Bytes(bytes) if bytes.starts_with(b"\x7fELF") => ProgramKind::Binary,
            Self::Bytes(bytes) => match bytes.strip_prefix(b"#!") {
                Some(rest) => {
                    let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
                    ProgramKind::Script(line)
                }
                None => ProgramKind::Text,
            },
        }
    }
}

enum ProgramKind<'a> {
    Missing,
    Unknown,
    Binary,
    /// With its first line, after `#!`.
    Script(&'a [u8]),
    Text,
}

/// The sentence about a program that the kernel refused with this message.
pub(super) fn cause(program: &str, said: &str, head: &Head) -> String {
    let lower = said.to_ascii_lowercase();
    let kind = head.kind();
    if lower.contains("no such file") {
        return match kind {
            ProgramKind::Missing => format!("`{program}` does not exist"),
            ProgramKind::Unknown => {
                format!("`{program}` does not exist, or its interpreter does not")
            }
            ProgramKind::Script(line) => interpreter(program, line, "does not exist"),
            ProgramKind::Binary => format!(
                "the dynamic loader of `{program}` does not exist: the program is built for another C library"
            ),
            ProgramKind::Text => format!("`{program}` cannot be executed: {said}"),
        };
    }
    if lower.contains("exec format error") {
        return match kind {
            ProgramKind::Binary => format!("`{program}` is built for another processor"),
            ProgramKind::Script(line) => {
                interpreter(program, line, "is not a program for this processor")
            }
            ProgramKind::Text => {
                format!("`{program}` is neither a binary nor a script with a `#!` line")
            }
            ProgramKind::Missing | ProgramKind::Unknown => format!(
                "`{program}` is built for another processor, or is a script without a `#!` line"
            ),
        };
    }
    format!("`{program}` cannot be executed: {said}")
}

fn interpreter(program: &str, line: &[u8], fault: &str) -> String {
    let line = String::from_utf8_lossy(line);
    if line.ends_with('\r') {
        return format!(
            "the first line of `{program}` ends with a carriage return (CRLF), which is taken for a part of its interpreter's name: save it with Unix line ends"
        );
    }
    let name = line.split_whitespace().next().unwrap_or_default();
    format!("the interpreter {name} of `{program}` {fault}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::bytes::Bytes;

    /// The bytes of a tar with one file, for tests.
    async fn tar_of(bytes: &[u8]) -> ByteStream {
        let mut tar = tokio_tar::Builder::new(Vec::new());
        let mut header = tokio_tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_entry_type(tokio_tar::EntryType::Regular);
        tar.append_data(&mut header, "program", bytes).await.unwrap();
        let bytes = tar.into_inner().await.unwrap();
        futures::stream::iter([Ok(Bytes::from(bytes))]).boxed()
    }

    fn bytes(text: &str) -> Head {
        Head::Bytes(text.as_bytes().to_vec())
    }

    #[test]
    fn each_reason_why_a_program_cannot_be_executed_has_its_sentence() {
        let missing = "No such file or directory";
        let format = "Exec format error (os error 8)";
        for (said, head, expected) in [
            (missing, Head::Missing, "`./app` does not exist"),
            (missing, Head::Unknown, "`./app` does not exist, or its interpreter does not"),
            (missing, bytes("#! /bin/none -x\n"), "the interpreter /bin/none of `./app` does not"),
            (missing, bytes("#!/bin/sh\r\necho\r\n"), "ends with a carriage return (CRLF)"),
            (missing, bytes("\u{7f}ELF..."), "the dynamic loader of `./app` does not exist"),
            (format, bytes("\u{7f}ELF..."), "`./app` is built for another processor"),
            (format, bytes("echo\n"), "`./app` is neither a binary nor a script with a `#!` line"),
            (format, Head::Unknown, "or is a script without a `#!` line"),
            ("Permission denied", Head::Unknown, "`./app` cannot be executed: Permission denied"),
        ] {
            let cause = cause("./app", said, &head);
            assert!(cause.contains(expected), "{said}, {head:?}: {cause}");
        }
    }

    #[tokio::test]
    async fn the_head_of_a_file_is_read_from_a_tar() {
        let long = "x".repeat(HEAD_BYTES * 3);
        for (text, head) in [("#!/bin/sh\n", "#!/bin/sh\n"), (&long, &long[..HEAD_BYTES])] {
            assert_eq!(Head::of_tar(tar_of(text.as_bytes()).await).await, bytes(head));
        }
        let nothing = futures::stream::iter([]).boxed();
        assert_eq!(Head::of_tar(nothing).await, Head::Unknown);
    }
}

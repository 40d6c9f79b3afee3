//! Tar archives in memory.

use futures::StreamExt as _;
use tokio::io::AsyncReadExt as _;

/// A tar archive with one file.
///
/// # Panics
/// Never, because the archive is built in memory.
pub async fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    let mut header = tokio_tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).await.expect("cannot write to memory");
    tar.into_inner().await.expect("cannot write to memory")
}

/// The names and contents of the files in a tar archive.
///
/// # Panics
/// If the archive is invalid.
pub async fn files_of(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tokio_tar::Archive::new(tar);
    let mut entries = archive.entries().expect("invalid archive");
    let mut files = Vec::new();
    while let Some(entry) = entries.next().await {
        let mut entry = entry.expect("invalid entry");
        let name = entry.path().expect("invalid path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).await.expect("cannot read the content");
        files.push((name, content));
    }
    files
}

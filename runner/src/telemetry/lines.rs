//! Writes the log on a thread of its own. A log that is not read must not block a task of the
//! worker: a blocked renewal of the lease would lose every run.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

/// The maximum size of the unwritten lines. Further lines are dropped and counted.
const ROOM_BYTES: usize = 1024 * 1024;

/// The queue of a log. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    room: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// The size of the unwritten lines, including the one that is being written.
    bytes: usize,
    /// The number of lines dropped since the last report.
    dropped: u64,
}

impl Lines {
    /// Starts the thread. It calls `report` with the number of dropped lines once it can write
    /// again.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(
        to: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        Self::with_room(ROOM_BYTES, to, report)
    }

    fn with_room(
        room: usize,
        to: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Shared { queue: Mutex::default(), changed: Condvar::new(), room };
        let lines = Self(Arc::new(shared));
        let of_thread = lines.clone();
        // The thread ends with the process, even in a blocking write.
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || of_thread.write_all(to, report))?;
        Ok(lines)
    }

    /// Queues a line, or drops it if there is no room. Never blocks.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.bytes > 0 && queue.bytes + line.len() > self.0.room {
            queue.dropped += 1;
            return;
        }
        queue.bytes += line.len();
        queue.waiting.push_back(line.to_vec());
        drop(queue);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written. Returns false if that takes longer than `within`.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let mut queue = self.lock();
        self.0.changed.wait_while_for(&mut queue, |queue| queue.bytes > 0, within);
        queue.bytes == 0
    }

    fn write_all(&self, mut to: impl Write, report: impl Fn(u64)) {
        loop {
            let line = self.next();
            // If the output is closed, the error cannot be reported anywhere.
            drop(to.write_all(&line).and_then(|()| to.flush()));
            let mut queue = self.lock();
            queue.bytes -= line.len();
            let dropped = std::mem::take(&mut queue.dropped);
            drop(queue);
            // Queue the report before `flush` wakes up, so that it waits for the report too.
            if dropped > 0 {
                report(dropped);
            }
            self.0.changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        loop {
            if let Some(line) = queue.waiting.pop_front() {
                return line;
            }
            self.0.changed.wait(&mut queue);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock()
    }
}

/// A log line is written with one call.
impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read as _};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    /// A pipe that is full.
    fn full_pipe() -> (PipeReader, PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while (&writer).write(&[b'.'; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        (reader, writer)
    }

    #[test]
    fn unread_log_lines_are_dropped_and_counted() {
        let (mut reader, writer) = full_pipe();
        let (reports, reported) = mpsc::channel();
        let lines = Lines::with_room(20, writer, move |dropped| {
            reports.send(dropped).unwrap();
        });
        let lines = lines.unwrap();
        for _ in 0..5 {
            lines.push(b"ten bytes\n");
        }
        assert!(!lines.flush(Duration::from_millis(10)), "the pipe is not read");
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).ok();
            all
        });
        assert_eq!(reported.recv_timeout(SOON), Ok(3));
        assert!(lines.flush(SOON));
        lines.push(b"later\n");
        assert!(lines.flush(SOON));
        assert!(reported.try_recv().is_err(), "each dropped line is counted once");
        drop((lines, reading));
    }

    #[test]
    fn a_line_larger_than_the_buffer_is_written() {
        let (reader, writer) = io::pipe().unwrap();
        let lines = Lines::with_room(4, writer, |_| {}).unwrap();
        lines.push(b"longer than the room\n");
        assert!(lines.flush(SOON));
        drop(reader);
        lines.push(b"into a closed pipe\n");
        assert!(lines.flush(SOON), "a closed output does not block");
    }
}

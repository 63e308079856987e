//! The slow-query log: the last thousand entries in memory, and one line each in a file or on stderr.
//!
//! The query path hands an entry to a thread over a bounded channel and never waits: with a stalled disk lines
//! are dropped and counted.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::bounded_text;
use super::slow::SlowEntry;
use crate::config;

/// Entries kept for `/slow` and SHOW SLOW.
pub const KEPT: usize = 1_000;

/// Lines waiting for the disk.
const QUEUE: usize = 1_024;

/// The ring and the writer.
#[derive(Debug)]
pub struct SlowLog {
    ring: Mutex<VecDeque<Arc<SlowEntry>>>,
    /// `None`: off.
    writer: RwLock<Option<Writer>>,
    counts: Arc<LogCounts>,
}

#[derive(Debug, Default)]
struct LogCounts {
    entries: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Writer {
    target: config::SlowLog,
    queue: SyncSender<Message>,
    reopen: Arc<AtomicBool>,
}

enum Message {
    Entry(Arc<SlowEntry>),
    /// Only wakes the thread, which then sees `reopen`.
    Wake,
    Flush(SyncSender<()>),
}

enum Output {
    Stderr,
    File { path: PathBuf, lines: Lines<File> },
}

/// Whole lines.
struct Lines<W> {
    to: W,
    /// The last one may lack its end.
    torn: bool,
}

impl<W: Write> Lines<W> {
    fn new(to: W) -> Lines<W> {
        Lines { to, torn: false }
    }

    /// Behind one that a full disk has cut off a line begins anew, so that only that one cannot be read.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.to.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.torn = !rest.is_empty();
        }
        Ok(())
    }
}

impl SlowLog {
    /// Opens the log and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or the thread not be started.
    pub fn open(target: &config::SlowLog) -> io::Result<SlowLog> {
        let counts = Arc::<LogCounts>::default();
        let writer = start(target, &counts)?;
        Ok(SlowLog { ring: Mutex::default(), writer: RwLock::new(writer), counts })
    }

    /// Keeps and logs one statement; never waits for the disk.
    pub fn record(&self, mut entry: SlowEntry) {
        entry.statement = bounded_text(entry.statement);
        entry.normalized = entry.normalized.map(bounded_text);
        let entry = Arc::new(entry);
        self.counts.entries.fetch_add(1, Ordering::Relaxed);
        {
            let mut ring = self.ring.lock();
            if ring.len() == KEPT {
                ring.pop_front();
            }
            ring.push_back(entry.clone());
        }
        if let Some(writer) = &*self.writer.read()
            && writer.queue.try_send(Message::Entry(entry)).is_err()
        {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The last `limit` entries, newest first.
    pub fn last(&self, limit: usize) -> Vec<Arc<SlowEntry>> {
        self.ring.lock().iter().rev().take(limit).cloned().collect()
    }

    /// Statements recorded since the start, whether or not they were written.
    pub fn entries(&self) -> u64 {
        self.counts.entries.load(Ordering::Relaxed)
    }

    /// Lines written since the start.
    pub fn written(&self) -> u64 {
        self.counts.written.load(Ordering::Relaxed)
    }

    /// Lines lost since the start: the queue was full, or the write failed.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// Opens the file anew by its name, after a log rotation. Done by the thread, before its next line.
    pub fn reopen(&self) {
        if let Some(writer) = &*self.writer.read() {
            writer.reopen.store(true, Ordering::Release);
            // a full queue wakes the thread as well
            let _ = writer.queue.try_send(Message::Wake);
        }
    }

    /// Changes where lines go. The same target is reopened.
    ///
    /// # Errors
    /// As [`SlowLog::open`]; the old target stays then.
    pub fn reconfigure(&self, target: &config::SlowLog) -> io::Result<()> {
        let same = match &*self.writer.read() {
            Some(writer) => writer.target == *target,
            None => *target == config::SlowLog::Off,
        };
        if same {
            self.reopen();
        } else {
            let started = start(target, &self.counts)?;
            // the old thread writes what is queued and ends
            *self.writer.write() = started;
        }
        Ok(())
    }

    /// Waits until all lines recorded so far are written, `limit` at most; true if they are.
    pub fn flush(&self, limit: Duration) -> bool {
        let Some(queue) = self.writer.read().as_ref().map(|writer| writer.queue.clone()) else {
            return true;
        };
        let deadline = Instant::now() + limit;
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match queue.try_send(message) {
                Ok(()) => return written.recv_timeout(left).is_ok(),
                Err(TrySendError::Full(again)) if !left.is_zero() => {
                    message = again;
                    thread::sleep(Duration::from_millis(5).min(left));
                }
                Err(_) => return false,
            }
        }
    }
}

fn start(target: &config::SlowLog, counts: &Arc<LogCounts>) -> io::Result<Option<Writer>> {
    let output = match target {
        config::SlowLog::Off => return Ok(None),
        config::SlowLog::Stderr => Output::Stderr,
        config::SlowLog::File(path) => Output::File { path: path.clone(), lines: Lines::new(append(path)?) },
    };
    let (queue, messages) = sync_channel(QUEUE);
    let reopen = Arc::new(AtomicBool::new(false));
    let (asked, counts) = (reopen.clone(), counts.clone());
    thread::Builder::new().name("slow-log".into()).spawn(move || write_lines(&messages, output, &asked, &counts))?;
    Ok(Some(Writer { target: target.clone(), queue, reopen }))
}

fn append(path: &PathBuf) -> io::Result<File> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("the slow-query log {}: {e}", path.display()));
    OpenOptions::new().append(true).create(true).open(path).map_err(named)
}

/// The thread. It ends when the last sender is gone.
fn write_lines(messages: &Receiver<Message>, mut output: Output, reopen: &AtomicBool, counts: &LogCounts) {
    // one warning for each row of failures: a full disk is no reason to fill another log
    let mut failing = false;
    while let Ok(message) = messages.recv() {
        if reopen.swap(false, Ordering::AcqRel) {
            output.reopen();
        }
        match message {
            Message::Wake => {}
            Message::Flush(done) => {
                let _ = done.send(());
            }
            Message::Entry(entry) => {
                let mut line = entry.to_json_line();
                line.push('\n');
                match output.write(line.as_bytes()) {
                    Ok(()) => {
                        failing = false;
                        counts.written.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        counts.dropped.fetch_add(1, Ordering::Relaxed);
                        if !failing {
                            tracing::warn!(%error, "the slow-query log cannot be written; its lines are dropped");
                        }
                        failing = true;
                    }
                }
            }
        }
    }
}

impl Output {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Output::Stderr => io::stderr().lock().write_all(line),
            Output::File { lines, .. } => lines.write(line),
        }
    }

    fn reopen(&mut self) {
        if let Output::File { path, lines } = self {
            match append(path) {
                // One that is the same still is torn still.
                Ok(opened) => lines.to = opened,
                Err(error) => {
                    tracing::warn!(%error, "the slow-query log cannot be reopened; the old file stays in use");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::slow::tests::entry;

    /// A directory of one test alone, gone afterwards.
    struct Dir(PathBuf);

    impl Dir {
        fn new(test: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("pgweir-slow-{}-{test}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn the_ring_keeps_the_last_thousand_newest_first() {
        let log = SlowLog::open(&config::SlowLog::Off).unwrap();
        for n in 0..KEPT + 5 {
            log.record(entry(&n.to_string()));
        }
        let last = log.last(usize::MAX);
        assert_eq!(last.len(), KEPT);
        assert_eq!((last[0].statement.as_str(), last[KEPT - 1].statement.as_str()), ("1004", "5"));
        assert_eq!(log.last(2).len(), 2);
        assert_eq!((log.entries(), log.written(), log.dropped()), (1_005, 0, 0));
    }

    #[test]
    fn lines_are_appended_and_a_rotated_file_is_left() {
        let dir = Dir::new("rotate");
        let (file, rotated) = (dir.path("log"), dir.path("rotated"));
        std::fs::write(&file, "kept\n").unwrap();
        let log = SlowLog::open(&config::SlowLog::File(file.clone())).unwrap();
        log.record(entry("one"));
        assert!(log.flush(SOON));
        std::fs::rename(&file, &rotated).unwrap();
        log.reopen();
        log.record(entry("two"));
        assert!(log.flush(SOON));
        let old = std::fs::read_to_string(&rotated).unwrap();
        assert!(old.starts_with("kept\n") && old.contains("one") && !old.contains("two"), "{old}");
        let new = std::fs::read_to_string(&file).unwrap();
        assert!(new.contains("two") && new.ends_with("}\n"), "{new}");
        assert_eq!((log.written(), log.dropped()), (2, 0));
    }

    #[test]
    fn another_target_takes_over_and_a_bad_one_is_refused() {
        let dir = Dir::new("targets");
        let (first, second) = (dir.path("first"), dir.path("second"));
        let log = SlowLog::open(&config::SlowLog::File(first.clone())).unwrap();
        assert!(log.reconfigure(&config::SlowLog::File(dir.path("none/such"))).is_err());
        log.record(entry("one"));
        assert!(log.flush(SOON));
        log.reconfigure(&config::SlowLog::File(second.clone())).unwrap();
        log.record(entry("two"));
        assert!(log.flush(SOON));
        assert!(std::fs::read_to_string(first).unwrap().contains("one"));
        assert!(std::fs::read_to_string(second).unwrap().contains("two"));
        assert_eq!(log.last(10).len(), 2, "the ring outlives a change of target");
    }

    #[test]
    fn a_failing_disk_drops_and_counts() {
        let log = SlowLog::open(&config::SlowLog::File("/dev/full".into())).unwrap();
        log.record(entry("lost"));
        assert!(log.flush(SOON));
        assert_eq!((log.written(), log.dropped()), (0, 1));
    }

    /// A disk with room for so many bytes.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(self.room);
            if fits == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= fits;
            self.bytes.extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_a_full_disk_cuts_off_spoils_no_other() {
        let mut lines = Lines::new(Disk { bytes: Vec::new(), room: 7 });
        lines.write(b"{1}\n").unwrap();
        assert!(lines.write(b"{two}\n").is_err());
        assert!(lines.write(b"{lost}\n").is_err());
        // Room for its end, and no more.
        lines.to.room = 1;
        assert!(lines.write(b"{lost}\n").is_err());
        lines.to.room = 100;
        lines.write(b"{3}\n").unwrap();
        lines.write(b"{4}\n").unwrap();
        assert_eq!(String::from_utf8_lossy(&lines.to.bytes), "{1}\n{tw\n{3}\n{4}\n");
    }

    #[test]
    fn a_stalled_writer_never_blocks_the_caller() {
        // a writer whose thread never takes anything off the queue
        let (queue, _stalled) = sync_channel(2);
        let writer = Writer { target: config::SlowLog::Stderr, queue, reopen: Arc::default() };
        let log = SlowLog { ring: Mutex::default(), writer: RwLock::new(Some(writer)), counts: Arc::default() };
        for _ in 0..10 {
            log.record(entry("q"));
        }
        log.reopen();
        assert_eq!((log.dropped(), log.last(100).len()), (8, 10));
        assert!(!log.flush(Duration::ZERO));
    }
}

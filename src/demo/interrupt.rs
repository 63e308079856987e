//! SIGINT and SIGTERM as messages, so that the demo, or a load, ends in order.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::error::Error;

/// The signals that arrive from now on.
#[derive(Debug)]
pub struct Interrupt(Receiver<()>);

impl Interrupt {
    /// Takes over SIGINT and SIGTERM. The second one ends the process at once; keepers clean up then.
    ///
    /// # Errors
    /// When the signals cannot be taken over.
    pub fn install() -> Result<Self, Error> {
        let (arrived, receiver) = mpsc::channel();
        let (installed, ready) = mpsc::channel();
        thread::spawn(move || listen(&arrived, &installed));
        match ready.recv() {
            Ok(Ok(())) => Ok(Interrupt(receiver)),
            Ok(Err(source)) => Err(Error::Io { what: "cannot handle signals".into(), source }),
            Err(_) => Err(Error::failed("cannot handle signals", "")),
        }
    }

    /// Waits for a signal; true if one arrived within `limit`, or before.
    pub fn wait(&self, limit: Duration) -> bool {
        !matches!(self.0.recv_timeout(limit), Err(RecvTimeoutError::Timeout))
    }
}

fn listen(arrived: &Sender<()>, installed: &Sender<std::io::Result<()>>) {
    // A send fails only when the demo is over, and then nobody needs to know.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(installed.send(Err(error))),
    };
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
            (Err(error), _) | (_, Err(error)) => return drop(installed.send(Err(error))),
        };
        let _ = installed.send(Ok(()));
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                let _ = arrived.send(());
            }
        }
        std::process::exit(1);
    });
}

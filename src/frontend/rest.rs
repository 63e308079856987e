//! A session whose client has said nothing for a while: what is kept of it until the client says something again. It
//! takes a third of the memory, and so do the clients that are most of them.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::backend::connect::Login;
use crate::cluster::Tried;
use crate::config::PoolMode;
use crate::freshness::Seen;
use crate::frontend::client::{Activity, Entered, Stop};
use crate::frontend::database::{Database, Statuses};
use crate::frontend::invalidation::{Written, Wrote};
use crate::frontend::proxy::Proxy;
use crate::frontend::serve::{End, stop_fault};
use crate::frontend::session::{Request, Session, Unended, Worker};
use crate::net::Stream;
use crate::pool::checkout::Pool;
use crate::route::decide::Why;
use crate::session::environment::Environment;
use crate::session::parameters::Parameters;
use crate::session::pins::Pins;
use crate::session::pipeline::Pipeline;
use crate::session::prepared::Names;

/// An idle session is put to rest after this long …
pub const REST_AFTER: Duration = Duration::from_secs(2);

/// … or this long, where more than a [`CROWD`] are not at rest: memory that many had at once is not given back.
pub const REST_SOON: Duration = Duration::from_millis(100);

/// Sessions not at rest.
pub const CROWD: usize = 256;

/// A session between two requests. What is not here, it has anew when it goes on.
#[derive(Debug)]
pub struct Rest {
    pub proxy: Arc<Proxy>,
    pub worker: Arc<Worker>,
    pub client: Entered,
    pub database: Arc<Database>,
    pub login: Login,
    pub pools: Vec<Arc<Pool>>,
    pub mode: PoolMode,
    pub refuses_pins: bool,
    pub stream: Stream,
    pub inbox: BytesMut,
    pub names: Names,
    pub sql_names: Vec<String>,
    pub environment: Environment,
    pub asks_sequences: bool,
    pub sent_apart: u64,
    pub parameters: Parameters,
    pub had_temporary: bool,
    pub seen: Seen,
    pub wrote: Wrote,
    pub unsettled: Option<Instant>,
    pub greeting: Statuses,
    pub told: Vec<(Box<str>, Box<str>)>,
    pub readable: bool,
}

/// What ends a rest.
enum Woken {
    Client,
    ClientGone,
    Stopped(Stop),
}

/// Serves a client until one side ends.
pub async fn serve(mut session: Box<Session>) {
    let end = loop {
        // Boxed, as it is not there during a rest.
        if let Some(end) = Box::pin(session.run()).await {
            break end;
        }
        let mut rest = Box::new(session.rest());
        rest.proxy.clients.rests();
        let woken = rest.wait().await;
        rest.proxy.clients.goes_on(&rest.client);
        session = Box::new(rest.wake());
        match woken {
            Woken::Client => {}
            Woken::ClientGone => break End::Client,
            Woken::Stopped(why) => break End::Fault(stop_fault(why)),
        }
    };
    Box::pin(session.finish(end)).await;
}

impl Session {
    /// It has been idle for a while, and nothing is under way that a [`Rest`] has no place for.
    pub(super) fn may_rest(&self) -> bool {
        let (activity, since) = self.client.activity();
        let idle = activity == Activity::Idle && since.elapsed() >= REST_SOON;
        idle && self.is_at_rest() && self.leased.is_none() && self.has_nothing_open()
    }

    fn has_nothing_open(&self) -> bool {
        let bytes = !self.inbox.is_empty() || !self.outbox.is_empty() || self.held_back;
        let block = self.block.is_some() || self.retries_block;
        let transaction = self.transaction_began.is_some() || self.writing || self.reading || !self.written.is_empty();
        // A portal does not outlive its transaction.
        let statement = !self.scanned.is_empty() || self.filling.is_some();
        let aside = self.survey.is_some() || self.leaving.is_some() || self.aside_error.is_some();
        let effects = self.settling || self.defining || self.opens_block || self.makes_temporary;
        let end = self.failed || self.skipping || self.terminating || !self.reported.is_empty();
        let held = !self.pins.is_empty() || self.subscription.is_some() || !self.channels.is_unused();
        !(bytes || block || transaction || statement || aside || effects || end || held)
    }

    /// What is kept of it; see [`Session::may_rest`]. Boxed, so that its memory is free behind this.
    fn rest(self: Box<Session>) -> Rest {
        Rest {
            proxy: self.proxy,
            worker: self.worker,
            client: self.client,
            database: self.database,
            login: self.login,
            pools: self.pools,
            mode: self.mode,
            refuses_pins: self.refuses_pins,
            stream: self.stream,
            inbox: self.inbox,
            names: self.names,
            sql_names: self.sql_names,
            environment: self.environment,
            asks_sequences: self.asks_sequences,
            sent_apart: self.sent_apart,
            parameters: self.parameters,
            had_temporary: self.had_temporary,
            seen: self.seen,
            wrote: self.wrote,
            unsettled: self.unsettled,
            greeting: self.greeting,
            told: self.told,
            readable: self.readable,
        }
    }
}

impl Rest {
    async fn wait(&mut self) -> Woken {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Ready when the session is to go on. What TLS still holds for the client goes out meanwhile.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Woken> {
        while self.client.nudged.poll(cx).is_ready() {
            match self.client.stop_reason() {
                // It waits for nothing that could have changed.
                Stop::None => {}
                why => return Poll::Ready(Woken::Stopped(why)),
            }
        }
        if let Poll::Ready(Err(_)) = self.stream.poll_send(&mut BytesMut::new(), cx) {
            return Poll::Ready(Woken::ClientGone);
        }
        match self.stream.poll_receive(&mut self.inbox, &self.worker.buffers, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Woken::ClientGone),
            Poll::Ready(Ok(received)) => {
                self.database.counters.at(self.worker.index).received(received as u64);
                Poll::Ready(Woken::Client)
            }
        }
    }

    /// The session goes on, or begins, with what its client has sent.
    pub fn wake(self) -> Session {
        let began = self.client.connected;
        Session {
            proxy: self.proxy,
            worker: self.worker,
            client: self.client,
            database: self.database,
            login: self.login,
            pools: self.pools,
            mode: self.mode,
            refuses_pins: self.refuses_pins,
            stream: self.stream,
            inbox: self.inbox,
            outbox: BytesMut::new(),
            client_rest: 0,
            held_back: false,
            server_rest: 0,
            leased: None,
            line: None,
            pipeline: Pipeline::default(),
            request: Request::new(began, Why::Read),
            block: None,
            retries_block: false,
            due: None,
            filling: None,
            asker: Default::default(),
            tried: Tried::default(),
            died: false,
            primary_failed: None,
            scanned: Default::default(),
            unended: Unended::No,
            names: self.names,
            sql_names: self.sql_names,
            environment: self.environment,
            sight: Default::default(),
            asks_sequences: self.asks_sequences,
            settling: false,
            defining: false,
            sent_apart: self.sent_apart,
            portals: Vec::new(),
            parameters: self.parameters,
            pins: Pins::default(),
            channels: Default::default(),
            subscription: None,
            survey: None,
            status: b'I',
            opens_block: false,
            failed: false,
            aside_error: None,
            skipping: false,
            terminating: false,
            had_temporary: self.had_temporary,
            makes_temporary: false,
            writing: false,
            reading: false,
            seen: self.seen,
            wrote: self.wrote,
            written: Written::default(),
            unsettled: self.unsettled,
            greeting: self.greeting,
            told: self.told,
            reported: Vec::new(),
            readable: self.readable,
            transaction_began: None,
            leaving: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, F: Future>(_: fn(A) -> F) -> usize {
        size_of::<F>()
    }

    /// The future is in the cell of its task, whose size is rounded up to a multiple of 128 bytes.
    #[test]
    fn little_is_kept_of_it() {
        let (rest, future) = (size_of::<Rest>(), size_of_future(serve));
        assert!(rest * 2 < size_of::<Session>() && future <= 96, "{rest}, {future}");
    }
}

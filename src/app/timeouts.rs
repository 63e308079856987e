//! Clients over their time: `statement_timeout` and `idle_transaction_timeout`, and those long enough idle to be put to
//! rest; looked after from outside so that a query needs no timer.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::frontend::client::{Activity, Client, Stop};
use crate::frontend::proxy::Proxy;
use crate::frontend::rest::{CROWD, REST_AFTER, REST_SOON};

/// How often idle clients are looked for.
const REST_INTERVAL: Duration = Duration::from_secs(1);

/// Looks at all clients each `interval`, which is how exact the timeouts are.
pub(super) async fn watch(proxy: Arc<Proxy>, interval: Duration) {
    let mut cancelled = HashSet::new();
    let mut rested = Instant::now();
    loop {
        tokio::time::sleep(interval).await;
        let now = Instant::now();
        let open = proxy.clients.connections.load(Ordering::Relaxed);
        let crowded = open.saturating_sub(proxy.clients.resting()) > CROWD;
        if crowded || now.saturating_duration_since(rested) >= REST_INTERVAL {
            proxy.clients.nudge_idle(if crowded { REST_SOON } else { REST_AFTER }, now);
            rested = now;
        }
        let limited = proxy.databases.iter().any(|d| {
            let pool = d.value().pools.config();
            !pool.statement_timeout.is_zero() || !pool.idle_transaction_timeout.is_zero()
        });
        if limited {
            let over = proxy.clients.all().iter().filter_map(|c| look(&proxy, c, now, &cancelled)).collect();
            cancelled = over;
        }
    }
}

/// Ends what is over its time; the client and the begin of its statement where that was cancelled, so that it is
/// cancelled once.
fn look(
    proxy: &Proxy,
    client: &Arc<Client>,
    now: Instant,
    cancelled: &HashSet<(u64, Instant)>,
) -> Option<(u64, Instant)> {
    let pool = proxy.databases.get(&client.database)?.pools.config();
    let (activity, since) = client.activity();
    let over = |limit: Duration| !limit.is_zero() && now.saturating_duration_since(since) > limit;
    match activity {
        Activity::Active if over(pool.statement_timeout) => {
            let statement = (client.id, since);
            if !cancelled.contains(&statement) {
                proxy.cancel(client);
            }
            Some(statement)
        }
        Activity::IdleInTransaction if over(pool.idle_transaction_timeout) => {
            client.stop(Stop::IdleInTransaction);
            None
        }
        _ => None,
    }
}

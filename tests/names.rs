//! A node's name that comes to lead elsewhere: two servers behind two addresses of loopback, and names that the test writes.

mod support;

use std::collections::VecDeque;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pgweir::backend::connection::BackendError;
use pgweir::cluster::Cluster;
use pgweir::cluster::probe::{self, Prober};
use pgweir::config::Config;
use pgweir::net::Connector;
use pgweir::net::names::Names;
use pgweir::pool::checkout::Pool;
use pgweir::pool::lease::{Lease, Return};
use pgweir::pool::registry::Pools;
use support::sessions::{block_on, wait_for};
use support::{Gate, Mode, cluster};

const FIRST: [u8; 4] = [127, 0, 0, 2];
const SECOND: [u8; 4] = [127, 0, 0, 3];
const NOBODY: [u8; 4] = [127, 0, 0, 4];

/// Gates at two addresses with the same port: in front of the primary, and of a replica.
fn gates() -> (Gate, Gate) {
    let (primary, replica) = (cluster().primary().port(), cluster().replicas()[0].port());
    loop {
        let first = Gate::at((FIRST, 0).into(), primary);
        if TcpListener::bind((IpAddr::from(SECOND), first.port)).is_ok() {
            let second = Gate::at((SECOND, first.port).into(), replica);
            return (first, second);
        }
    }
}

/// A node `db.test` with its probes and a pool.
struct Setup {
    first: Gate,
    second: Gate,
    names: Names,
    cluster: Arc<Cluster>,
    pool: Arc<Pool>,
    /// Whose pools are reaped as long as it lives.
    _pools: Pools,
}

impl Setup {
    fn new(name: &str, addresses: &[[u8; 4]]) -> Setup {
        let (first, second) = gates();
        let text = format!(
            "[pool]\nmin = 0\nreap_interval = \"20ms\"\nidle_timeout = \"1h\"\nconnection_timeout = \"500ms\"\n\
             [routing]\nprobe_interval = \"10ms\"\n\
             [[databases]]\nname = \"app\"\n[[databases.nodes]]\nhost = \"db.test\"\nport = {}\nrole = \"primary\"\n\
             [[users]]\nname = \"app\"\npassword = \"app\"\n",
            first.port
        );
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("names-{name}.toml"));
        std::fs::write(&path, text).unwrap();
        let (config, _) = Config::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let database = &config.databases[0];
        let names = Names::Table(Arc::default());
        let tls = Connector::plain().with_names(names.clone());
        let login = pgweir::check::login(&config, database).unwrap();
        let cluster = Arc::new(Cluster::new("app".into(), &database.nodes, &config.routing, Instant::now()));
        let control = tokio::runtime::Handle::current();
        let pools =
            Pools::new("app".into(), tls.clone(), database.pool.clone(), control, Arc::<AtomicU64>::default(), 1);
        let pool = pools.pool(&login, &cluster.nodes[0]);
        let setup = Setup { first, second, names, cluster, pool, _pools: pools };
        setup.lead_to(addresses);
        let prober = Prober { login, others: VecDeque::new(), tls, timeout: Duration::from_secs(5) };
        tokio::spawn(probe::watch(Arc::downgrade(&setup.cluster), setup.cluster.nodes[0].clone(), prober));
        setup
    }

    fn lead_to(&self, addresses: &[[u8; 4]]) {
        let Names::Table(table) = &self.names else { panic!("a table") };
        table.lock().insert("db.test".to_owned(), addresses.iter().map(|address| IpAddr::from(*address)).collect());
    }

    async fn lease(&self) -> Lease {
        self.pool.checkout(0).await.unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// The port of the server that the next connection leads to.
    async fn port(&self) -> u16 {
        let mut lease = self.lease().await;
        let port = port(&mut lease).await;
        lease.give_back(Instant::now(), Return::default());
        port
    }
}

async fn port(lease: &mut Lease) -> u16 {
    let rows = lease.query("SELECT inet_server_port()").await.unwrap();
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

fn ports() -> (u16, u16) {
    (cluster().primary().port(), cluster().replicas()[0].port())
}

#[test]
fn connections_follow_the_name_of_their_node() {
    block_on(async {
        let setup = Setup::new("follow", &[FIRST]);
        let (old, new) = ports();
        assert_eq!(setup.port().await, old);
        // One is idle, one in use.
        let mut used = setup.lease().await;
        let idle = setup.lease().await;
        idle.give_back(Instant::now(), Return::default());
        assert_eq!(port(&mut used).await, old);
        setup.lead_to(&[SECOND]);
        wait_for("the next connection to lead there", async || setup.port().await == new).await;
        // Who is being served is served to the end.
        assert_eq!(port(&mut used).await, old);
        used.give_back(Instant::now(), Return::default());
        for _ in 0..10 {
            assert_eq!(setup.port().await, new);
        }
        wait_for("all that led to the old address to be closed", async || setup.first.open() == 0).await;
        assert!(setup.second.open() > 0);
        // And back.
        setup.lead_to(&[FIRST]);
        wait_for("the next connection to lead back", async || setup.port().await == old).await;
        wait_for("all that led to the new address to be closed", async || setup.second.open() == 0).await;
    });
}

#[test]
fn what_is_idle_is_closed_though_nobody_asks() {
    block_on(async {
        let setup = Setup::new("idle", &[FIRST]);
        let leases = [setup.lease().await, setup.lease().await];
        for lease in leases {
            lease.give_back(Instant::now(), Return::default());
        }
        assert!(setup.first.open() >= 2);
        setup.lead_to(&[SECOND]);
        wait_for("the pool to close what is idle, and the probe to move", async || {
            setup.first.open() == 0 && setup.second.open() > 0
        })
        .await;
    });
}

#[test]
fn the_addresses_of_a_name_are_tried_in_their_order() {
    block_on(async {
        let setup = Setup::new("order", &[NOBODY, SECOND, FIRST]);
        let (first, second) = ports();
        // Nobody listens at the first of them.
        assert_eq!(setup.port().await, second);
        // More addresses are no reason to leave one.
        setup.lead_to(&[FIRST, SECOND]);
        let moves = setup.cluster.nodes[0].moves();
        wait_for("lookups to have lost one", async || setup.cluster.nodes[0].moves() > moves).await;
        let mut held = setup.lease().await;
        assert_eq!(port(&mut held).await, second);
        let mut fresh = setup.lease().await;
        assert_eq!(port(&mut fresh).await, first);
        // What cannot be looked up stays where it is.
        let Names::Table(table) = &setup.names else { panic!("a table") };
        table.lock().clear();
        fresh.give_back(Instant::now(), Return::default());
        for _ in 0..20 {
            assert_eq!(setup.port().await, first);
        }
    });
}

/// A process of another server may well have the same id.
#[test]
fn a_cancel_request_goes_where_its_connection_went() {
    block_on(async {
        let setup = Setup::new("cancel", &[FIRST]);
        let mut lease = setup.lease().await;
        let identity = lease.identity.clone();
        setup.lead_to(&[SECOND]);
        let pid = identity.pid;
        let asleep = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        let cancelling = async {
            wait_for("the sleep", async || cluster().primary().psql(&asleep).unwrap() == "1").await;
            identity.serve(1);
            assert!(identity.begin(2).is_none());
            identity.begin(1).unwrap().send().await.unwrap();
        };
        let (slept, ()) = tokio::join!(lease.query("SELECT pg_sleep(30)"), cancelling);
        assert!(matches!(slept, Err(BackendError::Server(e)) if e.code == "57014"));
        lease.begin();
        drop(lease);
        assert!(identity.begin(1).is_none() && identity.is_settled(), "nobody has it any more");

        // One that the server does not answer may come late: to nobody else.
        setup.lead_to(&[FIRST]);
        wait_for("the name to lead back", async || setup.port().await == cluster().primary().port()).await;
        let lease = setup.lease().await;
        let pid = lease.identity.pid;
        setup.first.set(Mode::Silent);
        lease.identity.serve(1);
        lease.identity.begin(1).unwrap().send().await.unwrap_err();
        setup.first.set(Mode::Open);
        lease.give_back(Instant::now(), Return::default());
        let has_it = || setup.pool.servers().iter().any(|server| server.pid == pid);
        wait_for("the connection's end", async || !has_it()).await;
    });
}

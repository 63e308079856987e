//! A second client, which uses the connections in between and would leave its state on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::support::{Pgweir, client};

/// Works until it is dropped, which fails the test if it met anybody's state but its own.
pub struct Interleaved {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Interleaved {
    pub fn with(pgweir: &Pgweir) -> Interleaved {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (pgweir.url(), stop.clone());
        let thread = thread::spawn(move || work(&url, &stopped));
        Interleaved { stop, thread: Some(thread) }
    }
}

impl Drop for Interleaved {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

fn work(url: &str, stop: &AtomicBool) {
    let client = client::connect(url);
    client::wait(async {
        let set = "SET search_path = pg_catalog; SET TimeZone = 'Asia/Tokyo'; SET pgweir_test.client = 'interleaved'";
        client.batch_execute(set).await.unwrap();
        let own = client.prepare("SELECT current_setting('pgweir_test.client') || current_schema()").await.unwrap();
        while !stop.load(Ordering::Relaxed) {
            let found: String = client.query_one(&own, &[]).await.unwrap().get(0);
            assert_eq!(found, "interleavedpg_catalog");
            client.batch_execute("BEGIN; SET LOCAL work_mem = '1MB'; SELECT 1; COMMIT; SHOW work_mem").await.unwrap();
            // Leaves the processor to those that are tested.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    });
}

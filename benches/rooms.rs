//! How long each hot room takes: `cargo bench --bench rooms`.

mod hot;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn all(criterion: &mut Criterion) {
    for mut room in hot::rooms() {
        criterion.bench_function(room.name, |bencher| bencher.iter(|| (room.once)()));
    }
}

criterion_group! {
    name = rooms;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = all
}
criterion_main!(rooms);

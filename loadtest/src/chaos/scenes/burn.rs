//! A busy processor: peers that are only slow must not be taken for dead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Result;

use super::super::{
    Context, Samples,
    load::{self, End, Load, Pace, Shape},
    mesh::Mesh,
    row::Row,
};
use super::network::false_deaths;

/// Threads that do nothing but run, until dropped.
struct Burners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burners {
    fn light(count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut x = 1_u64;
                    while !stop.load(Ordering::Relaxed) {
                        x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // They end within one turn of their loop and cannot panic.
            let _ = thread.join();
        }
    }
}

/// As many busy loops as processors beside the whole mesh, and some load.
pub(super) async fn busy(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(4), ..Shape::usual(mesh) });
    let burners = Burners::light(cores);
    let started = Instant::now();
    false_deaths(context, mesh, context.secs(7, 300), row).await;
    drop(burners);
    let samples = load.finish().await;
    row.note(format!(
        "{cores} busy loops for {:.0} s, {} requests",
        started.elapsed().as_secs_f32(),
        samples.len()
    ));
    row.most("failed requests", samples.len() - load::count(&samples, End::Complete), 0);
    Ok(samples)
}

//! A word to one session from outside.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Raised by anyone, heard by the one session that polls it. Its waker stays from one wait to the next, so that a wait
/// costs a session no more than a look, and no lock.
#[derive(Debug)]
pub struct Nudge {
    raised: AtomicBool,
    /// Where the waker of the task that is woken keeps its data; the waker keeps that alive.
    task: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

/// No data is there.
const NOBODY: usize = usize::MAX;

impl Default for Nudge {
    fn default() -> Nudge {
        Nudge { raised: AtomicBool::new(false), task: AtomicUsize::new(NOBODY), waker: Mutex::new(None) }
    }
}

impl Nudge {
    /// Several before it is heard are one.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once for what was raised; else whoever polled last is woken.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.hear() {
            return Poll::Ready(());
        }
        let task = cx.waker().data() as usize;
        if self.task.load(Ordering::Relaxed) == task {
            return Poll::Pending;
        }
        *self.waker.lock() = Some(cx.waker().clone());
        self.task.store(task, Ordering::Relaxed);
        // By who had the lock before, and woke another.
        if self.hear() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether it was raised; it is not any more.
    fn hear(&self) -> bool {
        self.raised.load(Ordering::Acquire) && self.raised.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn raised_before_it_is_polled_it_is_heard_once() {
        let nudge = Nudge::default();
        let mut cx = Context::from_waker(Waker::noop());
        nudge.raise();
        nudge.raise();
        assert!(nudge.poll(&mut cx).is_ready());
        assert!(nudge.poll(&mut cx).is_pending());
    }

    #[test]
    fn it_wakes_who_polled_last_and_in_each_wait_anew() {
        let (nudge, first, last) = (Nudge::default(), Arc::new(Count::default()), Arc::new(Count::default()));
        let wakers = [Waker::from(first.clone()), Waker::from(last.clone())];
        for waker in &wakers {
            assert!(nudge.poll(&mut Context::from_waker(waker)).is_pending());
        }
        for heard in 1..3 {
            nudge.raise();
            assert_eq!((first.0.load(Ordering::Relaxed), last.0.load(Ordering::Relaxed)), (0, heard));
            assert!(nudge.poll(&mut Context::from_waker(&wakers[1])).is_ready());
        }
    }
}

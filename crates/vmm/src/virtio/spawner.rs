//! The thread that starts and stops devices.
//!
//! A device is activated by a write of the guest, on a vCPU's thread. Threads inherit the system-call filter of the thread that starts
//! them: were workers started there, a vCPU would have to be allowed all that workers may do. So vCPUs ask this thread and
//! wait for its answer. It holds no locks between requests and waits for nobody but the device at hand.

use std::io;
use std::sync::{Mutex, mpsc};

use crate::sandbox::{ThreadKind, confine_thread};

type Job = Box<dyn FnOnce() + Send>;

/// The door to the thread. It ends when the last reference goes.
pub struct Spawner {
    jobs: Mutex<mpsc::Sender<Job>>,
}

impl Spawner {
    /// Starts the thread.
    pub fn new() -> io::Result<Spawner> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("spawner".into()).stack_size(256 * 1024).spawn(move || {
            confine_thread(ThreadKind::Spawner);
            for job in queue {
                job();
            }
        })?;
        Ok(Spawner { jobs: Mutex::new(jobs) })
    }

    /// Runs `job` on the thread and waits for its result; `None` if it panicked.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (send, receive) = mpsc::channel();
        let job = Box::new(move || {
            if let Ok(result) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)) {
                let _ = send.send(result);
            }
        });
        self.jobs.lock().expect("spawner lock").send(job).ok()?;
        receive.recv().ok()
    }
}

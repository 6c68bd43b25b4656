//! The workers of a process. A switch has one of them, and no frame goes from one switch to another: workers share nothing.

use std::io;
use std::time::Duration;

use super::{Handle, Worker};
use crate::pipeline::{Limits, Switch};

/// Workers by number, each of which is started when it is first needed.
#[derive(Debug)]
pub struct Pool {
    most: usize,
    poll: Duration,
    started: Vec<Handle>,
}

impl Pool {
    /// The most workers that there may be.
    pub const MOST: usize = 64;

    /// Up to so many workers (1 at least), each of which looks for more frames for `poll` before it sleeps.
    pub fn new(most: usize, poll: Duration) -> Pool {
        Pool { most: most.clamp(1, Pool::MOST), poll, started: Vec::new() }
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// A worker, and those with lower numbers.
    pub fn get(&mut self, number: usize) -> io::Result<Handle> {
        while self.started.len() <= number {
            let (worker, _) = Worker::start(self.started.len(), Switch::new(Limits::default()), self.poll)?;
            self.started.push(worker);
        }
        Ok(self.started[number].clone())
    }

    /// Those that were started.
    pub fn started(&self) -> &[Handle] {
        &self.started
    }
}

//! The lease: may this host run VMs, and until when.
//!
//! ```text
//!            nothing runs        granted            renewed: deadline = sent + TTL - margin
//!   None ───────────────▶ Asked ─────────▶ Held ──┐
//!    ▲  ▲                   │ refused       │  ▲──┘
//!    │  └───────────────────┘               │ deadline passed, or ended in the store
//!    └──────────── nothing runs ── Lost ◀───┘ everything is killed
//! ```
//! VMs that are bound to this host count as nothing here: they run on.

use std::collections::VecDeque;
use std::time::Duration;

use store::LeaseId;

use super::{Local, MANY_HOSTS, Node};
use crate::{Action, Moment, Notice, VmId};

/// Renewals without an answer that are remembered; the answer to an older one proves nothing new by then.
const RENEWALS: usize = 16;

/// Between two looks for the record of a lease that is just taken, or adopted.
const RECORD_AGAIN: Duration = Duration::from_millis(10);

pub(super) enum Lease {
    None { ask_at: Moment },
    Asked { ask_at: Moment },
    Held(Held),
    Lost,
}

pub(super) struct Held {
    lease: LeaseId,
    deadline: Moment,
    renew_at: Moment,
    /// Attempts without an answer, and when they were sent.
    sent: VecDeque<(u64, Moment)>,
}

impl Lease {
    /// The lease of the node before, which the guard held.
    pub(super) fn adopted(lease: LeaseId, deadline: Moment, now: Moment) -> Lease {
        Lease::Held(Held { lease, deadline, renew_at: now, sent: VecDeque::new() })
    }

    pub(super) fn held(&self) -> Option<LeaseId> {
        if let Lease::Held(held) = self { Some(held.lease) } else { None }
    }

    pub(super) fn wake_at(&self) -> Option<Moment> {
        match self {
            Lease::None { ask_at } => Some(*ask_at),
            Lease::Asked { ask_at } => Some(*ask_at),
            Lease::Held(held) => Some(held.deadline.min(held.renew_at)),
            Lease::Lost => None,
        }
    }
}

impl Node {
    /// A lease that cannot be proven any more is lost, whatever comes later.
    pub(super) fn check_deadline(&mut self) {
        if let Lease::Held(held) = &self.lease
            && self.now >= held.deadline
        {
            self.lose_lease();
        }
    }

    fn lose_lease(&mut self) {
        let vms = self.needing_a_lease().count();
        self.lease = Lease::Lost;
        self.asked.clear();
        self.tell(Notice::LeaseLost { vms });
        self.kill_all();
        self.restoring.clear();
        let (view, host) = (&self.view, &self.config.host);
        self.ended.retain(|vm, _| view.vm(vm).is_some_and(|vm| vm.is_bound_to(host)));
        self.copies.clear();
    }

    /// The guard does the same; this is for VMs that a guard lost sight of.
    fn kill_all(&mut self) {
        for vm in self.needing_a_lease().cloned().collect::<Vec<_>>() {
            self.end_local(&vm, Local::Killing, Action::Kill);
        }
    }

    /// VMs that are to end without a lease, and are not being killed yet.
    fn needing_a_lease(&self) -> impl Iterator<Item = &VmId> {
        let needs = |(vm, local): &(&VmId, &Local)| **local != Local::Killing && !self.bound.contains(*vm);
        self.locals.iter().filter(needs).map(|(vm, _)| vm)
    }

    pub(super) fn pass_lease(&mut self) {
        if let Lease::Lost = self.lease {
            self.kill_all();
            if self.locals.keys().all(|vm| self.bound.contains(vm)) {
                self.lease = Lease::None { ask_at: self.now };
            }
        }
        match &mut self.lease {
            // The answer to any of the attempts counts, so a slow store is not asked in vain.
            Lease::None { ask_at } | Lease::Asked { ask_at } if self.has_read && self.now >= *ask_at => {
                let attempt = self.number();
                self.lease = Lease::Asked { ask_at: self.now + self.config.beat_every };
                self.asked.push_back((attempt, self.now));
                if self.asked.len() > RENEWALS {
                    self.asked.pop_front();
                }
                self.actions.push(Action::TakeLease { attempt });
            }
            Lease::Held(held) if self.now >= held.renew_at => match self.view.alive(&self.config.host, held.lease) {
                Some(alive) => {
                    let many = self.view.hosts().count() > MANY_HOSTS;
                    let every = if many { self.config.renew_every_of_many } else { self.config.renew_every };
                    held.renew_at = self.now + every;
                    self.count += 1;
                    held.sent.push_back((self.count, self.now));
                    if held.sent.len() > RENEWALS {
                        held.sent.pop_front();
                    }
                    self.actions.push(Action::RenewLease { attempt: self.count, lease: held.lease, alive: alive.revision });
                }
                // A renewal depends on its record.
                None => held.renew_at = self.now + RECORD_AGAIN,
            },
            _ => {}
        }
        // The record of the lease must be in the view; if a watch has lost it, all is read anew.
        if let Some(lease) = self.lease.held()
            && self.has_read
            && self.view.alive(&self.config.host, lease).is_none()
            && self.read_at > self.now + self.config.beat_every
        {
            self.read_at = self.now + self.config.beat_every;
        }
    }

    pub(super) fn lease_taken(&mut self, attempt: u64, lease: LeaseId) {
        let sent = self.asked.iter().find(|(asked, _)| *asked == attempt).map(|(_, sent)| *sent);
        let (Some(sent), Lease::Asked { .. } | Lease::None { .. }) = (sent, &self.lease) else { return };
        let deadline = sent + self.config.ttl - self.config.margin;
        // One that comes too late ends by itself.
        if self.now >= deadline {
            return;
        }
        self.asked.clear();
        self.refusal = None;
        self.lease = Lease::Held(Held { lease, deadline, renew_at: sent + self.config.renew_every, sent: VecDeque::new() });
        self.actions.push(Action::Guard { lease, deadline });
        self.tell(Notice::LeaseTaken);
        self.look_at_all();
    }

    pub(super) fn lease_refused(&mut self, attempt: u64, reason: String) {
        let last = self.asked.back().is_some_and(|(asked, _)| *asked == attempt);
        if let (Lease::Asked { .. }, true) = (&self.lease, last) {
            self.lease = Lease::None { ask_at: self.now + self.config.retry_after };
            // Once is enough for as long as it is the same.
            if self.refusal.as_ref() != Some(&reason) {
                self.refusal = Some(reason.clone());
                self.tell(Notice::LeaseRefused(reason));
            }
        }
    }

    pub(super) fn lease_renewed(&mut self, attempt: u64) {
        let Lease::Held(held) = &mut self.lease else { return };
        let Some(at) = held.sent.iter().position(|(sent, _)| *sent == attempt) else { return };
        let sent = held.sent[at].1;
        held.sent.drain(..=at);
        // Counted from when it was sent: the store has begun to count after that.
        let deadline = sent + self.config.ttl - self.config.margin;
        if deadline > held.deadline {
            held.deadline = deadline;
            self.actions.push(Action::Guard { lease: held.lease, deadline });
        }
    }

    pub(super) fn lease_ended(&mut self, lease: LeaseId) {
        if self.lease.held() == Some(lease) {
            self.lose_lease();
        }
    }
}

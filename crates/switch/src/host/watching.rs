//! Requests about frames: what would be done to them, and what is done to those that pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, sync_channel};

use super::{Host, HostError};
use crate::acl::Direction;
use crate::control::{CapturedFrame, Stream, Streamed, send, stream};
use crate::explain::{FrameFilter, Names, TraceReport, report};
use crate::frame::HEADER_BYTES;
use crate::hex::{from_hex, to_hex};
use crate::worker::{Capture, Captured, Handle, Room, Tracer, Watcher};

/// The most frames of one live trace.
const MAX_TRACES: u64 = 10_000;
/// Traces that wait for the client.
const QUEUE: usize = 64;
/// Captured frames of one message.
const BATCH: usize = 64;

/// Ends a look at frames when whoever looked has gone.
struct Watching {
    worker: Handle,
    id: u64,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let id = self.id;
        // A worker that has ended looks at nothing.
        let _ = self.worker.call(move |worker| worker.watches.remove(id));
    }
}

impl Host {
    /// The names of a worker's ports.
    pub(super) fn names(&self, worker: &Handle) -> Names {
        self.ports_of(worker).map(|entry| (entry.number, entry.config.name.clone())).collect()
    }

    pub(super) fn trace(&self, name: &str, frame: &str, length: Option<usize>) -> Result<TraceReport, HostError> {
        let (worker, number) = self.place(name)?;
        let mut head = from_hex(frame).ok_or(HostError::Hex)?;
        let length = length.unwrap_or(head.len());
        if length < head.len() {
            return Err(HostError::FrameLength { length, given: head.len() });
        }
        // What lies behind the headers says nothing.
        head.resize(length.min(HEADER_BYTES), 0);
        let trace = worker.call(move |worker| worker.switch.trace(number, &head, length, worker.now()))??;
        Ok(report(&trace, number, &self.names(&worker)))
    }

    pub(super) fn trace_live(&self, name: &str, count: u64, filter: FrameFilter) -> Result<Stream, HostError> {
        let (worker, number) = self.place(name)?;
        if !(1..=MAX_TRACES).contains(&count) {
            return Err(HostError::Count { count, most: MAX_TRACES });
        }
        let (sender, traces) = sync_channel(QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        let tracer = Tracer::new(filter, count, sender, missed.clone());
        let id = worker.call(move |worker| worker.watches.add(number, Watcher::Tracer(tracer)))?;
        let names = self.names(&worker);
        let watching = Watching { worker, id };
        Ok(Box::new(move |connection| {
            stream(connection, &traces, |trace| Streamed::Trace(report(&trace, number, &names)))?;
            drop(watching);
            send(connection, &Streamed::End { missed: missed.load(Ordering::Relaxed) })
        }))
    }

    pub(super) fn capture(
        &self,
        name: &str,
        direction: Option<Direction>,
        count: Option<u64>,
        snap_bytes: usize,
    ) -> Result<Stream, HostError> {
        let (worker, number) = self.place(name)?;
        if count == Some(0) {
            return Err(HostError::Count { count: 0, most: u64::MAX });
        }
        let (sender, frames) = channel();
        let room = Arc::new(Room::default());
        let capture = Capture::new(direction, snap_bytes, count.unwrap_or(u64::MAX), sender, room.clone());
        let id = worker.call(move |worker| worker.watches.add(number, Watcher::Capture(capture)))?;
        let watching = Watching { worker, id };
        Ok(Box::new(move |connection| {
            let batch = |first: Captured| {
                let batch = std::iter::once(first).chain(frames.try_iter().take(BATCH - 1));
                Streamed::Frames { frames: batch.map(|frame| captured(frame, &room)).collect() }
            };
            stream(connection, &frames, batch)?;
            drop(watching);
            // Those that were caught before it ended.
            for frame in frames.try_iter() {
                send(connection, &Streamed::Frames { frames: vec![captured(frame, &room)] })?;
            }
            send(connection, &Streamed::End { missed: room.missed() })
        }))
    }
}

fn captured(frame: Captured, room: &Room) -> CapturedFrame {
    room.leave(frame.bytes.len());
    let Captured { at, direction, length, bytes } = frame;
    CapturedFrame { at_ns: at, direction, length, bytes: to_hex(&bytes) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::super::tests::{port, start};
    use super::*;
    use crate::control::{Backend, Client, ClientError, PortConfig, Request};
    use crate::explain::TraceAction;
    use crate::frame::build::{ethernet, mac};
    use crate::links::Missing;
    use crate::policy::PortPolicy;
    use crate::ports::tests::Vm;
    use crate::vlan::VlanMode;

    /// Two ports, with a VM behind the first.
    fn lab(directory: &Path) -> (Client, Vm) {
        let mut client = start(directory);
        for name in ["a", "b"] {
            let backend = Backend::VhostUser { socket: directory.join(name), mode: 0o600, queues: 2 };
            let port = PortConfig { backend, ..port(directory, name) };
            client.call::<Value>(&Request::AddPort { port, missing: Missing::Refused }).unwrap();
        }
        let mut vm = Vm::new(0);
        vm.connect(&directory.join("a"));
        (client, vm)
    }

    fn live(count: u64) -> Request {
        let filter = FrameFilter { destination_mac: Some(mac(2)), ..FrameFilter::default() };
        Request::TraceLive { name: "a".into(), count, filter }
    }

    #[test]
    fn the_next_frames_that_are_meant_are_traced() {
        let directory = tempfile::tempdir().unwrap();
        let (mut client, mut vm) = lab(directory.path());
        client.call::<Value>(&live(2)).unwrap();
        for destination in [9, 2, 9, 2, 2] {
            vm.send([0; 12], &ethernet(mac(1), mac(destination)).other(0x0806));
        }
        for _ in 0..2 {
            let Streamed::Trace(report) = client.receive().unwrap() else { panic!("it ended") };
            assert_eq!(report.frame, "52:54:00:00:00:01 to 52:54:00:00:00:02, type 0x0806");
            // The first frame, which was not meant, was seen by the switch.
            let learning = report.steps.iter().find(|step| step.layer == "learning").unwrap();
            assert_eq!(learning.why, format!("station {} is known behind this port", mac(1)));
            let deliver = TraceAction::Deliver { port: "b".into(), tag: "keep".into() };
            assert_eq!(report.actions, [TraceAction::Limit, deliver]);
        }
        assert_eq!(client.receive::<Streamed>().unwrap(), Streamed::End { missed: 0 });
        client.call::<Value>(&Request::Status).expect("the connection can be used on");
    }

    #[test]
    fn a_look_ends_when_the_client_says_so_or_the_port_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (mut client, _vm) = lab(directory.path());
        client.call::<Value>(&live(2)).unwrap();
        start_another(directory.path()).call::<Value>(&Request::RemovePort { name: "a".into() }).unwrap();
        assert_eq!(client.receive::<Streamed>().unwrap(), Streamed::End { missed: 0 });
        let on_b = Request::TraceLive { name: "b".into(), count: 1, filter: FrameFilter::default() };
        client.call::<Value>(&on_b).unwrap();
        client.stopper().unwrap().stop();
        assert_eq!(client.receive::<Streamed>().unwrap(), Streamed::End { missed: 0 });
        assert!(matches!(client.receive::<Value>(), Err(ClientError::Gone)));
    }

    fn frames(client: &mut Client, count: usize) -> Vec<CapturedFrame> {
        let mut all = Vec::new();
        while all.len() < count {
            let Streamed::Frames { frames } = client.receive().unwrap() else { panic!("it ended after {}", all.len()) };
            all.extend(frames);
        }
        all
    }

    #[test]
    fn frames_are_captured_as_the_port_sees_them() {
        let directory = tempfile::tempdir().unwrap();
        let (mut client, mut sender) = lab(directory.path());
        let mut receiver = Vm::new(0);
        receiver.connect(&directory.path().join("b"));
        (0..8).for_each(|_| receiver.receive.offer_room(2048));
        let trunk = PortPolicy { vlan: VlanMode::all(), ..PortPolicy::default() };
        // Without a station that is known there, the sender is not announced in between.
        let vlan = VlanMode::Access { vlan: 5.try_into().unwrap() };
        let access = PortPolicy { vlan, max_stations: 0, ..PortPolicy::default() };
        for (name, policy) in [("a", access), ("b", trunk)] {
            client.call::<Value>(&Request::SetPolicy { name: name.into(), policy }).unwrap();
        }
        let capture =
            |name: &str, direction, count, snap_bytes| Request::Capture { name: name.into(), direction, count, snap_bytes };
        let mut at_b = start_another(directory.path());
        at_b.call::<Value>(&capture("b", None, None, 65_557)).unwrap();
        client.call::<Value>(&capture("a", Some(Direction::Outbound), Some(2), 64)).unwrap();
        let plain = ethernet(mac(1), mac(2)).other(0x9000);
        let long = [&plain[..], &[7; 1000]].concat();
        for frame in [&plain, &long, &plain] {
            sender.send([0; 12], frame);
            receiver.receive();
        }
        let sent = frames(&mut client, 2);
        assert_eq!(sent.iter().map(|frame| frame.length).collect::<Vec<_>>(), [plain.len(), long.len()]);
        assert_eq!(from_hex(&sent[1].bytes).unwrap(), long[..64]);
        assert!(sent[0].at_ns < sent[1].at_ns);
        assert_eq!(client.receive::<Streamed>().unwrap(), Streamed::End { missed: 0 }, "so many were asked for");
        let got = frames(&mut at_b, 3);
        assert!(got.iter().all(|frame| frame.direction == Direction::Inbound));
        let tagged = ethernet(mac(1), mac(2)).tag(5).other(0x9000);
        assert_eq!(from_hex(&got[0].bytes).unwrap(), tagged);
        assert_eq!(got[1].length, long.len() + 4);
        at_b.stopper().unwrap().stop();
        assert_eq!(at_b.receive::<Streamed>().unwrap(), Streamed::End { missed: 0 });
    }

    /// Another client of the same switch.
    fn start_another(directory: &Path) -> Client {
        Client::connect(&directory.join("control")).unwrap()
    }

    #[test]
    fn a_made_up_frame_is_explained_and_nonsense_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (mut client, _vm) = lab(directory.path());
        let trace = |frame: &str, length| Request::Trace { name: "a".into(), frame: frame.into(), length };
        let frame = "ff:ff:ff:ff:ff:ff 525400000001 0806";
        let report: TraceReport = client.call(&trace(frame, Some(60))).unwrap();
        let layers: Vec<(&str, &str)> = report.steps.iter().map(|step| (step.layer.as_str(), step.port.as_str())).collect();
        let expected = [
            ("parse", "a"),
            ("guard", "a"),
            ("vlan in", "a"),
            ("acl out", "a"),
            ("acl out", "a"),
            ("learning", "a"),
            ("forwarding", "a"),
            ("vlan out", "b"),
            ("acl in", "b"),
            ("acl in", "b"),
            ("tag", "b"),
            ("storm limit", "a"),
        ];
        assert_eq!(layers, expected);
        assert!(report.steps.iter().all(|step| step.passes));
        let short: TraceReport = client.call(&trace("00", None)).unwrap();
        assert_eq!((short.steps.len(), short.steps[0].passes), (1, false));
        for (wrong, length) in [("0", None), ("xy", None), (frame, Some(3))] {
            assert!(matches!(client.call::<Value>(&trace(wrong, length)), Err(ClientError::Refused(_))), "{wrong}");
        }
        let status: crate::control::Status = client.call(&Request::Status).unwrap();
        assert_eq!((status.stations, status.decisions), (0, 0));
    }
}

//! `events`: what happens, line by line.

use serde_json::Value;
use vmm::control::{Client, ClientError, Event, EventKind, Request};

use super::ControlError;
use crate::output::{Output, print};

/// Prints events until the VM ends.
pub fn follow(client: &mut Client, output: Output) -> Result<(), ControlError> {
    client.call::<Value>(&Request::Subscribe, &[])?;
    let mut expected = None;
    loop {
        let event = client.next_event()?;
        if expected.is_some_and(|expected| expected != event.sequence) {
            eprintln!("some events are missing: this program did not keep up");
        }
        expected = Some(event.sequence + 1);
        let told = output.render_next(&event, || text(&event)).map_err(ClientError::from)?;
        print(&told).map_err(ControlError::Output)?;
        if let EventKind::Ended { .. } = event.kind {
            return Ok(());
        }
    }
}

fn text(event: &Event) -> String {
    let what = match &event.kind {
        EventKind::Running => "the guest runs".into(),
        EventKind::Paused => "the guest is paused".into(),
        EventKind::Reset => "the machine was reset".into(),
        EventKind::Ended { reason } => format!("the VM has ended: {reason}"),
        EventKind::FinalCounters { devices } => format!("the {} devices are stopped", devices.len()),
        EventKind::GuestPanicked => "the guest's system panicked".into(),
        EventKind::DeviceFailed { id, reason } => format!("device '{id}' failed: {reason}"),
        EventKind::DiskFailed { id, reason } => format!("disk '{id}' failed a request: {reason}"),
        EventKind::GuestAgent { open: true } => "the guest agent is there".into(),
        EventKind::GuestAgent { open: false } => "the guest agent is gone".into(),
        EventKind::CpusRemoved { count } => format!("the guest has given a vCPU back; vCPUs left: {count}"),
        EventKind::DeviceRemoved { id } => format!("the guest has given device '{id}' back"),
    };
    format!("{:>5}  {what}", event.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::control::testing::{Monitor, event, ok};

    #[test]
    fn following_ends_with_the_vm() {
        let monitor = Monitor::start(|monitor| {
            assert_eq!(monitor.request().0, Request::Subscribe);
            monitor.send(&event(7, EventKind::Paused));
            monitor.send(&ok());
            monitor.send(&event(9, EventKind::Ended { reason: "power off".into() }));
            monitor.keep_open();
        });
        follow(&mut monitor.client(), Output::Json).unwrap();
    }

    #[test]
    fn a_monitor_that_goes_without_a_word_is_an_error() {
        let monitor = Monitor::start(|monitor| {
            monitor.request();
            monitor.send(&ok());
        });
        assert!(follow(&mut monitor.client(), Output::Text).unwrap_err().to_string().contains("has ended"));
    }

    #[test]
    fn lines_say_what_happened() {
        let kind = EventKind::DeviceFailed { id: "disk0".into(), reason: "gone".into() };
        assert_eq!(text(&Event { sequence: 3, kind }), "    3  device 'disk0' failed: gone");
    }
}

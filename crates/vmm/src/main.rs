//! `maru-vmm`: one virtual machine.
use std::os::fd::AsFd;

use vmm::config::VmConfig;
use vmm::devices::console::host::StartAt;
use vmm::machine::Machine;
use vmm::machine::events::{MachineEvent, event_queue};

fn main() {
    let path = std::env::args().nth(1).expect("config");
    let config = VmConfig::from_json(&std::fs::read(path).expect("config")).expect("config");
    let (sender, queue) = event_queue().expect("events");
    let mut machine = Machine::new(config, sender).unwrap_or_else(|e| panic!("{e}"));
    let _out = machine.console().attach(std::io::stdout().as_fd().try_clone_to_owned().unwrap(), StartAt::ScrollBack);
    machine.boot().unwrap_or_else(|e| panic!("{e}"));
    machine.resume();
    loop {
        let mut poll = libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&*queue.ready), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, -1) };
        for event in queue.take() {
            eprintln!("event: {event:?}");
            match event {
                MachineEvent::PowerOff | MachineEvent::Vcpu { .. } => {
                    machine.stop();
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    return;
                }
                MachineEvent::Reset => {
                    machine.reset().unwrap();
                    machine.resume();
                }
                _ => {}
            }
        }
    }
}

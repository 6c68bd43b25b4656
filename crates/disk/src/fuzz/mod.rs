//! What fuzzing runs, of the parsers here; see `vhdx::fuzz`.

mod dirty;
mod import;

pub use dirty::dirty;
pub use import::{qcow2, vmdk, vmdk_descriptor};

#[cfg(test)]
mod tests {
    use vhdx::fuzz::{Body, Outcome, run};

    use super::*;

    /// Memory that a file's sizes could make us take is missed here, also if nothing is ever written into it.
    const MEMORY: u64 = 4 << 30;

    fn survives(body: Body) {
        let limit = libc::rlimit { rlim_cur: MEMORY, rlim_max: MEMORY };
        // SAFETY: reads one rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        let Outcome { inputs, understood } = run(body);
        assert!(understood > inputs / 20 && understood < inputs, "{understood} of {inputs} understood");
    }

    #[test]
    fn no_change_to_a_dirty_map_does_harm() {
        survives(dirty);
    }

    #[test]
    fn no_change_to_a_vmdk_does_harm() {
        survives(vmdk);
    }

    #[test]
    fn no_vmdk_descriptor_does_harm() {
        survives(vmdk_descriptor);
    }

    #[test]
    fn no_change_to_a_qcow2_image_does_harm() {
        survives(qcow2);
    }
}

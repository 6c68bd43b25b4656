//! A list of allowed system calls, some only with certain arguments, and its compilation to BPF.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// What an argument (0 to 5) has to be.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Its low 32 bits have this value. For arguments that the kernel takes as `int`.
    Is(u8, u32),
    /// All 64 bits have this value.
    IsLong(u8, u64),
    /// It has none of these bits.
    Without(u8, u64),
}

/// The system calls that a kind of threads may make.
#[derive(Default)]
pub struct Policy {
    /// By number; a call with an empty list is allowed whatever its arguments.
    calls: BTreeMap<i64, Vec<Vec<Check>>>,
}

impl Policy {
    /// Allows these.
    pub fn allow(mut self, calls: &[libc::c_long]) -> Policy {
        for call in calls {
            self.calls.insert(*call, Vec::new());
        }
        self
    }

    /// Allows a call whose arguments pass all checks. Those of an earlier call stay allowed.
    pub fn allow_if(mut self, call: libc::c_long, checks: &[Check]) -> Policy {
        match self.calls.entry(call) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(vec![checks.to_vec()])),
            // Allowed without checks already.
            std::collections::btree_map::Entry::Occupied(entry) if entry.get().is_empty() => {}
            std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().push(checks.to_vec()),
        }
        self
    }

    /// Allows a call with one of these values as an argument. Those that come first are found first.
    pub fn allow_values(self, call: libc::c_long, argument: u8, values: &[u32]) -> Policy {
        values.iter().fold(self, |policy, value| policy.allow_if(call, &[Check::Is(argument, *value)]))
    }

    /// The program. Everything else raises SIGSYS; another architecture's calls kill the process.
    pub fn compile(self) -> Result<BpfProgram, BackendError> {
        let rules = self.calls.into_iter().map(|(call, alternatives)| {
            let rules = alternatives.into_iter().map(|checks| {
                let conditions = checks.into_iter().map(condition).collect::<Result<_, _>>()?;
                SeccompRule::new(conditions)
            });
            Ok((call, rules.collect::<Result<_, _>>()?))
        });
        let rules = rules.collect::<Result<BTreeMap<_, _>, BackendError>>()?;
        SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
    }
}

fn condition(check: Check) -> Result<SeccompCondition, BackendError> {
    let (dword, qword) = (SeccompCmpArgLen::Dword, SeccompCmpArgLen::Qword);
    match check {
        Check::Is(argument, value) => SeccompCondition::new(argument, dword, SeccompCmpOp::Eq, u64::from(value)),
        Check::IsLong(argument, value) => SeccompCondition::new(argument, qword, SeccompCmpOp::Eq, value),
        Check::Without(argument, bits) => SeccompCondition::new(argument, qword, SeccompCmpOp::MaskedEq(bits), 0),
    }
}

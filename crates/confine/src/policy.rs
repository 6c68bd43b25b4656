//! What a kind of threads may call, and its compilation to BPF.
//!
//! When a filter is installed, the kernel tries all some 450 system calls on it, to know which are allowed whatever their arguments. With a
//! program that looks for the number from the first to the last of 80, that took a fifth of a millisecond for each thread
//! (measured with `seccompiler`'s), and every KVM_RUN pays for its way, too. So the number is found by halving here.

use std::collections::BTreeMap;

use libc::{BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP};
use seccompiler::{BpfProgram, sock_filter};

/// What an argument (0 to 5) has to be.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Its low 32 bits have this value. For arguments that the kernel takes as `int`.
    Is(u32, u32),
    /// All 64 bits have this value.
    IsLong(u32, u64),
    /// It has all or some of these bits.
    With(u32, u32),
    /// It has none of these bits.
    Without(u32, u32),
}

/// What happens with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this error.
    Fail(i32),
    /// It raises SIGSYS.
    Trap,
}

#[derive(Clone, Debug)]
struct Rule {
    /// Allowed if all checks of one of these pass.
    alternatives: Vec<Vec<Check>>,
    otherwise: Verdict,
}

/// The system calls that a kind of threads may make. What is allowed once stays allowed.
#[derive(Default)]
pub struct Policy {
    calls: BTreeMap<u32, Rule>,
}

impl Policy {
    /// Allows these.
    pub fn allow(self, calls: &[libc::c_long]) -> Policy {
        calls.iter().fold(self, |policy, call| policy.otherwise(*call, Verdict::Allow))
    }

    /// Lets these fail.
    pub fn refuse(self, calls: &[libc::c_long], error: i32) -> Policy {
        calls.iter().fold(self, |policy, call| policy.otherwise(*call, Verdict::Fail(error)))
    }

    /// Allows a call whose arguments pass all checks.
    pub fn allow_if(mut self, call: libc::c_long, checks: &[Check]) -> Policy {
        self.rule(call).alternatives.push(checks.to_vec());
        self
    }

    /// Allows a call with one of these values as an argument. Those that come first are found first.
    pub fn allow_values(self, call: libc::c_long, argument: u32, values: &[u32]) -> Policy {
        values.iter().fold(self, |policy, value| policy.allow_if(call, &[Check::Is(argument, *value)]))
    }

    fn otherwise(mut self, call: libc::c_long, verdict: Verdict) -> Policy {
        let rule = self.rule(call);
        if rule.otherwise != Verdict::Allow {
            rule.otherwise = verdict;
        }
        self
    }

    fn rule(&mut self, call: libc::c_long) -> &mut Rule {
        let nothing = Rule { alternatives: Vec::new(), otherwise: Verdict::Trap };
        self.calls.entry(u32::try_from(call).expect("numbers of system calls are small")).or_insert(nothing)
    }

    /// The program. Calls that it does not know raise SIGSYS, those of another architecture kill the process.
    pub fn compile(&self) -> BpfProgram {
        let calls: Vec<(u32, BpfProgram)> = self.calls.iter().map(|(call, rule)| (*call, rule.compile())).collect();
        let mut program = vec![load(ARCHITECTURE), jump(BPF_JEQ, X86_64, 1, 0), give(SECCOMP_RET_KILL_PROCESS), load(NUMBER)];
        program.extend(find(&calls));
        program
    }

    /// What the program should say.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn verdict(&self, call: u32, arguments: [u64; 6]) -> Verdict {
        let Some(rule) = self.calls.get(&call) else { return Verdict::Trap };
        let passes = |check: &Check| match *check {
            Check::Is(at, value) => arguments[at as usize] as u32 == value,
            Check::IsLong(at, value) => arguments[at as usize] == value,
            Check::With(at, bits) => arguments[at as usize] as u32 & bits != 0,
            Check::Without(at, bits) => arguments[at as usize] as u32 & bits == 0,
        };
        match rule.alternatives.iter().any(|checks| checks.iter().all(passes)) {
            true => Verdict::Allow,
            false => rule.otherwise,
        }
    }
}

impl Rule {
    fn compile(&self) -> BpfProgram {
        let mut program = Vec::new();
        // The argument whose low half the accumulator holds.
        let mut loaded = None;
        let alternatives = if self.otherwise == Verdict::Allow { &[][..] } else { &self.alternatives };
        for checks in alternatives {
            let start = program.len();
            // Comparisons that lead to the next alternative if they are (true) or are not (false) met.
            let mut exits: Vec<(usize, bool)> = Vec::new();
            for check in checks {
                let (argument, high, comparison, value, exit_if) = match *check {
                    Check::Is(argument, value) => (argument, None, BPF_JEQ, value, false),
                    Check::IsLong(argument, value) => (argument, Some((value >> 32) as u32), BPF_JEQ, value as u32, false),
                    Check::With(argument, bits) => (argument, None, BPF_JSET, bits, false),
                    Check::Without(argument, bits) => (argument, None, BPF_JSET, bits, true),
                };
                if let Some(high) = high {
                    program.push(load(ARGUMENTS + 8 * argument + 4));
                    exits.push((program.len(), false));
                    program.push(jump(BPF_JEQ, high, 0, 0));
                    loaded = None;
                }
                if loaded != Some(argument) {
                    program.push(load(ARGUMENTS + 8 * argument));
                    loaded = Some(argument);
                }
                exits.push((program.len(), exit_if));
                program.push(jump(comparison, value, 0, 0));
            }
            program.push(give(SECCOMP_RET_ALLOW));
            let end = program.len();
            for &(at, exit_if) in &exits {
                let distance = (end - at - 1) as u8;
                let place = if exit_if { &mut program[at].jt } else { &mut program[at].jf };
                *place = distance;
            }
            debug_assert!(end - start < 256, "an alternative is longer than a jump");
            if exits.len() != 1 {
                // Which comparison failed, and so what is loaded, is not known.
                loaded = None;
            }
        }
        program.push(give(match self.otherwise {
            Verdict::Allow => SECCOMP_RET_ALLOW,
            Verdict::Fail(error) => SECCOMP_RET_ERRNO | error as u32,
            Verdict::Trap => SECCOMP_RET_TRAP,
        }));
        program
    }
}

/// Goes to the part for the number in the accumulator.
fn find(calls: &[(u32, BpfProgram)]) -> BpfProgram {
    match calls {
        [] => vec![give(SECCOMP_RET_TRAP)],
        [(call, part)] => {
            let mut program = vec![jump(BPF_JEQ, *call, 1, 0), give(SECCOMP_RET_TRAP)];
            program.extend_from_slice(part);
            program
        }
        _ => {
            let (low, high) = calls.split_at(calls.len() / 2);
            let lower = find(low);
            // Conditional jumps reach 255 instructions, others any.
            let mut program = vec![jump(BPF_JGE, high[0].0, 0, 1), skip(lower.len())];
            program.extend(lower);
            program.extend(find(high));
            program
        }
    }
}

/// Offsets in `struct seccomp_data`, and `AUDIT_ARCH_X86_64`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const X86_64: u32 = 0xc000_003e;

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

fn jump(comparison: u32, value: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | comparison | BPF_K) as u16, jt, jf, k: value }
}

fn skip(count: usize) -> sock_filter {
    sock_filter { code: (BPF_JMP | BPF_JA) as u16, jt: 0, jf: 0, k: count as u32 }
}

fn give(action: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: action }
}

/// Runs a program as the kernel would.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn run(program: &[sock_filter], call: u32, arguments: [u64; 6]) -> Verdict {
    let data = |offset: u32| match offset {
        NUMBER => call,
        ARCHITECTURE => X86_64,
        _ => (arguments[(offset - ARGUMENTS) as usize / 8] >> (offset % 8 * 8)) as u32,
    };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at].clone();
        at += 1;
        let branch = |met: bool| usize::from(if met { jt } else { jf });
        match u32::from(code) {
            code if code == BPF_LD | BPF_W | BPF_ABS => accumulator = data(k),
            code if code == BPF_JMP | BPF_JEQ | BPF_K => at += branch(accumulator == k),
            code if code == BPF_JMP | BPF_JGE | BPF_K => at += branch(accumulator >= k),
            code if code == BPF_JMP | BPF_JSET | BPF_K => at += branch(accumulator & k != 0),
            code if code == BPF_JMP | BPF_JA => at += k as usize,
            code if code == BPF_RET | BPF_K => match k {
                SECCOMP_RET_ALLOW => return Verdict::Allow,
                SECCOMP_RET_TRAP => return Verdict::Trap,
                _ => return Verdict::Fail((k & 0xffff) as i32),
            },
            code => panic!("instruction {code:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check() -> impl Strategy<Value = Check> {
        // Few values, so that they meet.
        let value = prop_oneof![0u32..4, Just(u32::MAX)];
        prop_oneof![
            (0..3u32, value.clone()).prop_map(|(at, value)| Check::Is(at, value)),
            (0..3u32, value.clone(), value.clone())
                .prop_map(|(at, high, low)| Check::IsLong(at, u64::from(high) << 32 | u64::from(low))),
            (0..3u32, value.clone()).prop_map(|(at, bits)| Check::With(at, bits)),
            (0..3u32, value).prop_map(|(at, bits)| Check::Without(at, bits)),
        ]
    }

    proptest! {
        #[test]
        fn any_list_is_compiled_to_what_it_says(
            conditional in prop::collection::vec((0..20i64, prop::collection::vec(check(), 1..4)), 0..40),
            allowed in prop::collection::vec(0..20i64, 0..5),
            refused in prop::collection::vec(0..20i64, 0..5),
            calls in prop::collection::vec((0..22u32, prop::array::uniform3((0..4u64, 0..2u64))), 1..40),
        ) {
            let policy = conditional.iter().fold(Policy::default(), |policy, (call, checks)| policy.allow_if(*call, checks));
            let policy = policy.allow(&allowed).refuse(&refused, libc::EACCES);
            let program = policy.compile();
            for (call, [a, b, c]) in calls {
                let long = |(low, high): (u64, u64)| high << 32 | low;
                let arguments = [long(a), long(b), long(c), 0, 0, 0];
                prop_assert_eq!(run(&program, call, arguments), policy.verdict(call, arguments));
            }
        }
    }
}

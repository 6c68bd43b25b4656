//! What the bits of `CPUID` are called.
//!
//! Names are those of Linux's `/proc/cpuinfo`, or of its source where it shows none, so that they mean the same on each host, whatever
//! kernel is there. They are stored with VMs: one may be added here, none changed.

/// A register of `CPUID`'s answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A register whose bits are features.
#[derive(Debug)]
pub struct Features {
    /// EAX of the question.
    pub function: u32,
    /// ECX of the question.
    pub index: u32,
    /// Where the answer is.
    pub register: Register,
    /// A word for each bit, from 0 on: `-` for one that no list can promise, `*` for one that the monitor or KVM sets as the VM needs it.
    names: &'static str,
}

impl Features {
    /// The names of all bits.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.names.split_ascii_whitespace()
    }

    /// The bits that a list can promise.
    pub fn named(&self) -> impl Iterator<Item = (u32, &'static str)> {
        (0u32..).zip(self.names()).filter(|(_, name)| !matches!(*name, "-" | "*"))
    }

    /// The bits that say nothing of the host.
    pub fn own(&self) -> u32 {
        (0u32..).zip(self.names()).filter(|(_, name)| *name == "*").map(|(bit, _)| 1 << bit).sum()
    }
}

const fn features(function: u32, index: u32, register: Register, names: &'static str) -> Features {
    Features { function, index, register, names }
}

/// All registers with features. What counts or traces is not named: performance counters, branch records, processor trace; they differ
/// from model to model, and their state does not move.
pub static REGISTERS: [Features; 18] = [
    features(
        1,
        0,
        Register::Ecx,
        "pni pclmulqdq - - - vmx - - - ssse3 - - fma cx16 - -
         - pcid - sse4_1 sse4_2 * movbe popcnt tsc_deadline_timer aes xsave * avx f16c rdrand *",
    ),
    features(
        1,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov
         pat pse36 - clflush - - - mmx fxsr sse sse2 ss * - - -",
    ),
    features(6, 0, Register::Eax, "- - arat - - - - - - - - - - - - - - - - - - - - - - - - - - - - -"),
    features(
        7,
        0,
        Register::Ebx,
        "fsgsbase tsc_adjust - bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm - zero_fcs_fds mpx -
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb - avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    features(
        7,
        0,
        Register::Ecx,
        "prefetchwt1 avx512vbmi umip pku * waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg -
         avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b - - pks",
    ),
    features(
        7,
        0,
        Register::Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear - - - serialize -
         tsxldtrk - - - ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities -
         spec_ctrl_ssbd",
    ),
    features(
        7,
        1,
        Register::Eax,
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - -
         - fred lkgs wrmsrns - amx_fp16 - avx_ifma - - lam - - - - -",
    ),
    features(
        7,
        1,
        Register::Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi -
         - - - - - - - - - - - - - - - -",
    ),
    features(
        7,
        2,
        Register::Edx,
        "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no - - - - - - - - - -
         - - - - - - - - - - - - - - - -",
    ),
    features(0xd, 1, Register::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd - - - - - - - - - - - - - - - - - - - - - - - - - - -"),
    features(
        0x4000_0001,
        0,
        Register::Eax,
        "kvm_clocksource kvm_nop_io_delay - kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt -
         kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int -
         kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvm_clocksource_stable - - - - - - -",
    ),
    features(
        0x8000_0001,
        0,
        Register::Ecx,
        "lahf_lm * svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw - xop - - - -
         fma4 tce - - - tbm topoext - - - - - - - - -",
    ),
    features(
        0x8000_0001,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov
         pat pse36 - - nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    features(0x8000_0007, 0, Register::Edx, "- - - - - - - - constant_tsc - - - - - - - - - - - - - - - - - - - - - - -"),
    features(
        0x8000_0008,
        0,
        Register::Ebx,
        "clzero - xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp
         - amd_stibp_always_on - amd_ibrs_same_mode - - - - amd_ssbd virt_ssbd amd_ssb_no - amd_psfd btc_no amd_ibpb_ret -",
    ),
    features(
        0x8000_000a,
        0,
        Register::Edx,
        "npt lbrv - nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold avic -
         v_vmsave_vmload vgif - x2avic - v_spec_ctrl - - - - vnmi - - svme_addr_chk - - -",
    ),
    features(
        0x8000_0021,
        0,
        Register::Eax,
        "no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - - verw_clear null_sel_clr_base - autoibrs no_smm_ctl_msr - - - - - -
         - - - - prefetchi_amd - - - - - - sbpb ibpb_brtype srso_no - -",
    ),
    features(0x8000_0021, 0, Register::Ecx, "- tsa_sq_no tsa_l1_no - - - - - - - - - - - - - - - - - - - - - - - - - - - - -"),
];

/// Makers of processors, as leaf 0 names them, with the names that stand for them in lists: what is said in different ways by both is not
/// moved between them.
pub const VENDORS: [(&[u8; 12], &str); 3] =
    [(b"AuthenticAMD", "vendor_amd"), (b"GenuineIntel", "vendor_intel"), (b"HygonGenuine", "vendor_hygon")];

/// What a feature is no use without, as in Linux's `cpuid-deps.c`.
pub const NEEDS: &[(&str, &[&str])] = &[
    ("sse", &["fxsr"]),
    ("fxsr_opt", &["fxsr"]),
    ("sse2", &["sse"]),
    ("pni", &["sse2"]),
    ("ssse3", &["pni"]),
    ("sse4_1", &["ssse3"]),
    ("sse4_2", &["sse4_1"]),
    ("sse4a", &["pni"]),
    ("aes", &["sse2"]),
    ("pclmulqdq", &["sse2"]),
    ("sha_ni", &["sse2"]),
    ("gfni", &["sse2"]),
    ("xsaveopt", &["xsave"]),
    ("xsavec", &["xsave"]),
    ("xgetbv1", &["xsave"]),
    ("xsaves", &["xsave"]),
    ("xfd", &["xsave"]),
    ("xsaveerptr", &["xsave"]),
    ("avx", &["xsave", "sse4_2"]),
    ("mpx", &["xsave"]),
    ("pku", &["xsave"]),
    ("f16c", &["avx"]),
    ("fma", &["avx"]),
    ("fma4", &["avx"]),
    ("xop", &["avx"]),
    ("avx2", &["avx"]),
    ("vaes", &["avx", "aes"]),
    ("vpclmulqdq", &["avx", "pclmulqdq"]),
    ("sha512", &["avx2"]),
    ("sm3", &["avx"]),
    ("sm4", &["avx2"]),
    ("avx_vnni", &["avx2"]),
    ("avx_ifma", &["avx2"]),
    ("avx_vnni_int8", &["avx2"]),
    ("avx_vnni_int16", &["avx2"]),
    ("avx_ne_convert", &["avx2"]),
    ("avx512f", &["avx2", "fma", "f16c"]),
    ("avx512ifma", &["avx512f"]),
    ("avx512pf", &["avx512f"]),
    ("avx512er", &["avx512f"]),
    ("avx512cd", &["avx512f"]),
    ("avx512dq", &["avx512f"]),
    ("avx512bw", &["avx512f"]),
    ("avx512vl", &["avx512f"]),
    ("avx512vbmi", &["avx512bw"]),
    ("avx512_vbmi2", &["avx512bw"]),
    ("avx512_bitalg", &["avx512bw"]),
    ("avx512_vnni", &["avx512f"]),
    ("avx512_4vnniw", &["avx512f"]),
    ("avx512_4fmaps", &["avx512f"]),
    ("avx512_vpopcntdq", &["avx512f"]),
    ("avx512_vp2intersect", &["avx512f"]),
    ("avx512_bf16", &["avx512bw"]),
    ("avx512_fp16", &["avx512bw", "avx512vl"]),
    ("amx_tile", &["xsave", "xfd"]),
    ("amx_int8", &["amx_tile"]),
    ("amx_bf16", &["amx_tile"]),
    ("amx_fp16", &["amx_tile"]),
    ("amx_complex", &["amx_tile"]),
    ("shstk", &["xsaves"]),
    ("ibt", &["xsaves"]),
    ("tsxldtrk", &["rtm"]),
    ("mmxext", &["mmx"]),
    ("3dnow", &["mmx"]),
    ("3dnowext", &["3dnow"]),
    ("pdpe1gb", &["lm"]),
    ("la57", &["lm"]),
    ("svme_addr_chk", &["svm"]),
    ("npt", &["svm"]),
    ("lbrv", &["svm"]),
    ("nrip_save", &["svm"]),
    ("tsc_scale", &["svm"]),
    ("vmcb_clean", &["svm"]),
    ("flushbyasid", &["svm"]),
    ("decodeassists", &["svm"]),
    ("pausefilter", &["svm"]),
    ("pfthreshold", &["svm"]),
    ("avic", &["svm"]),
    ("x2avic", &["avic"]),
    ("v_vmsave_vmload", &["svm"]),
    ("vgif", &["svm"]),
    ("v_spec_ctrl", &["svm"]),
    ("vnmi", &["vgif"]),
];

/// Parts of the XSAVE area (bits of XCR0) that features keep their registers in. x87 and SSE have theirs at its start, always.
pub const COMPONENTS: &[(&str, u64)] =
    &[("avx", 1 << 2), ("mpx", 3 << 3), ("avx512f", 7 << 5), ("pku", 1 << 9), ("amx_tile", 3 << 17)];

/// The same of what the system keeps there (bits of IA32_XSS).
pub const SYSTEM_COMPONENTS: &[(&str, u64)] = &[("shstk", 3 << 11), ("ibt", 3 << 11)];

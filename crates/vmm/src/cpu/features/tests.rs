use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::*;

/// A host made of names, as KVM would describe it: what is not said in names is as on a server of the last years.
fn host(maker: &[u8; 12], names: &[&str]) -> CpuId {
    let entry = |function, index| kvm_cpuid_entry2 { function, index, ..Default::default() };
    let word = |at: usize| u32::from_le_bytes(maker[at..at + 4].try_into().unwrap());
    let mut entries = vec![
        kvm_cpuid_entry2 { eax: 0x20, ebx: word(0), edx: word(4), ecx: word(8), ..entry(0, 0) },
        kvm_cpuid_entry2 { eax: 0x8000_0021, ..entry(0x8000_0000, 0) },
        kvm_cpuid_entry2 { eax: 3 << 5 | 3, ..entry(4, 3) },
        kvm_cpuid_entry2 { eax: 0x0730_0404, ebx: 0, ecx: 0, edx: 0x603, ..entry(0xa, 0) },
        kvm_cpuid_entry2 { eax: 0x64, ebx: 2, ..entry(0x14, 0) },
    ];
    let has = |name: &str| names.contains(&name);
    for place in &REGISTERS {
        let at = entries.iter().position(|e| (e.function, e.index) == (place.function, place.index)).unwrap_or_else(|| {
            entries.push(entry(place.function, place.index));
            entries.len() - 1
        });
        let bits = place.named().filter(|(_, name)| has(name)).map(|(bit, _)| 1 << bit).sum();
        *value_mut(&mut entries[at], place.register) = bits;
    }
    let user = 3 | named_components(COMPONENTS, has);
    let system = named_components(SYSTEM_COMPONENTS, has);
    entries.push(kvm_cpuid_entry2 { eax: user as u32, ebx: 576, ecx: 2696, ..entry(0xd, 0) });
    // Where the parts are on Intel's processors.
    for (index, size, offset) in
        [(2, 256, 576), (3, 64, 960), (4, 64, 1024), (5, 64, 1088), (6, 512, 1152), (7, 1024, 1664), (9, 8, 2688)]
    {
        entries.push(kvm_cpuid_entry2 { eax: size, ebx: offset, ..entry(0xd, index) });
    }
    entries.push(kvm_cpuid_entry2 { eax: 16, ecx: 1, ..entry(0xd, 11) });
    for entry in &mut entries {
        match (entry.function, entry.index) {
            // A model, and places of bits that no list names.
            (1, 0) => (entry.eax, entry.ecx) = (0x806f8, entry.ecx | 1 << 15),
            (7, 0) => entry.eax = 2,
            (0xd, 1) => entry.ecx = system as u32,
            (0x8000_0008, 0) => entry.eax = 52 | 57 << 8,
            _ => {}
        }
        if matches!(entry.function, 4 | 7 | 0xd) {
            entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        }
    }
    CpuId::from_entries(&entries).unwrap()
}

const AMD: &[u8; 12] = b"AuthenticAMD";
const INTEL: &[u8; 12] = b"GenuineIntel";
const OLD: &[&str] = &[
    "fpu", "tsc", "fxsr", "sse", "sse2", "pni", "ssse3", "sse4_1", "sse4_2", "lm", "nx", "xsave", "xsaveopt", "apic", "svm",
    "npt",
];
const NEW: &[&str] = &[
    "fpu",
    "tsc",
    "fxsr",
    "sse",
    "sse2",
    "pni",
    "ssse3",
    "sse4_1",
    "sse4_2",
    "lm",
    "nx",
    "xsave",
    "xsaveopt",
    "apic",
    "svm",
    "npt",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "pku",
    "xsaves",
    "shstk",
    "la57",
    "kvm_pv_eoi",
    "constant_tsc",
];

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|name| String::from(*name)).collect()
}

fn bits(table: &CpuId, function: u32, index: u32) -> [u32; 4] {
    find(table, function, index).map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

#[test]
fn each_register_has_thirty_two_words_and_every_need_is_a_name() {
    for place in &REGISTERS {
        assert_eq!(place.names().count(), 32, "{place:?}");
    }
    for (name, needs) in NEEDS {
        assert!(is_name(name) && !needs.is_empty() && needs.iter().all(|needs| is_name(needs)), "{name}");
    }
    assert!(COMPONENTS.iter().chain(SYSTEM_COMPONENTS).all(|(name, _)| is_name(name)));
}

#[test]
fn what_a_host_has_is_told_by_name_with_its_maker() {
    let mut expected = names(NEW);
    expected.insert("vendor_amd".into());
    assert_eq!(of(&host(AMD, NEW), false), expected);
    assert!(of(&host(INTEL, OLD), true).is_superset(&names(&["vendor_intel", "tsc_deadline_timer"])));
}

#[test]
fn what_is_no_use_without_something_else_is_not_offered() {
    let odd = of(&host(AMD, &["fxsr", "sse", "sse2", "avx2", "avx512f", "fma", "npt"]), false);
    assert_eq!(odd, names(&["fxsr", "sse", "sse2", "vendor_amd"]));
    // The feature is there, and nowhere to keep its registers.
    let mut entries = host(AMD, NEW).as_slice().to_vec();
    entries.iter_mut().filter(|e| (e.function, e.index) == (0xd, 0)).for_each(|e| e.eax &= !(7 << 5));
    let without = of(&CpuId::from_entries(&entries).unwrap(), false);
    assert!(without.contains("avx2") && !without.iter().any(|name| name.starts_with("avx512")), "{without:?}");
}

#[test]
fn a_vm_with_a_list_sees_the_same_on_every_host_that_has_it() {
    let listed = of(&host(AMD, OLD), false);
    let more: Vec<&str> = OLD.iter().chain(&["abm", "smep", "amd_ibpb", "kvm_pv_unhalt"]).copied().collect();
    let tables = [OLD, NEW, &more].map(|names| restrict(&host(AMD, names), true, &listed).unwrap());
    for (table, tsc_deadline) in &tables {
        assert_eq!(table.as_slice(), tables[0].0.as_slice());
        assert_eq!(of(table, *tsc_deadline), listed);
    }
}

#[test]
fn what_is_not_listed_is_nowhere_to_be_seen() {
    let mut listed = of(&host(AMD, OLD), false);
    let (table, tsc_deadline) = restrict(&host(AMD, NEW), true, &listed).unwrap();
    assert!(!tsc_deadline);
    // x87 and SSE are left of the XSAVE area, and no parts that the system keeps.
    assert_eq!(bits(&table, 0xd, 0), [3, 576, 576, 0]);
    assert_eq!(bits(&table, 0xd, 1)[1..], [576, 0, 0]);
    assert!(!table.as_slice().iter().any(|e| e.function == 0xd && e.index > 1));
    // Bits without names, counters, traces; and the leaves end with what is left.
    assert_eq!(bits(&table, 1, 0)[2] & 1 << 15, 0);
    assert!(find(&table, 0xa, 0).is_none() && find(&table, 0x14, 0).is_none());
    assert_eq!((bits(&table, 0, 0)[0], bits(&table, 0x8000_0000, 0)[0]), (0xd, 0x8000_0021));
    assert_eq!(bits(&table, 0x8000_0008, 0)[0], 46 | 48 << 8);
    // The model and the caches stay.
    assert_eq!((bits(&table, 1, 0)[0], bits(&table, 4, 3)[0]), (0x806f8, 3 << 5 | 3));

    listed.extend(names(&["avx", "pku"]));
    let (table, _) = restrict(&host(AMD, NEW), true, &listed).unwrap();
    assert_eq!(bits(&table, 0xd, 0), [3 | 1 << 2 | 1 << 9, 576, 2696, 0]);
    let parts: Vec<u32> = table.as_slice().iter().filter(|e| e.function == 0xd).map(|e| e.index).filter(|i| *i > 1).collect();
    assert_eq!(parts, [2, 9]);
    listed.retain(|name| !matches!(name.as_str(), "svm" | "npt"));
    let (table, _) = restrict(&host(AMD, NEW), true, &listed).unwrap();
    assert!(find(&table, 0x8000_000a, 0).is_none());
}

#[test]
fn a_list_that_no_processor_has_is_refused_with_the_reason() {
    assert_eq!(check(&names(&["sse5"])), Err(FeatureError::Unknown("sse5".into())));
    assert_eq!(check(&names(&["avx2"])), Err(FeatureError::Needs { name: "avx2", needs: "avx" }));
    // Two names for bits that no list may promise.
    assert!(check(&names(&["-"])).is_err() && check(&names(&["*"])).is_err());
    check(&of(&host(AMD, NEW), true)).unwrap();
}

#[test]
fn a_host_that_lacks_what_was_promised_is_refused_with_all_that_is_missing() {
    let promised = of(&host(INTEL, &[OLD, &["avx", "f16c"]].concat()), false);
    let refused = restrict(&host(AMD, OLD), true, &promised).unwrap_err();
    assert_eq!(refused, FeatureError::Missing(["avx", "f16c", "vendor_intel"].map(String::from).to_vec()));
    assert!(refused.to_string().contains("avx, f16c, vendor_intel; run it on a host"), "{refused}");
}

#[test]
fn a_saved_vm_goes_on_where_there_is_all_that_it_saw() {
    let (old, new) = (host(AMD, OLD), host(AMD, NEW));
    assert_eq!(check_saved(&old, &new), Ok(()));
    assert_eq!(check_saved(&new, &new), Ok(()));
    let Err(FeatureError::Missing(missing)) = check_saved(&new, &old) else { panic!("avx512 got lost") };
    assert!(missing.contains(&"avx512f".into()) && missing.contains(&"kvm_pv_eoi".into()), "{missing:?}");
    assert_eq!(
        check_saved(&host(INTEL, OLD), &old),
        Err(FeatureError::Vendor { saved: "GenuineIntel".into(), here: "AuthenticAMD".into() })
    );
    // A bit without a name was seen, too; one that KVM sets while a guest runs says nothing.
    let with = |function, set: fn(&mut kvm_cpuid_entry2)| {
        let mut entries = old.as_slice().to_vec();
        entries.iter_mut().filter(|e| (e.function, e.index) == (function, 0)).for_each(set);
        CpuId::from_entries(&entries).unwrap()
    };
    let seen = check_saved(&with(7, |leaf| leaf.ecx |= 1 << 13), &old).unwrap_err().to_string();
    assert!(seen.contains("bit 13 of Ecx in CPUID leaf 0x7.0"), "{seen}");
    assert_eq!(check_saved(&with(1, |leaf| leaf.ecx |= 1 << 27), &old), Ok(()));
    let narrow = with(0x8000_0008, |leaf| leaf.eax = 40 | 48 << 8);
    assert_eq!(check_saved(&old, &narrow), Err(FeatureError::AddressBits { saved: 52, here: 40 }));
}

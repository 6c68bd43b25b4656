//! The Debian package, as `make deb` makes it. What it does when it is installed is asked by `make test-deb`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::appliance::program;

/// What a program prints; fails the test if it fails.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The package, made in a directory.
fn make(directory: &Path) -> PathBuf {
    let marud = program("marud").expect("marud: cargo build --release --workspace");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/deb");
    let mut deb = Command::new(script);
    deb.arg(directory).env("MARU_BIN_DIR", marud.parent().unwrap()).env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    run(&mut deb);
    directory.join(concat!("maru_", env!("CARGO_PKG_VERSION"), "_amd64.deb"))
}

fn dpkg_deb(option: &str, package: &Path, rest: &[&str]) -> String {
    run(Command::new("dpkg-deb").arg(option).arg(package).args(rest))
}

#[test]
fn the_package_needs_nothing_and_has_all_of_a_host() {
    let place = tempfile::tempdir().unwrap();
    let package = make(place.path());
    assert_eq!(dpkg_deb("--field", &package, &["Version"]).trim(), env!("CARGO_PKG_VERSION"));
    assert_eq!(dpkg_deb("--field", &package, &["Depends", "Pre-Depends"]), "");
    // Like `drwxr-xr-x root/root 0 2026-11-27 14:38 ./usr/`.
    let listed = dpkg_deb("--contents", &package, &[]);
    for entry in listed.lines() {
        let columns: Vec<&str> = entry.split_whitespace().collect();
        assert!(columns[1] == "root/root" && matches!(columns[0], "drwxr-xr-x" | "-rwxr-xr-x" | "-rw-r--r--"), "{entry}");
    }
    let tree = place.path().join("tree");
    dpkg_deb("--raw-extract", &package, &[tree.to_str().unwrap()]);
    for file in [
        "usr/share/bash-completion/completions/maru",
        "usr/share/zsh/vendor-completions/_maru",
        "usr/share/fish/vendor_completions.d/maru.fish",
        "usr/share/man/man1/marud.1.gz",
        "usr/share/man/man1/maru-vm-create.1.gz",
        "usr/share/doc/maru/copyright",
        "usr/share/doc/maru/book/marud.md",
    ] {
        assert!(fs::metadata(tree.join(file)).is_ok_and(|file| file.len() > 0), "{file}");
    }
    run(Command::new("md5sum").args(["--check", "--quiet", "--strict", "DEBIAN/md5sums"]).current_dir(&tree));
    let kept: BTreeSet<String> =
        fs::read_dir(tree.join("etc/default")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let marked = fs::read_to_string(tree.join("DEBIAN/conffiles")).unwrap();
    let marked: BTreeSet<String> = marked.lines().map(|file| file.replace("/etc/default/", "")).collect();
    assert_eq!(kept, marked, "what administrators change is kept in upgrades");
    for program in ["maru", "marud", "maru-guard", "maru-vmm", "maru-switch"] {
        let file = tree.join("usr/bin").join(program);
        assert!(run(Command::new(&file).arg("--version")).contains(env!("CARGO_PKG_VERSION")), "{program}");
        assert!(run(Command::new("ldd").arg(&file)).contains("statically linked"), "{program}");
    }
}

#[test]
fn its_services_leave_vms_alone_and_start_what_is_in_it() {
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    dpkg_deb("--raw-extract", &make(place.path()), &[tree.to_str().unwrap()]);
    for service in ["marud", "maru-switch"] {
        let unit = fs::read_to_string(tree.join(format!("usr/lib/systemd/system/{service}.service"))).unwrap();
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let program = value("ExecStart").unwrap().split(' ').next().unwrap();
        assert!(tree.join(program.trim_start_matches('/')).is_file(), "{program}");
        assert!(tree.join("etc/default").join(service).is_file());
        if service == "marud" {
            assert_eq!((value("KillMode"), value("RuntimeDirectoryPreserve")), (Some("process"), Some("yes")));
        }
    }
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(tree.join("DEBIAN").join(script)));
    }
}

#[test]
fn vms_leave_the_host_when_the_machine_ends_and_not_when_marud_does() {
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    dpkg_deb("--raw-extract", &make(place.path()), &[tree.to_str().unwrap()]);
    let unit = |name: &str| fs::read_to_string(tree.join(format!("usr/lib/systemd/system/{name}.service"))).unwrap();
    let (drain, marud) = (unit("maru-drain"), unit("marud"));
    let has = |unit: &str, key: &str, word: &str| {
        unit.lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .any(|value| value.split(' ').any(|found| found == word))
    };
    // Started with marud, stopped before it, and bound to it by nothing that would stop it with it.
    assert!(has(&marud, "Wants", "maru-drain.service") && has(&drain, "After", "marud.service"));
    assert!(["Requires", "BindsTo", "PartOf", "DefaultDependencies"].iter().all(|key| !drain.contains(&format!("{key}="))));
    let command = drain.lines().find_map(|line| line.strip_prefix("ExecStop=/usr/bin/maru ")).unwrap();
    let maru = tree.join("usr/bin/maru");
    run(Command::new(maru).args(command.split(' ')).arg("--help"));
    assert!(drain.contains("TimeoutStopSec=15min"), "longer than the command waits");
}

#[test]
fn the_same_source_gives_the_same_package() {
    let places = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, other] = places.each_ref().map(|place| fs::read(make(place.path())).unwrap());
    assert!(one == other);
}

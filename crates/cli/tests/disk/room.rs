//! A directory in which `maru disk` and qemu-img run side by side.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A directory in which commands run.
pub struct Room(pub tempfile::TempDir);

impl Room {
    pub fn new() -> Room {
        Room(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, program: &str, words: &str) -> Output {
        let mut command = Command::new(program);
        command.args(words.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        command.output().unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"))
    }

    pub fn maru(&self, words: &str) -> Output {
        self.run(env!("CARGO_BIN_EXE_maru"), &format!("disk {words}"))
    }

    /// What was printed, of a command that must succeed.
    pub fn ok(&self, words: &str) -> String {
        succeed(words, self.maru(words))
    }

    /// The error, of a command that must fail with this exit status.
    pub fn fail(&self, status: i32, words: &str) -> String {
        let output = self.maru(words);
        assert_eq!(output.status.code(), Some(status), "{words}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn qemu(&self, words: &str) -> String {
        succeed(words, self.run("qemu-img", words))
    }

    /// A raw disk with data here and there.
    pub fn pattern(&self, name: &str, size: u64) {
        let file = File::create_new(self.path(name)).unwrap();
        file.set_len(size).unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for (index, start) in (0..size).step_by(3 << 20).enumerate() {
            let bytes: Vec<u8> = (0..(512 << (index % 9)) / 8)
                .flat_map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    state.to_le_bytes()
                })
                .collect();
            file.write_all_at(&bytes[..bytes.len().min((size - start) as usize)], start).unwrap();
        }
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn succeed(words: &str, output: Output) -> String {
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that a file takes.
pub fn usage(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

pub fn write_raw(room: &Room, name: &str, pattern: u8, offset: u64, length: usize) {
    let file = File::options().write(true).open(room.path(name)).unwrap();
    file.write_all_at(&vec![pattern; length], offset).unwrap();
}

/// `child` on `base`, both with an extension, with the content of a raw disk: made by rebasing it from a whole copy.
pub fn child_of(room: &Room, extension: &str, content: &str) {
    let whole = format!("whole.{extension}");
    room.ok(&format!("convert {content} {whole}"));
    room.ok(&format!("create child.{extension} --parent {whole} --block-size 1M"));
    room.ok(&format!("rebase child.{extension} --parent base.{extension}"));
    fs::remove_file(room.path(&whole)).unwrap();
    room.ok(&format!("compare {content} child.{extension}"));
}

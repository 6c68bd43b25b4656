//! Decides which files an image has opened, and opens them for reading only.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use imago::file::File;
use imago::format::Format as ImagoFormat;
use imago::format::gate::ImplicitOpenGate;
use imago::{FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions};

use super::{References, header};

/// More backing files than anybody chains on purpose; fewer than exhaust the stack.
pub(super) const MAX_DEPTH: usize = 32;

/// Why the gate stayed closed; the reader's own error does not tell.
#[derive(Debug)]
pub(super) enum Refusal {
    Reference(PathBuf),
    NotAFile(PathBuf),
    TooDeep,
}

/// Passed down the chain of images; copies share what was refused.
#[derive(Clone)]
pub(super) struct Gate {
    references: References,
    /// Where files may be, with [`References::Beside`]. Without symbolic links.
    directory: PathBuf,
    depth: usize,
    refusal: Arc<Mutex<Option<Refusal>>>,
}

impl Gate {
    /// A gate for the image at a path without symbolic links.
    pub fn new(image: &Path, references: References) -> Gate {
        let directory = image.parent().unwrap_or(Path::new("/")).to_owned();
        Gate { references, directory, depth: 0, refusal: Arc::default() }
    }

    /// Why something was refused, if it was.
    pub fn take_refusal(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn refuse(&self, refusal: Refusal) -> io::Error {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        io::ErrorKind::PermissionDenied.into()
    }

    /// The file behind a reference, if it may be opened.
    pub fn admit(&self, path: &Path) -> io::Result<PathBuf> {
        if self.references == References::Deny {
            return Err(self.refuse(Refusal::Reference(path.to_owned())));
        }
        let found = path.canonicalize()?;
        if self.references == References::Beside && !found.starts_with(&self.directory) {
            return Err(self.refuse(Refusal::Reference(path.to_owned())));
        }
        if !is_file(&found)? {
            return Err(self.refuse(Refusal::NotAFile(path.to_owned())));
        }
        Ok(found)
    }
}

impl ImplicitOpenGate<File> for Gate {
    fn open_format<F: FormatDriverBuilder<File>>(&mut self, builder: F) -> io::Result<FormatAccess<File>> {
        if self.depth >= MAX_DEPTH {
            return Err(self.refuse(Refusal::TooDeep));
        }
        // Its file has come through `open_storage` already, if it is not named here.
        if let Some(path) = builder.get_image_path() {
            let path = self.admit(&path)?;
            if F::FORMAT == ImagoFormat::Qcow2 {
                header::check_qcow2(&path)?;
            }
        }
        let next = Gate { depth: self.depth + 1, ..self.clone() };
        Ok(FormatAccess::new(builder.write(false).open(next)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        let Some(path) = options.get_filename() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let path = self.admit(path)?;
        // The reader asks to write data files, for images that are not opened as we do.
        File::open(options.filename(path).write(false))
    }
}

/// Whether something is what images are kept in. Asked before opening it: opening a pipe waits for its other end.
pub(super) fn is_file(path: &Path) -> io::Result<bool> {
    let kind = fs::metadata(path)?.file_type();
    Ok(kind.is_file() || kind.is_block_device())
}

//! How a child names its parent.

use std::path::{Component, Path, PathBuf};

use super::ToolError;
use crate::format::{Identity, ParentNames};

/// The names of `parent` for an image at `child`: from the child's directory, as Windows writes it, and from the root, as we do.
pub(super) fn name_parent(child: &Path, parent: &Path, identity: Identity) -> Result<ParentNames, ToolError> {
    let directory = child.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = directory.canonicalize().map_err(ToolError::io(child, "looking for its directory"))?;
    let looking = || ToolError::io(parent, "looking for it");
    let parent = parent.canonicalize().map_err(looking())?;
    let Some(absolute) = parent.to_str() else {
        return Err(ToolError::options(&parent, "its path is not UTF-8, so no image can name it; rename it"));
    };
    let relative = relative(&directory, &parent).to_str().filter(|it| !it.contains('\\')).map(|it| it.replace('/', "\\"));
    Ok(ParentNames {
        identity,
        relative_path: relative.map(|it| if it.starts_with("..") { it } else { format!(".\\{it}") }),
        absolute_path: absolute.to_owned(),
        changed: parent.metadata().and_then(|it| it.modified()).map_err(looking())?,
    })
}

/// The way from a directory to a file; both are absolute and without links.
fn relative(directory: &Path, file: &Path) -> PathBuf {
    let common = directory.components().zip(file.components()).take_while(|(one, other)| one == other).count();
    let up = directory.components().skip(common).map(|_| Component::ParentDir);
    up.chain(file.components().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relative_way_leads_from_directory_to_file() {
        let way = |from: &str, to: &str| relative(from.as_ref(), to.as_ref());
        assert_eq!(way("/srv/vms", "/srv/vms/base.vhdx"), Path::new("base.vhdx"));
        assert_eq!(way("/srv/vms/a", "/srv/base/b.vhdx"), Path::new("../../base/b.vhdx"));
        assert_eq!(way("/", "/b.vhdx"), Path::new("b.vhdx"));
    }

    #[test]
    fn a_parent_gets_both_names() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("base.vhdx");
        std::fs::write(&parent, "").unwrap();
        let named = name_parent(&directory.path().join("child.vhdx"), &parent, Identity::Vhdx(vhdx::Guid::ZERO)).unwrap();
        assert_eq!(named.relative_path.as_deref(), Some(".\\base.vhdx"));
        assert_eq!(Some(named.absolute_path.as_str()), parent.canonicalize().unwrap().to_str());
    }
}

//! Output files appear whole or not at all: they are written under another name in the same directory and renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use natten::{Error, Result};
use tempfile::NamedTempFile;

/// Fails early where `path` cannot be written, before work that takes long. Leaves nothing behind.
///
/// # Errors
/// [`Error::Invalid`] where something other than a file is there, [`Error::Io`] where no file can be made beside it.
pub(crate) fn check(path: &Path) -> Result<()> {
    create(&target(path)?, path).map(drop)
}

/// Writes a file. What was at `path` stays as it was until everything is written.
///
/// # Errors
/// As [`check`]; [`Error::Io`] where writing fails.
pub(crate) fn write(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<()> {
    let target = target(path)?;
    let temporary = create(&target, path)?;
    let mut writer = BufWriter::new(temporary.as_file());
    contents(&mut writer).and_then(|()| writer.flush()).map_err(|source| cannot_write(path, source))?;
    drop(writer);
    temporary.persist(&target).map(drop).map_err(|error| cannot_write(path, error.error))
}

/// Where the bytes go: links are followed, so that the link stays and the file behind it is replaced. A device or a
/// directory is refused, since renaming onto it would destroy it or fail late.
fn target(path: &Path) -> Result<PathBuf> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            fs::canonicalize(path).map_err(|source| cannot_write(path, source))
        }
        Ok(_) => Err(Error::invalid(
            "output",
            format!("'{}'", path.display()),
            "it must be a file, or a name that is not taken",
            "name a file in a directory that can be written",
        )),
        Err(source) if source.kind() == ErrorKind::NotFound && path.file_name().is_some() => {
            Ok(path.to_path_buf())
        }
        Err(source) => Err(cannot_write(path, source)),
    }
}

fn create(target: &Path, path: &Path) -> Result<NamedTempFile> {
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".natten-");
    // The umask decides who may read a result, as for any file; a temporary file's own default is the owner alone.
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(permissions);
    // The error would name the temporary file; the kind is the reason without it.
    builder.tempfile_in(directory).map_err(|source| cannot_write(path, source.kind().into()))
}

fn cannot_write(path: &Path, source: io::Error) -> Error {
    Error::Io { action: format!("write '{}'", path.display()), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("result");
        let fail = |file: &mut BufWriter<&File>| {
            file.write_all(b"half")?;
            Err(ErrorKind::StorageFull.into())
        };
        let message = write(&path, fail).unwrap_err().to_string();
        assert!(message.contains("cannot write") && message.contains("result"), "{message}");
        assert_eq!(entries(directory.path()), 0);

        write(&path, |file| file.write_all(b"whole")).unwrap();
        check(&path).unwrap();
        assert!(write(&path, fail).is_err());
        assert_eq!((fs::read(&path).unwrap(), entries(directory.path())), (b"whole".to_vec(), 1));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_replaced() {
        use std::os::unix::fs::FileTypeExt;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(check(&path).is_err() && write(&path, |_| Ok(())).is_err());
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_a_result_as_the_umask_says() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let (ours, plain) = (directory.path().join("ours"), directory.path().join("plain"));
        write(&ours, |_| Ok(())).unwrap();
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}

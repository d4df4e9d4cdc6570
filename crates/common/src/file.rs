//! Opens files that others put into a folder. What is no regular file is refused before it is
//! opened: a named pipe without a writer, a socket or a device would hold its reader for ever.

use std::fs::{File, FileType, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;

/// The first bytes of the small text that stands in a clone for a file that Git LFS keeps.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Opens a regular file, which links may lead to.
///
/// # Errors
/// The system's; `InvalidInput` with the kind of thing that is there instead.
pub fn open(path: &Path) -> io::Result<File> {
    check(&std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    let mut first = [0; LFS_POINTER.len()];
    if file.read_exact_at(&mut first, 0).is_ok() && first == *LFS_POINTER {
        let text = "is the pointer of a file in Git LFS; `git lfs pull` brings the file itself";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(file)
}

/// Reads a regular file whole.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Checks that what a path leads to is a regular file.
///
/// # Errors
/// `InvalidInput` with the kind of thing that is there instead.
pub fn check(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = kind(metadata.file_type());
    let text = format!("is {kind}, and a regular file is needed");
    Err(io::Error::new(ErrorKind::InvalidInput, text))
}

fn kind(file: FileType) -> &'static str {
    if file.is_dir() {
        "a folder"
    } else if file.is_fifo() {
        "a named pipe"
    } else if file.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_the_others_are_named() {
        let folder = std::env::temp_dir().join(format!("togi-file-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let at = |name: &str| folder.join(name);
        std::fs::write(at("file"), "bytes").unwrap();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
        std::fs::write(at("pointer"), pointer).unwrap();
        symlink(at("file"), at("link")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(at("pipe"))
            .status();
        assert!(made.unwrap().success());
        symlink(at("pipe"), at("link-to-pipe")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read(&at("file")).unwrap(), b"bytes");
        assert_eq!(read(&at("link")).unwrap(), b"bytes");
        for (path, says) in [
            (at("pointer"), "git lfs pull"),
            (at("pipe"), "a named pipe"),
            (at("link-to-pipe"), "a named pipe"),
            (at("socket"), "a socket"),
            (folder.clone(), "a folder"),
            ("/dev/zero".into(), "a device"),
        ] {
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(read(&at("gone")).unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

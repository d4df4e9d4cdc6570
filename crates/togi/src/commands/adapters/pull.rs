//! `togi adapters pull`: a published adapter as a PEFT folder on this machine.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use togi_model::adapter::CONFIG_FILE;

use crate::error::{Error, Result};
use crate::local::on_thread;
use crate::local::portable::{Files, Portable};
use crate::session::Session;

pub(super) const EXAMPLES: &str = "\
Examples:
  togi adapters pull mine adapters/mine
  togi adapters pull 9b1c04f2 adapters/mine --replace
  togi adapters pull mine adapters/mine --base rinna/japanese-gpt-neox-3.6b

In Python: AutoPeftModelForCausalLM.from_pretrained('adapters/mine')";

/// The command's options.
#[derive(Debug, Args)]
pub struct Pull {
    /// An alias, a generation, or at least 8 digits of it
    pub adapter: String,
    /// The folder to write, new or empty
    pub folder: PathBuf,
    /// Where PEFT finds the base: a folder, or OWNER/NAME[@REVISION] on a hub [default: where the
    /// trainer had it from]
    #[arg(long, value_name = "PLACE")]
    pub base: Option<String>,
    /// Replaces a folder that has an adapter
    #[arg(long)]
    pub replace: bool,
}

/// The result.
#[derive(Serialize)]
struct Pulled {
    folder: PathBuf,
    generation: String,
    base: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
}

/// What is done with a folder that is not empty.
#[derive(Clone, Copy, PartialEq)]
enum Occupied {
    Refused,
    Replaced,
}

impl Pull {
    /// Runs the command.
    pub(super) async fn run(self, session: &Session) -> Result<()> {
        let occupied = match self.replace {
            true => Occupied::Replaced,
            false => Occupied::Refused,
        };
        let folder = std::path::absolute(&self.folder);
        let folder = folder.map_err(|error| Error::file(&self.folder, error))?;
        may_write(&folder, occupied)?;
        let base = self.base.as_deref();
        let adapter = Portable::published(&self.adapter, base, session).await?;
        let files = adapter.files_at(&folder.display().to_string())?;
        let target = folder.clone();
        on_thread(move || {
            write(&target, &files, occupied).map_err(|error| Error::file(target, error))
        })
        .await?;
        if !adapter.is_openable() {
            session.output.say(format_args!(
                "PEFT cannot open the base {:?}, which is at {}: bring it here and name its folder \
                 with --base",
                adapter.base.name,
                adapter.whereabouts()
            ));
        }
        let pulled = Pulled {
            folder,
            generation: adapter
                .generation
                .map(|g| g.to_string())
                .unwrap_or_default(),
            base: adapter.base.name,
            revision: adapter.base.revision,
        };
        session.output.one(&pulled, |pulled| {
            vec![format!(
                "{} in {}",
                pulled.generation,
                pulled.folder.display()
            )]
        })
    }
}

/// Fails if the folder may not be written: it has other files, or is no folder.
fn may_write(folder: &Path, occupied: Occupied) -> Result<()> {
    let mut entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file(folder, error)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    let reason = match (folder.join(CONFIG_FILE).exists(), occupied) {
        (true, Occupied::Replaced) => return Ok(()),
        (true, Occupied::Refused) => {
            "the folder is not empty; --replace replaces the adapter in it"
        }
        (false, _) => "the folder is not empty, and has no adapter that could be replaced",
    };
    Err(Error::unfit("folder", folder, reason))
}

/// Writes the whole folder or nothing: beside its place, then renamed.
fn write(folder: &Path, files: &Files, occupied: Occupied) -> io::Result<()> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let name = folder.file_name().unwrap_or(OsStr::new("adapter"));
    let aside = || {
        // Readable as the umask says, and not for the owner alone.
        tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
    };
    let new = aside()?;
    for (name, bytes) in files {
        let mut file = File::create_new(new.path().join(name))?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    File::open(new.path())?.sync_all()?;
    let old = aside()?;
    let is_replaced = occupied == Occupied::Replaced && folder.exists();
    if is_replaced {
        fs::rename(folder, old.path())?;
    }
    if let Err(error) = fs::rename(new.path(), folder) {
        if is_replaced {
            fs::rename(old.path(), folder)?;
        }
        return Err(error);
    }
    // It has another name now.
    let _ = new.keep();
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &'static str) -> Files {
        [CONFIG_FILE, "README.md"]
            .map(|name| (name.to_owned(), text.into()))
            .into()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_written_whole_and_leaves_nothing_beside() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new/adapter");
        write(&folder, &files("one"), Occupied::Refused).unwrap();
        assert_eq!(names(&folder), ["README.md", CONFIG_FILE]);
        // Not over another's files, whose folder stays as it is.
        assert!(may_write(&folder, Occupied::Refused).is_err());
        assert!(write(&folder, &files("two"), Occupied::Refused).is_err());
        assert_eq!(fs::read_to_string(folder.join(CONFIG_FILE)).unwrap(), "one");
        fs::write(folder.join("left"), "").unwrap();
        may_write(&folder, Occupied::Replaced).unwrap();
        write(&folder, &files("two"), Occupied::Replaced).unwrap();
        assert_eq!(names(&folder), ["README.md", CONFIG_FILE]);
        assert_eq!(fs::read_to_string(folder.join(CONFIG_FILE)).unwrap(), "two");
        assert_eq!(names(&parent.path().join("new")), ["adapter"]);
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_ne!(mode & 0o055, 0, "{mode:o}");
    }

    #[test]
    fn only_an_adapters_folder_is_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let empty = parent.path().join("empty");
        fs::create_dir(&empty).unwrap();
        for occupied in [Occupied::Refused, Occupied::Replaced] {
            may_write(&empty, occupied).unwrap();
            may_write(&parent.path().join("new"), occupied).unwrap();
            let error = may_write(parent.path(), occupied).unwrap_err();
            assert_eq!(error.exit_code(), 5, "{error}");
        }
    }
}

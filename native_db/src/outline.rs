//! Files that appear whole or not at all, after a power cut, too.
//!
//! Each is written as a draft, which may happen while what it refers to is being stored. Once both
//! are on the disk it gets its name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crewai_native_sdk::files;

use crate::engine::{DbError, Result};

/// A file that is to appear.
#[derive(Debug)]
pub struct Outline {
    /// Where it is written, in the directory of `path`.
    pub draft: PathBuf,
    /// Where it is then.
    pub path: PathBuf,
    /// What is in it.
    pub text: Vec<u8>,
}

/// Writes drafts, one after another, and waits until each is on the disk.
pub fn draft(outlines: &[Outline]) -> Vec<Result<()>> {
    let written = outlines.iter().map(|outline| {
        write(&outline.draft, &outline.text).map_err(|error| {
            remove(&outline.draft);
            DbError::io(&outline.draft, &error)
        })
    });
    written.collect()
}

/// Removes drafts that are not to become files.
pub fn discard(outlines: &[Outline]) {
    for outline in outlines {
        remove(&outline.draft);
    }
}

/// Gives drafts their names, in their order, up to the first that fails: others may come after it.
/// What it returns ends there; later drafts are discarded.
pub fn publish(outlines: &[Outline], drafts: Vec<Result<()>>) -> Vec<Result<()>> {
    let mut outcomes = Vec::with_capacity(outlines.len());
    // Each directory is waited for once, whatever the number of its files.
    let mut directories = BTreeSet::new();
    for (outline, drafted) in outlines.iter().zip(drafts) {
        let named = drafted.and_then(|()| {
            fs::rename(&outline.draft, &outline.path).map_err(|error| {
                remove(&outline.draft);
                DbError::io(&outline.path, &error)
            })
        });
        directories.extend(outline.path.parent().filter(|_| named.is_ok()));
        outcomes.push(named);
        if let Some(Err(_)) = outcomes.last() {
            break;
        }
    }
    discard(&outlines[outcomes.len()..]);
    for directory in directories {
        let Err(error) = sync_directory(directory) else {
            continue;
        };
        let within = |outline: &Outline| outline.path.parent() == Some(directory);
        if let Some(first) = outlines.iter().position(within) {
            for outline in &outlines[first..outcomes.len()] {
                remove(&outline.path);
            }
            outcomes.truncate(first);
            outcomes.push(Err(DbError::io(directory, &error)));
        }
    }
    outcomes
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = match File::create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                files::create_dir_all(directory)?;
            }
            File::create(path)?
        }
        opened => opened?,
    };
    file.write_all(text)?;
    // The order of files is that of their times, and the system's clock for them is too coarse for
    // it.
    file.set_modified(SystemTime::now())?;
    file.sync_all()
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Best effort: why there is something to be removed is what the caller has to know.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(directory: &Path, name: &str) -> Outline {
        Outline {
            draft: directory.join(format!(".{name}.new")),
            path: directory.join(name),
            text: name.as_bytes().to_vec(),
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_appear_whole_in_their_order_and_leave_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("not").join("there");
        let outlines = ["a", "b", "c"].map(|name| outline(&directory, name));
        let drafts = draft(&outlines);
        assert_eq!(names(&directory), [".a.new", ".b.new", ".c.new"]);
        assert!(publish(&outlines, drafts).iter().all(Result::is_ok));
        assert_eq!(names(&directory), ["a", "b", "c"]);
        let times = outlines.each_ref().map(|outline| {
            assert_eq!(fs::read(&outline.path).unwrap(), outline.text);
            fs::metadata(&outline.path).unwrap().modified().unwrap()
        });
        assert!(times.is_sorted_by(|before, after| before < after));
    }

    #[test]
    fn the_first_that_fails_is_the_last_and_leaves_no_draft() {
        for fails in ["drafting", "naming"] {
            let place = tempfile::tempdir().unwrap();
            let outlines = ["a", "b", "c"].map(|name| outline(place.path(), name));
            let obstacle = if fails == "drafting" {
                outlines[1].draft.clone()
            } else {
                outlines[1].path.clone()
            };
            fs::create_dir(&obstacle).unwrap();
            let drafts = draft(&outlines);
            let outcomes = publish(&outlines, drafts);
            assert_eq!(
                outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(),
                [true, false]
            );
            fs::remove_dir(&obstacle).unwrap();
            assert_eq!(names(place.path()), ["a"]);
        }
    }

    #[test]
    fn what_is_discarded_is_not_there() {
        let place = tempfile::tempdir().unwrap();
        let outlines = ["a", "b"].map(|name| outline(place.path(), name));
        draft(&outlines);
        discard(&outlines);
        assert!(names(place.path()).is_empty());
    }
}

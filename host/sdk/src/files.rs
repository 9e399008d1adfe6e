//! Names that are still there after a power cut.
//!
//! A sync of a file puts what is in it on the disk. Its name is in its directory, and that one's in
//! the directory above: each takes a sync of its own.

use std::fs;
use std::io;
use std::path::Path;

/// Creates a directory, and those above it that are missing, and waits until the disk has their names.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    let missing = path
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let made: Vec<_> = missing.collect();
    fs::create_dir_all(path)?;
    made.into_iter().try_for_each(sync_name)
}

/// Waits until the disk has the name of a file or directory that was made, renamed or removed.
pub fn sync_name(path: &Path) -> io::Result<()> {
    // Elsewhere directories cannot be opened, and names are journalled.
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        let here = directory.as_os_str().is_empty();
        fs::File::open(if here { Path::new(".") } else { directory })?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_whether_or_not_there_are_some() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("a").join("b");
        create_dir_all(&directory).unwrap();
        create_dir_all(&directory).unwrap();
        create_dir_all(&directory.join("c")).unwrap();
        assert!(directory.join("c").is_dir());
        fs::write(directory.join("file"), "").unwrap();
        assert!(create_dir_all(&directory.join("file")).is_err());
        sync_name(Path::new("a name in the working directory")).unwrap();
    }
}

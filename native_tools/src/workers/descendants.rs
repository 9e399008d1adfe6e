//! Processes that a worker started, and those that they started.
//!
//! Most are in the worker's group and need no looking for. One that calls `setsid`, as servers and
//! browsers do, is not; while the worker lives it is found through its parents.

#[cfg(target_os = "linux")]
pub(super) use linux::{adopt, end};

#[cfg(not(target_os = "linux"))]
pub(super) fn adopt() {}

#[cfg(not(target_os = "linux"))]
pub(super) fn end(_: i32) {}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::fs;

    /// How often descendants are looked for again: one may have started another meanwhile.
    const ROUNDS: usize = 10;

    /// Has orphans among this process's descendants become its children, not those of process 1.
    pub(in super::super) fn adopt() {
        // SAFETY: takes a number. A kernel that knows it not refuses, and orphans get away.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    }

    /// Kills every descendant of the process, but not itself.
    pub(in super::super) fn end(ancestor: i32) {
        for _ in 0..ROUNDS {
            let found = descendants(ancestor);
            if found.is_empty() {
                return;
            }
            for pid in found {
                // SAFETY: no preconditions.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }

    /// The living descendants of a process.
    fn descendants(ancestor: i32) -> Vec<i32> {
        let mut children: HashMap<i32, Vec<(i32, bool)>> = HashMap::new();
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            if let Some((parent, alive)) = parent_of(&stat) {
                children.entry(parent).or_default().push((pid, alive));
            }
        }
        let (mut waiting, mut found) = (vec![ancestor], Vec::new());
        while let Some(parent) = waiting.pop() {
            for (pid, alive) in children.remove(&parent).unwrap_or_default() {
                waiting.push(pid);
                if alive {
                    found.push(pid);
                }
            }
        }
        found
    }

    /// The parent in a line of `/proc/PID/stat`, and whether the process is not a zombie.
    fn parent_of(stat: &str) -> Option<(i32, bool)> {
        // The program's name, in parentheses, may hold parentheses and blanks.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        Some((fields.next()?.parse().ok()?, !matches!(state, "Z" | "X")))
    }

    #[cfg(test)]
    mod tests {
        use super::parent_of;

        #[test]
        fn names_with_parentheses() {
            assert_eq!(parent_of("7 (a) Z 3 (b) S 5 7 7 0"), Some((5, true)));
            assert_eq!(parent_of("7 (sh) Z 5 7 7 0"), Some((5, false)));
            assert_eq!(parent_of(""), None);
        }
    }
}

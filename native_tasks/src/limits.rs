//! How many requests and tokens a minute may see, in one process or in all of a machine.
//!
//! What was used is counted by the second and forgotten when a minute has passed since that second's
//! end, so the limit holds for every minute whatever its beginning, not only on average. Processes share the counts through a small file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

/// A minute, and the second in which it began.
const SECONDS: usize = 61;
const MAGIC: &[u8; 8] = b"cnrates1";
const RECORD: usize = 8 + 8 + SECONDS * 16 + 4;

/// The most that a minute may see; None is without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests.
    pub requests: Option<u64>,
    /// Tokens.
    pub tokens: Option<u64>,
}

/// What the last minute saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minute {
    /// The second that counts last, since some epoch that all users of these counts share.
    now: u64,
    /// By second, modulo [`SECONDS`].
    requests: [u64; SECONDS],
    tokens: [u64; SECONDS],
}

impl Default for Minute {
    fn default() -> Self {
        Self {
            now: 0,
            requests: [0; SECONDS],
            tokens: [0; SECONDS],
        }
    }
}

impl Minute {
    /// Counts one request of about `tokens`, or returns for how long it must wait.
    ///
    /// `now` is in seconds since the epoch of these counts. A clock that went back counts as standing
    /// still.
    ///
    /// # Errors
    ///
    /// The time after which there may be room.
    pub fn admit(&mut self, rates: Rates, now: Duration, tokens: u64) -> Result<u64, Duration> {
        self.advance(now.as_secs());
        let room = |counts: &[u64; SECONDS], limit: Option<u64>, wanted: u64| {
            // What is larger than a whole minute's worth goes when nothing else was used.
            limit.is_none_or(|limit| {
                let used: u64 = counts.iter().sum();
                used == 0 || used.saturating_add(wanted) <= limit
            })
        };
        if room(&self.requests, rates.requests, 1) && room(&self.tokens, rates.tokens, tokens) {
            let place = self.now as usize % SECONDS;
            self.requests[place] += 1;
            self.tokens[place] = self.tokens[place].saturating_add(tokens);
            return Ok(self.now);
        }
        // The oldest second with something in it is the next to be forgotten.
        let age = (1..=SECONDS as u64)
            .rev()
            .map(|step| step % SECONDS as u64)
            .find(|back| {
                let place = (self.now + SECONDS as u64 - back) as usize % SECONDS;
                self.requests[place] > 0 || self.tokens[place] > 0
            })
            .unwrap_or(0);
        let forgotten = Duration::from_secs(self.now + SECONDS as u64 - age);
        Err(forgotten.saturating_sub(now).max(Duration::from_millis(1)))
    }

    /// Corrects the tokens of a request that was admitted in the second `when`.
    pub fn settle(&mut self, when: u64, now: Duration, expected: u64, used: u64) {
        self.advance(now.as_secs());
        let known = when + SECONDS as u64 > self.now;
        if used >= expected {
            let place = self.now as usize % SECONDS;
            self.tokens[place] = self.tokens[place].saturating_add(used - expected);
        } else if known {
            let place = when as usize % SECONDS;
            self.tokens[place] = self.tokens[place].saturating_sub(expected - used);
        }
    }

    /// Takes back a request that was admitted in the second `when` and not made.
    pub fn withdraw(&mut self, when: u64, tokens: u64) {
        if when + SECONDS as u64 > self.now {
            let place = when as usize % SECONDS;
            self.requests[place] = self.requests[place].saturating_sub(1);
            self.tokens[place] = self.tokens[place].saturating_sub(tokens);
        }
    }

    fn advance(&mut self, second: u64) {
        if second <= self.now {
            return;
        }
        for step in 1..=(second - self.now).min(SECONDS as u64) {
            let place = (self.now + step) as usize % SECONDS;
            self.requests[place] = 0;
            self.tokens[place] = 0;
        }
        self.now = second;
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(RECORD);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.now.to_le_bytes());
        for count in self.requests.iter().chain(&self.tokens) {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads counts. Anything else than what [`to_bytes`](Self::to_bytes) wrote is None.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(RECORD - 4)?;
        if sum != crc32fast::hash(body).to_le_bytes() || !body.starts_with(MAGIC) {
            return None;
        }
        let mut numbers = body[8..].chunks_exact(8).map(|chunk| {
            let mut number = [0; 8];
            number.copy_from_slice(chunk);
            u64::from_le_bytes(number)
        });
        let mut minute = Self {
            now: numbers.next()?,
            ..Self::default()
        };
        for place in minute.requests.iter_mut().chain(&mut minute.tokens) {
            *place = numbers.next()?;
        }
        Some(minute)
    }
}

/// Counts that all processes share that open the same file.
///
/// Its loss costs at most a minute of counting, so a file that is damaged starts anew.
#[derive(Debug)]
pub struct Shared {
    file: File,
}

impl Shared {
    /// Opens or creates the file.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Self { file })
    }

    /// Changes the counts, while no other process does.
    ///
    /// # Errors
    ///
    /// The file cannot be locked, read or written.
    pub fn change<T>(&mut self, change: impl FnOnce(&mut Minute) -> T) -> io::Result<T> {
        self.file.lock()?;
        let changed = self.locked(change);
        self.file.unlock()?;
        changed
    }

    fn locked<T>(&mut self, change: impl FnOnce(&mut Minute) -> T) -> io::Result<T> {
        let mut bytes = Vec::with_capacity(RECORD);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        let mut minute = Minute::from_bytes(&bytes).unwrap_or_default();
        let answer = change(&mut minute);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&minute.to_bytes())?;
        self.file.set_len(RECORD as u64)?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(1_000_000_000 + milliseconds)
    }

    const TEN: Rates = Rates {
        requests: Some(10),
        tokens: None,
    };

    #[test]
    fn what_does_not_fit_waits_until_the_oldest_is_forgotten() {
        let mut minute = Minute::default();
        for _ in 0..10 {
            minute.admit(TEN, at(0), 0).unwrap();
        }
        let wait = minute.admit(TEN, at(500), 0).unwrap_err();
        assert_eq!(wait, Duration::from_millis(60_500));
        minute.admit(TEN, at(61_000), 0).unwrap();
    }

    #[test]
    fn what_was_not_made_does_not_count() {
        let mut minute = Minute::default();
        for _ in 0..10 {
            let when = minute.admit(TEN, at(0), 5).unwrap();
            minute.withdraw(when, 5);
        }
        assert_eq!(
            (minute.requests, minute.tokens),
            ([0; SECONDS], [0; SECONDS])
        );
    }

    #[test]
    fn tokens_are_counted_as_expected_and_then_as_used() {
        let rates = Rates {
            requests: None,
            tokens: Some(1000),
        };
        let mut minute = Minute::default();
        let when = minute.admit(rates, at(0), 900).unwrap();
        assert!(minute.admit(rates, at(0), 200).is_err());
        minute.settle(when, at(1000), 900, 100);
        minute.admit(rates, at(1000), 900).unwrap();
        minute.settle(when, at(2000), 0, 5000);
        assert!(minute.admit(rates, at(30_000), 1).is_err());
        // More than a minute may see at all still goes, alone.
        assert!(minute.admit(rates, at(200_000), 5000).is_ok());
    }

    #[test]
    fn a_clock_that_goes_back_frees_nothing() {
        let mut minute = Minute::default();
        for _ in 0..10 {
            minute.admit(TEN, at(10_000), 0).unwrap();
        }
        assert!(minute.admit(TEN, at(0), 0).is_err());
    }

    #[test]
    fn a_file_is_shared_and_a_damaged_one_starts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates");
        let (mut one, mut two) = (Shared::open(&path).unwrap(), Shared::open(&path).unwrap());
        for _ in 0..5 {
            one.change(|minute| minute.admit(TEN, at(0), 0))
                .unwrap()
                .unwrap();
            two.change(|minute| minute.admit(TEN, at(0), 0))
                .unwrap()
                .unwrap();
        }
        assert!(
            one.change(|minute| minute.admit(TEN, at(0), 0))
                .unwrap()
                .is_err()
        );
        std::fs::write(&path, b"what is this").unwrap();
        two.change(|minute| minute.admit(TEN, at(0), 0))
            .unwrap()
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(
            Minute::from_bytes(&bytes)
                .unwrap()
                .requests
                .iter()
                .sum::<u64>(),
            1
        );
    }

    proptest! {
        #[test]
        fn no_minute_sees_more_than_it_may(steps in prop::collection::vec(0_u64..20_000, 1..200)) {
            let (mut minute, mut now, mut admitted) = (Minute::default(), 0, Vec::new());
            for step in steps {
                now += step;
                match minute.admit(TEN, at(now), 1) {
                    Ok(_) => admitted.push(now),
                    Err(wait) => prop_assert!(wait <= Duration::from_secs(61)),
                }
            }
            for &first in &admitted {
                let seen = admitted.iter().filter(|&&t| t >= first && t < first + 60_000).count();
                prop_assert!(seen <= 10);
            }
        }
    }
}

//! The states of flows: every one that was saved, newest last, in one file.
//!
//! A state is JSON text. It is stored whole, packed, or as a delta against a state of the same
//! flow that is stored whole (its *base*). So each state is at most two rows away, and what grows
//! with a flow is what changed.

use rusqlite::{Connection, OptionalExtension, params};

use crate::codec;
use crate::engine::{DbError, Result, Schema};

/// Format 1. `base` names the row that `data` is a delta against; NULL for a whole state. `size`
/// and `checksum` (CRC-32) are those of the JSON text. Times are µs since 1970 UTC. `imports`
/// says how far each file of stock CrewAI was taken over (`done` once it was to the end).
pub static SCHEMA: Schema = Schema {
    name: "store of flow states",
    application_id: 0x434e_4466, // "CNDf"
    format: 1,
    tables: "
CREATE TABLE flows (
    flow INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE states (
    state INTEGER PRIMARY KEY,
    flow INTEGER NOT NULL,
    method TEXT NOT NULL,
    saved_at INTEGER NOT NULL,
    base INTEGER,
    size INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE INDEX states_by_flow ON states (flow, state);

CREATE TABLE pending (
    flow INTEGER PRIMARY KEY,
    context TEXT NOT NULL,
    saved_at INTEGER NOT NULL,
    base INTEGER,
    size INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE TABLE imports (
    source TEXT PRIMARY KEY,
    last INTEGER NOT NULL,
    done INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
",
};

/// A state that is stored whole, and that later ones may be deltas against.
#[derive(Debug, Clone)]
pub struct Base {
    /// Its row.
    pub state: i64,
    /// The JSON text.
    pub text: Vec<u8>,
    checksum: u32,
    /// Bytes that it takes in the file.
    packed: usize,
    /// Bytes of the deltas stored since.
    since: usize,
    hope: Hope,
}

/// Whether packing the next states as deltas is worth trying.
///
/// It takes longer than packing them whole, and is in vain for a flow whose states have little in
/// common. The more often it was, the more of the next states are packed whole at once.
#[derive(Debug, Default, Clone, Copy)]
struct Hope {
    /// How often in a row it was in vain.
    in_vain: u32,
    /// How many states are packed whole before it is tried again.
    rest: u32,
}

impl Hope {
    /// Shorter states are quickly packed both ways, and small ones soon become larger.
    const FROM: usize = 64 << 10;
    /// log₂ of the most states that are packed whole at once.
    const MOST: u32 = 5;

    /// After a delta that was of no use.
    fn lost(self) -> Self {
        let in_vain = (self.in_vain + 1).min(Self::MOST);
        let rest = (1 << in_vain) - 1;
        Self { in_vain, rest }
    }

    /// After a state that was packed whole at once.
    fn rested(self) -> Self {
        let rest = self.rest - 1;
        Self { rest, ..self }
    }
}

/// A state, packed and ready to be stored.
#[derive(Debug)]
pub struct Packed {
    base: Option<(i64, u32)>,
    text: Vec<u8>,
    checksum: u32,
    data: Vec<u8>,
    hope: Hope,
}

/// A state to be stored.
#[derive(Debug)]
pub struct Entry {
    /// The flow's own id.
    pub uuid: String,
    /// The method after which it was saved.
    pub method: String,
    /// When, in µs since 1970 UTC.
    pub saved_at: i64,
    /// The state.
    pub state: Packed,
    /// What a person was asked, as JSON, where the flow waits for an answer.
    pub pending: Option<String>,
    /// How many states of the flow to keep; all where it is `None`.
    pub keep: Option<u32>,
}

/// A state as it was stored.
#[derive(Debug)]
pub struct Stored {
    /// The row; higher is newer.
    pub state: i64,
    /// The method after which it was saved.
    pub method: String,
    /// When, in µs since 1970 UTC.
    pub saved_at: i64,
    /// Length of the JSON text in bytes.
    pub size: usize,
    /// Bytes that it takes in the file.
    pub packed: usize,
}

/// Totals over a file.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    /// Flows that have a state.
    pub flows: i64,
    /// States.
    pub states: i64,
    /// Flows that wait for an answer.
    pub pending: i64,
    /// Bytes of JSON.
    pub text_bytes: i64,
    /// Bytes that they take, packed.
    pub packed_bytes: i64,
}

impl Packed {
    /// Packs a state, as a delta against `base` as long as that saves space.
    ///
    /// A delta is larger the farther the flow has moved on from its base. Once the deltas take
    /// as much as their base a new one costs, whatever the two sizes are, at most twice the least.
    pub fn new(text: Vec<u8>, base: Option<&Base>) -> Result<Self> {
        let checksum = crc32fast::hash(&text);
        let mut hope = Hope::default();
        if let Some(base) = base {
            if base.hope.rest > 0 {
                hope = base.hope.rested();
            } else {
                let data = codec::pack(&text, Some(&base.text))?;
                let in_vain = text.len() >= Hope::FROM && data.len() > base.packed / 2;
                if !in_vain && base.since + data.len() <= base.packed {
                    return Ok(Self {
                        base: Some((base.state, base.checksum)),
                        text,
                        checksum,
                        data,
                        hope,
                    });
                }
                if in_vain {
                    hope = base.hope.lost();
                }
            }
        }
        Ok(Self {
            base: None,
            data: codec::pack(&text, None)?,
            text,
            checksum,
            hope,
        })
    }

    /// Makes it whole, where its base is no longer what it was packed against.
    fn rebased(self, connection: &Connection, flow: i64) -> Result<Self> {
        let Some((state, checksum)) = self.base else {
            return Ok(self);
        };
        let there = connection
            .prepare_cached(
                "SELECT 1 FROM states
                 WHERE state = ?1 AND flow = ?2 AND base IS NULL AND checksum = ?3",
            )?
            .exists(params![state, flow, checksum])?;
        if there {
            Ok(self)
        } else {
            Self::new(self.text, None)
        }
    }
}

impl Base {
    /// The newest whole state of a flow.
    pub fn newest(connection: &Connection, uuid: &str) -> Result<Option<Self>> {
        let found = connection
            .prepare_cached(
                "SELECT state, size, checksum, data, flow FROM states
                 WHERE flow = (SELECT flow FROM flows WHERE uuid = ?1) AND base IS NULL
                 ORDER BY state DESC LIMIT 1",
            )?
            .query_row([uuid], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, usize>(1)?,
                    row.get::<_, u32>(2)?,
                    row.get::<_, Vec<u8>>(3)?,
                    row.get::<_, i64>(4)?,
                ))
            })
            .optional()?;
        let Some((state, size, checksum, data, flow)) = found else {
            return Ok(None);
        };
        let since = connection
            .prepare_cached(
                "SELECT coalesce(sum(length(data)), 0) FROM states WHERE flow = ?1 AND state > ?2",
            )?
            .query_row([flow, state], |row| row.get(0))?;
        Ok(Some(Self {
            state,
            text: text(&data, size, checksum, None)?,
            checksum,
            packed: data.len(),
            since,
            hope: Hope::default(),
        }))
    }

    /// Counts a delta that was stored against it.
    pub fn grown_by(&mut self, delta: usize) {
        self.since += delta;
        self.hope = Hope::default();
    }
}

/// What storing a state came to.
#[derive(Debug)]
pub enum Saved {
    /// It is whole, and what the next ones can be deltas against.
    Whole(Base),
    /// It is a delta of so many bytes against the state in that row.
    Delta(i64, usize),
}

/// Stores a state, and with it what the flow waits for; drops what is not to be kept.
pub fn save(connection: &Connection, entry: Entry) -> Result<Saved> {
    let flow = flow_of(connection, &entry.uuid)?;
    let packed = entry.state.rebased(connection, flow)?;
    let base = packed.base.map(|(state, _)| state);
    let state = connection
        .prepare_cached(
            "INSERT INTO states (flow, method, saved_at, base, size, checksum, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .insert(params![
            flow,
            entry.method,
            entry.saved_at,
            base,
            packed.text.len(),
            packed.checksum,
            packed.data,
        ])?;
    if let Some(context) = &entry.pending {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO pending
                 (flow, context, saved_at, base, size, checksum, data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                flow,
                context,
                entry.saved_at,
                base,
                packed.text.len(),
                packed.checksum,
                packed.data,
            ])?;
    }
    if let Some(keep) = entry.keep {
        prune_flow(connection, flow, keep)?;
    }
    let size = packed.data.len();
    Ok(match base {
        Some(base) => Saved::Delta(base, size),
        None => Saved::Whole(Base {
            state,
            text: packed.text,
            checksum: packed.checksum,
            packed: size,
            since: 0,
            hope: packed.hope,
        }),
    })
}

/// The newest state of a flow.
pub fn load(connection: &Connection, uuid: &str) -> Result<Option<Vec<u8>>> {
    let row = connection
        .prepare_cached(
            "SELECT s.size, s.checksum, s.data, s.base, b.size, b.checksum, b.data
             FROM states s LEFT JOIN states b ON b.state = s.base
             WHERE s.flow = (SELECT flow FROM flows WHERE uuid = ?1)
             ORDER BY s.state DESC LIMIT 1",
        )?
        .query_row([uuid], Row::read)
        .optional()?;
    row.map(Row::text).transpose()
}

/// A state by its row.
pub fn load_state(connection: &Connection, state: i64) -> Result<Option<Vec<u8>>> {
    let row = connection
        .prepare_cached(
            "SELECT s.size, s.checksum, s.data, s.base, b.size, b.checksum, b.data
             FROM states s LEFT JOIN states b ON b.state = s.base WHERE s.state = ?1",
        )?
        .query_row([state], Row::read)
        .optional()?;
    row.map(Row::text).transpose()
}

/// The state with which a flow began to wait for an answer, and what it asked.
pub fn load_pending(connection: &Connection, uuid: &str) -> Result<Option<(Vec<u8>, String)>> {
    let found = connection
        .prepare_cached(
            "SELECT p.size, p.checksum, p.data, p.base, b.size, b.checksum, b.data, p.context
             FROM pending p LEFT JOIN states b ON b.state = p.base
             WHERE p.flow = (SELECT flow FROM flows WHERE uuid = ?1)",
        )?
        .query_row([uuid], |row| Ok((Row::read(row)?, row.get(7)?)))
        .optional()?;
    found
        .map(|(row, context)| Ok((row.text()?, context)))
        .transpose()
}

/// Says that a flow has its answer.
pub fn clear_pending(connection: &Connection, uuid: &str) -> Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM pending WHERE flow = (SELECT flow FROM flows WHERE uuid = ?1)",
        )?
        .execute([uuid])?;
    Ok(())
}

/// The ids of all flows, the longest untouched first.
pub fn flows(connection: &Connection) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT f.uuid FROM flows f JOIN states s USING (flow)
         GROUP BY f.flow ORDER BY max(s.state)",
    )?;
    let found = statement.query_map([], |row| row.get(0))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// The states of a flow, newest first.
pub fn history(connection: &Connection, uuid: &str, limit: usize) -> Result<Vec<Stored>> {
    let mut statement = connection.prepare_cached(
        "SELECT state, method, saved_at, size, length(data) FROM states
         WHERE flow = (SELECT flow FROM flows WHERE uuid = ?1)
         ORDER BY state DESC LIMIT ?2",
    )?;
    let found = statement.query_map(params![uuid, limit], |row| {
        Ok(Stored {
            state: row.get(0)?,
            method: row.get(1)?,
            saved_at: row.get(2)?,
            size: row.get(3)?,
            packed: row.get(4)?,
        })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Drops all but the newest `keep` states of each flow, and flows untouched since `before` (µs
/// since 1970 UTC) unless they wait for an answer. Says how many states went.
///
/// What is kept stays readable, so the base of a kept state stays as well.
pub fn prune(connection: &Connection, keep: Option<u32>, before: Option<i64>) -> Result<usize> {
    let mut dropped = 0;
    if let Some(before) = before {
        dropped += connection.execute(
            "DELETE FROM states WHERE flow IN (
                 SELECT flow FROM states GROUP BY flow HAVING max(saved_at) < ?1)
             AND flow NOT IN (SELECT flow FROM pending)",
            [before],
        )?;
    }
    if let Some(keep) = keep {
        let mut statement = connection.prepare("SELECT flow FROM flows")?;
        let flows = statement
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        for flow in flows {
            dropped += prune_flow(connection, flow, keep)?;
        }
    }
    connection.execute(
        "DELETE FROM flows WHERE flow NOT IN (SELECT flow FROM states)
         AND flow NOT IN (SELECT flow FROM pending)",
        [],
    )?;
    Ok(dropped)
}

fn prune_flow(connection: &Connection, flow: i64, keep: u32) -> Result<usize> {
    Ok(connection
        .prepare_cached(
            "WITH kept AS (SELECT state, base FROM states
                           WHERE flow = ?1 ORDER BY state DESC LIMIT ?2)
             DELETE FROM states WHERE flow = ?1
             AND state < (SELECT min(state) FROM kept)
             AND state NOT IN (SELECT base FROM kept WHERE base IS NOT NULL)
             AND state NOT IN (SELECT base FROM pending WHERE flow = ?1 AND base IS NOT NULL)",
        )?
        .execute(params![flow, keep])?)
}

/// Totals over the file.
pub fn totals(connection: &Connection) -> Result<Totals> {
    Ok(connection.query_row(
        "SELECT (SELECT count(*) FROM flows), count(*), (SELECT count(*) FROM pending),
                coalesce(sum(size), 0), coalesce(sum(length(data)), 0) FROM states",
        [],
        |row| {
            Ok(Totals {
                flows: row.get(0)?,
                states: row.get(1)?,
                pending: row.get(2)?,
                text_bytes: row.get(3)?,
                packed_bytes: row.get(4)?,
            })
        },
    )?)
}

/// Reads every row; says what is wrong with which.
pub fn check(connection: &Connection) -> Result<Vec<String>> {
    let mut problems = crate::engine::integrity(connection)?;
    let mut statement = connection.prepare("SELECT state FROM states ORDER BY state")?;
    let states = statement
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    for state in states {
        if let Err(error) = load_state(connection, state) {
            problems.push(format!("state {state}: {error}"));
        }
    }
    let mut statement = connection
        .prepare("SELECT f.uuid FROM pending p LEFT JOIN flows f USING (flow) ORDER BY p.flow")?;
    let uuids = statement
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<Option<String>>>>()?;
    for uuid in uuids {
        match uuid {
            Some(uuid) => {
                if let Err(error) = load_pending(connection, &uuid) {
                    problems.push(format!("pending flow {uuid}: {error}"));
                }
            }
            None => problems.push("a pending flow has no id".to_owned()),
        }
    }
    Ok(problems)
}

/// How far a file of stock CrewAI was taken over: its last row, and whether that was the end.
pub fn imported(connection: &Connection, source: &str) -> Result<(i64, bool)> {
    let found = connection
        .prepare_cached("SELECT last, done FROM imports WHERE source = ?1")?
        .query_row([source], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.unwrap_or((0, false)))
}

/// A row of stock CrewAI's table `flow_states` (`row` its id), or of `pending_feedback` (which
/// comes with a context).
#[derive(Debug)]
pub struct Foreign {
    /// The flow's own id.
    pub uuid: String,
    /// The method after which it was saved.
    pub method: String,
    /// When, in µs since 1970 UTC.
    pub saved_at: i64,
    /// The state as JSON.
    pub text: Vec<u8>,
    /// What a person was asked, as JSON.
    pub context: Option<String>,
}

/// Takes over rows that follow row `after` of a file of stock CrewAI and end with row `last`.
/// Says whether it did: not if another process has been faster.
pub fn import(
    connection: &Connection,
    source: &str,
    after: i64,
    last: i64,
    done: bool,
    rows: Vec<Foreign>,
) -> Result<bool> {
    if imported(connection, source)? != (after, false) {
        return Ok(false);
    }
    for row in rows {
        let Some(context) = row.context else {
            let base = Base::newest(connection, &row.uuid)?;
            save(
                connection,
                Entry {
                    uuid: row.uuid,
                    method: row.method,
                    saved_at: row.saved_at,
                    state: Packed::new(row.text, base.as_ref())?,
                    pending: None,
                    keep: None,
                },
            )?;
            continue;
        };
        // Its state is already among the others.
        let flow = flow_of(connection, &row.uuid)?;
        let state = Packed::new(row.text, None)?;
        connection
            .prepare_cached(
                "INSERT OR IGNORE INTO pending (flow, context, saved_at, size, checksum, data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                flow,
                context,
                row.saved_at,
                state.text.len(),
                state.checksum,
                state.data,
            ])?;
    }
    connection
        .prepare_cached("INSERT OR REPLACE INTO imports (source, last, done) VALUES (?1, ?2, ?3)")?
        .execute(params![source, last, done])?;
    Ok(true)
}

fn flow_of(connection: &Connection, uuid: &str) -> Result<i64> {
    let known = connection
        .prepare_cached("SELECT flow FROM flows WHERE uuid = ?1")?
        .query_row([uuid], |row| row.get(0))
        .optional()?;
    Ok(match known {
        Some(flow) => flow,
        None => connection
            .prepare_cached("INSERT INTO flows (uuid) VALUES (?1)")?
            .insert([uuid])?,
    })
}

/// A state and its base, as they lie in the file.
struct Row {
    size: usize,
    checksum: u32,
    data: Vec<u8>,
    base: Option<i64>,
    under: Option<(usize, u32, Vec<u8>)>,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            size: row.get(0)?,
            checksum: row.get(1)?,
            data: row.get(2)?,
            base: row.get(3)?,
            under: match row.get(4)? {
                Some(size) => Some((size, row.get(5)?, row.get(6)?)),
                None => None,
            },
        })
    }

    fn text(self) -> Result<Vec<u8>> {
        let base = match (self.base, self.under) {
            (None, _) => None,
            (Some(_), Some((size, checksum, data))) => Some(text(&data, size, checksum, None)?),
            (Some(base), None) => {
                return Err(DbError::Unreadable(format!(
                    "a state builds on state {base}, which is not there"
                )));
            }
        };
        text(&self.data, self.size, self.checksum, base.as_deref())
    }
}

fn text(data: &[u8], size: usize, checksum: u32, base: Option<&[u8]>) -> Result<Vec<u8>> {
    let text = codec::unpack(data, size, base)?;
    if crc32fast::hash(&text) != checksum {
        return Err(DbError::Unreadable(
            "a state is not the one that was saved: its checksum differs".to_owned(),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of which Zstandard makes little less, another for each seed.
    fn noise(seed: u64) -> Vec<u8> {
        let mut place = seed << 32;
        // SplitMix64: its streams have nothing in common.
        let mut next = || {
            place += 1;
            let mut mixed = place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            b' ' + (mixed >> 58) as u8
        };
        (0..Hope::FROM).map(|_| next()).collect()
    }

    fn stored(text: Vec<u8>, base: Option<&Base>) -> (bool, Base) {
        let packed = Packed::new(text, base).unwrap();
        let base = Base {
            state: 0,
            packed: packed.data.len(),
            text: packed.text,
            checksum: packed.checksum,
            since: 0,
            hope: packed.hope,
        };
        (packed.base.is_some(), base)
    }

    #[test]
    fn deltas_in_vain_are_tried_ever_less_and_again_once_they_pay() {
        let (_, mut base) = stored(noise(0), None);
        let mut tried = 0;
        for seed in 1..=500 {
            tried += u32::from(base.hope.rest == 0);
            let (delta, next) = stored(noise(seed), Some(&base));
            assert!(!delta);
            base = next;
        }
        assert!((10..30).contains(&tried), "{tried}");
        // The states are alike from here on.
        let mut whole = 0;
        loop {
            let (delta, next) = stored(base.text.clone(), Some(&base));
            if delta {
                break;
            }
            whole += 1;
            base = next;
        }
        assert!(whole < 1 << Hope::MOST, "{whole}");
        base.grown_by(1);
        assert_eq!(base.hope.in_vain, 0);
    }

    #[test]
    fn small_states_are_always_tried_as_deltas() {
        let short = |seed| noise(seed)[..1000].to_vec();
        let (_, mut base) = stored(short(0), None);
        for seed in 1..50 {
            base = stored(short(seed), Some(&base)).1;
            assert_eq!(base.hope.rest, 0);
        }
    }
}

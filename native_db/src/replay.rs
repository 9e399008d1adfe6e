//! The outputs of tasks, by run: what `crewai replay` begins again from.
//!
//! A run belongs to a *place*, the file in which stock CrewAI would keep the newest one. Runs of
//! one place do not touch one another; the last ones are kept.

use rusqlite::{Connection, OptionalExtension, params};

use crate::codec;
use crate::engine::{DbError, Result, Schema};

/// Format 1. `output` is JSON, packed; `size` and `checksum` (CRC-32) are those of the text.
/// Times are µs since 1970 UTC. `change` grows with every write; `mirrors` says up to which
/// change of which run stock's own file at a place has been written.
pub static SCHEMA: Schema = Schema {
    name: "replay log",
    application_id: 0x434e_4472, // "CNDr"
    format: 1,
    tables: "
CREATE TABLE runs (
    run INTEGER PRIMARY KEY AUTOINCREMENT,
    place TEXT NOT NULL
) STRICT;
CREATE INDEX runs_by_place ON runs (place, run);

CREATE TABLE tasks (
    run INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    task_key TEXT,
    expected_output TEXT,
    task_index INTEGER NOT NULL,
    inputs TEXT NOT NULL,
    was_replayed INTEGER NOT NULL,
    saved_at INTEGER NOT NULL,
    change INTEGER NOT NULL,
    size INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    output BLOB NOT NULL,
    UNIQUE (run, task_id)
) STRICT;
CREATE INDEX tasks_by_change ON tasks (change);

CREATE TABLE mirrors (
    place TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    change INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
",
};

/// The output of a task.
#[derive(Debug)]
pub struct Output {
    /// Unique in its run.
    pub task_id: String,
    /// Hash of what the task asks.
    pub task_key: Option<String>,
    /// What was asked for.
    pub expected_output: Option<String>,
    /// What came, as JSON.
    pub output: String,
    /// Position in the crew.
    pub task_index: i64,
    /// The inputs of the run, as JSON.
    pub inputs: String,
    /// Whether it is the output of a replay.
    pub was_replayed: bool,
    /// When, in µs since 1970 UTC.
    pub saved_at: i64,
}

/// What to change of an output; `None` leaves it as it is.
#[derive(Debug, Default)]
pub struct Changes {
    /// The task that it is the output of.
    pub task_id: Option<String>,
    /// Hash of what the task asks.
    pub task_key: Option<String>,
    /// What was asked for.
    pub expected_output: Option<String>,
    /// What came, as JSON.
    pub output: Option<String>,
    /// The inputs of the run, as JSON.
    pub inputs: Option<String>,
    /// Whether it is the output of a replay.
    pub was_replayed: Option<bool>,
}

/// What stock's own file lacks of the newest run at its place.
#[derive(Debug)]
pub struct Unmirrored {
    /// The run.
    pub run: i64,
    /// Its newest change.
    pub change: i64,
    /// Whether the file has another run.
    pub whole: bool,
    /// The outputs that it lacks.
    pub outputs: Vec<Output>,
}

/// Begins a run at a place, and drops all but the newest `keep` there.
pub fn begin(connection: &Connection, place: &str, keep: u32) -> Result<i64> {
    let run = connection
        .prepare_cached("INSERT INTO runs (place) VALUES (?1)")?
        .insert([place])?;
    prune(connection, Some(place), keep)?;
    Ok(run)
}

/// Has a run that goes on be one of its place again where others were so many that it was dropped,
/// so that what it adds is dropped with it in its turn.
pub fn go_on(connection: &Connection, run: i64, place: &str) -> Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO runs (run, place) VALUES (?1, ?2)")?
        .execute(params![run, place])?;
    Ok(())
}

/// Adds an output, or replaces that of the same task.
pub fn add(connection: &Connection, run: i64, output: &Output) -> Result<()> {
    let packed = codec::pack(output.output.as_bytes(), None)?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO tasks (run, task_id, task_key, expected_output, task_index,
                 inputs, was_replayed, saved_at, change, size, checksum, output)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
                     (SELECT coalesce(max(change), 0) + 1 FROM tasks), ?9, ?10, ?11)",
        )?
        .execute(params![
            run,
            output.task_id,
            output.task_key,
            output.expected_output,
            output.task_index,
            output.inputs,
            output.was_replayed,
            output.saved_at,
            output.output.len(),
            crc32fast::hash(output.output.as_bytes()),
            packed,
        ])?;
    Ok(())
}

/// Changes the output of the task at an index; says whether there is one.
pub fn update(connection: &Connection, run: i64, index: i64, changes: &Changes) -> Result<bool> {
    let text = changes.output.as_ref().map(String::as_bytes);
    let packed = text.map(|text| codec::pack(text, None)).transpose()?;
    let changed = connection
        .prepare_cached(
            "UPDATE tasks SET
                 task_id = coalesce(?3, task_id), task_key = coalesce(?4, task_key),
                 expected_output = coalesce(?5, expected_output), inputs = coalesce(?6, inputs),
                 was_replayed = coalesce(?7, was_replayed), size = coalesce(?8, size),
                 checksum = coalesce(?9, checksum), output = coalesce(?10, output),
                 change = (SELECT max(change) + 1 FROM tasks)
             WHERE run = ?1 AND task_index = ?2",
        )?
        .execute(params![
            run,
            index,
            changes.task_id,
            changes.task_key,
            changes.expected_output,
            changes.inputs,
            changes.was_replayed,
            text.map(<[u8]>::len),
            text.map(crc32fast::hash),
            packed,
        ])?;
    Ok(changed > 0)
}

/// The newest run at a place.
pub fn newest(connection: &Connection, place: &str) -> Result<Option<i64>> {
    Ok(connection
        .prepare_cached("SELECT run FROM runs WHERE place = ?1 ORDER BY run DESC LIMIT 1")?
        .query_row([place], |row| row.get(0))
        .optional()?)
}

/// The outputs of a run that are newer than a change, by index.
pub fn load(connection: &Connection, run: i64, after: i64) -> Result<Vec<Output>> {
    let mut statement = connection.prepare_cached(
        "SELECT task_id, task_key, expected_output, task_index, inputs, was_replayed, saved_at,
                size, checksum, output
         FROM tasks WHERE run = ?1 AND change > ?2 ORDER BY task_index, change",
    )?;
    let mut rows = statement.query([run, after])?;
    let mut outputs = Vec::new();
    while let Some(row) = rows.next()? {
        let text = codec::unpack(
            row.get_ref(9)?.as_blob().map_err(rusqlite::Error::from)?,
            row.get(7)?,
            None,
        )?;
        if crc32fast::hash(&text) != row.get::<_, u32>(8)? {
            return Err(DbError::Unreadable(
                "an output is not the one that was saved: its checksum differs".to_owned(),
            ));
        }
        outputs.push(Output {
            task_id: row.get(0)?,
            task_key: row.get(1)?,
            expected_output: row.get(2)?,
            task_index: row.get(3)?,
            inputs: row.get(4)?,
            was_replayed: row.get(5)?,
            saved_at: row.get(6)?,
            output: String::from_utf8(text)
                .map_err(|_| DbError::Unreadable("an output is not text".to_owned()))?,
        });
    }
    Ok(outputs)
}

/// What stock's own file lacks; `None` where it is up to date.
pub fn unmirrored(connection: &Connection, place: &str) -> Result<Option<Unmirrored>> {
    let Some(run) = newest(connection, place)? else {
        return Ok(None);
    };
    let (mirrored, after): (i64, i64) = connection
        .prepare_cached("SELECT run, change FROM mirrors WHERE place = ?1")?
        .query_row([place], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?
        .unwrap_or((0, 0));
    let whole = mirrored != run;
    let after = if whole { 0 } else { after };
    let change: i64 = connection
        .prepare_cached("SELECT coalesce(max(change), 0) FROM tasks WHERE run = ?1")?
        .query_row([run], |row| row.get(0))?;
    if change <= after {
        return Ok(None);
    }
    Ok(Some(Unmirrored {
        run,
        change,
        whole,
        outputs: load(connection, run, after)?,
    }))
}

/// Says what stock's own file has.
pub fn mirrored(connection: &Connection, place: &str, run: i64, change: i64) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO mirrors (place, run, change) VALUES (?1, ?2, ?3)")?
        .execute(params![place, run, change])?;
    Ok(())
}

/// Drops all but the newest `keep` runs of a place, or of each; says how many.
pub fn prune(connection: &Connection, place: Option<&str>, keep: u32) -> Result<usize> {
    let places = match place {
        Some(place) => vec![place.to_owned()],
        None => connection
            .prepare_cached("SELECT DISTINCT place FROM runs")?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?,
    };
    let mut dropped = 0;
    for place in places {
        let old = connection
            .prepare_cached(
                "SELECT run FROM runs WHERE place = ?1 ORDER BY run DESC LIMIT -1 OFFSET ?2",
            )?
            .query_map(params![place, keep], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        for run in old {
            for statement in [
                "DELETE FROM tasks WHERE run = ?1",
                "DELETE FROM runs WHERE run = ?1",
            ] {
                connection.prepare_cached(statement)?.execute([run])?;
            }
            dropped += 1;
        }
    }
    if place.is_none() {
        dropped += drop_strays(connection)?;
    }
    Ok(dropped)
}

/// Drops outputs of runs that are not there, as files have them that were written before [`go_on`]
/// was; says of how many.
fn drop_strays(connection: &Connection) -> Result<usize> {
    const STRAYS: &str = "FROM tasks WHERE run NOT IN (SELECT run FROM runs)";
    let runs =
        connection.query_row(&format!("SELECT count(DISTINCT run) {STRAYS}"), [], |row| {
            row.get(0)
        })?;
    connection.execute(&format!("DELETE {STRAYS}"), [])?;
    Ok(runs)
}

/// Drops every run of a place; says how many.
pub fn delete_all(connection: &Connection, place: &str) -> Result<usize> {
    connection
        .prepare_cached("DELETE FROM mirrors WHERE place = ?1")?
        .execute([place])?;
    prune(connection, Some(place), 0)
}

/// (runs, outputs, bytes that the outputs take).
pub fn totals(connection: &Connection) -> Result<(i64, i64, i64)> {
    Ok(connection.query_row(
        "SELECT (SELECT count(*) FROM runs), count(*), coalesce(sum(length(output)), 0)
         FROM tasks",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?)
}

/// Reads every row; says what is wrong with which.
pub fn check(connection: &Connection) -> Result<Vec<String>> {
    let mut problems = crate::engine::integrity(connection)?;
    let mut statement = connection.prepare("SELECT run FROM runs ORDER BY run")?;
    let runs = statement
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    for run in runs {
        if let Err(error) = load(connection, run, 0) {
            problems.push(format!("run {run}: {error}"));
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(task_id: &str) -> Output {
        Output {
            task_id: task_id.to_owned(),
            task_key: None,
            expected_output: None,
            output: "{}".to_owned(),
            task_index: 0,
            inputs: "{}".to_owned(),
            was_replayed: false,
            saved_at: 1,
        }
    }

    #[test]
    fn outputs_of_runs_that_are_not_there_are_pruned() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(SCHEMA.tables).unwrap();
        let run = begin(&db, "here", 3).unwrap();
        for (run, task) in [(run, "a"), (run + 5, "b"), (run + 5, "c"), (run + 7, "d")] {
            add(&db, run, &output(task)).unwrap();
        }
        assert_eq!(prune(&db, Some("here"), 3).unwrap(), 0);
        assert_eq!(totals(&db).unwrap().1, 4);
        assert_eq!(prune(&db, None, 3).unwrap(), 2);
        assert_eq!(load(&db, run, 0).unwrap().len(), 1);
        assert_eq!(totals(&db).unwrap().1, 1);
    }
}

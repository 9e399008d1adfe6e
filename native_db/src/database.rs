//! A database for a program's own tables, and for what crews remember of tasks they did.

use std::collections::HashSet;

use crewai_native_sdk::text::is_unspaced;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value;
use rusqlite::{Connection, Statement, params, params_from_iter};

use crate::engine::{DbError, Result, Schema};

/// Format 1. `metadata` is JSON; `text` finds words in it and in the description.
pub static SCHEMA: Schema = Schema {
    name: "database of crewai-native",
    application_id: 0x434e_4464, // "CNDd"
    format: 1,
    tables: "
CREATE TABLE crewai_memories (
    memory INTEGER PRIMARY KEY,
    task_description TEXT NOT NULL,
    metadata TEXT NOT NULL,
    datetime TEXT NOT NULL,
    score REAL NOT NULL
) STRICT;
CREATE INDEX crewai_memories_by_task ON crewai_memories (task_description, datetime);

CREATE VIRTUAL TABLE crewai_memories_text USING fts5 (
    task_description, metadata, content = 'crewai_memories', content_rowid = 'memory'
);
CREATE TRIGGER crewai_memories_added AFTER INSERT ON crewai_memories BEGIN
    INSERT INTO crewai_memories_text (rowid, task_description, metadata)
    VALUES (new.memory, new.task_description, new.metadata);
END;
CREATE TRIGGER crewai_memories_dropped AFTER DELETE ON crewai_memories BEGIN
    INSERT INTO crewai_memories_text (crewai_memories_text, rowid, task_description, metadata)
    VALUES ('delete', old.memory, old.task_description, old.metadata);
END;
CREATE TRIGGER crewai_memories_changed AFTER UPDATE ON crewai_memories BEGIN
    INSERT INTO crewai_memories_text (crewai_memories_text, rowid, task_description, metadata)
    VALUES ('delete', old.memory, old.task_description, old.metadata);
    INSERT INTO crewai_memories_text (rowid, task_description, metadata)
    VALUES (new.memory, new.task_description, new.metadata);
END;
",
};

/// Words, and pairs of letters, of a query that are looked for; later ones of a longer query are not.
const MAX_WORDS: usize = 200;

/// What belongs to a connection and not to a statement: threads share connections and commits.
const REFUSED: [&str; 11] = [
    "ATTACH",
    "BEGIN",
    "COMMIT",
    "DETACH",
    "END",
    "PRAGMA",
    "RELEASE",
    "ROLLBACK",
    "SAVEPOINT",
    "VACUUM",
    "EXPLAIN",
];

/// A statement, and the values of its parameters for each time that it is to run.
#[derive(Debug)]
pub struct Work {
    /// One statement of SQL.
    pub sql: String,
    /// The values by position.
    pub rows: Vec<Vec<Value>>,
}

/// The names of the columns, and the rows.
pub type Table = (Vec<String>, Vec<Vec<Value>>);

/// Runs statements one after another; gives how many rows each changed.
pub fn execute(connection: &Connection, works: &[Work]) -> Result<Vec<usize>> {
    works
        .iter()
        .map(|work| {
            let mut statement = prepared(connection, &work.sql)?;
            let mut changed = 0;
            for row in &work.rows {
                bind(&mut statement, row)?;
                // What a statement returns, as with RETURNING, has to be stepped through.
                let mut rows = statement.raw_query();
                while rows.next()?.is_some() {}
                drop(rows);
                if !statement.readonly() {
                    changed += usize::try_from(connection.changes()).unwrap_or(usize::MAX);
                }
            }
            Ok(changed)
        })
        .collect()
}

/// Runs a statement that changes nothing.
pub fn query(connection: &Connection, sql: &str, values: &[Value]) -> Result<Table> {
    let mut statement = prepared(connection, sql)?;
    if !statement.readonly() {
        return Err(DbError::InvalidArgument(format!(
            "a query changes nothing, and this statement does: {sql}; use execute()"
        )));
    }
    let columns = statement.column_names().into_iter().map(str::to_owned);
    let columns: Vec<_> = columns.collect();
    bind(&mut statement, values)?;
    let mut rows = statement.raw_query();
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let values = (0..columns.len()).map(|index| row.get(index));
        found.push(values.collect::<rusqlite::Result<_>>()?);
    }
    Ok((columns, found))
}

fn prepared<'c>(connection: &'c Connection, sql: &str) -> Result<rusqlite::CachedStatement<'c>> {
    let word = words(sql).next().unwrap_or("").to_ascii_uppercase();
    if REFUSED.contains(&word.as_str()) {
        return Err(DbError::InvalidArgument(format!(
            "{word} is not for one statement on a connection that threads share; \
             transaction() runs several statements as one"
        )));
    }
    if gives_up(sql) {
        return Err(DbError::InvalidArgument(format!(
            "ROLLBACK at a conflict takes back what other threads have written as well; \
             ABORT takes back the statement: {sql}"
        )));
    }
    connection.prepare_cached(sql).map_err(|error| match error {
        rusqlite::Error::MultipleStatement => {
            DbError::InvalidArgument(format!("one statement at a time, not several: {sql}"))
        }
        other => other.into(),
    })
}

fn bind(statement: &mut Statement<'_>, values: &[Value]) -> Result<()> {
    if statement.parameter_count() != values.len() {
        return Err(DbError::InvalidArgument(format!(
            "the statement has {} parameters and got {} values",
            statement.parameter_count(),
            values.len()
        )));
    }
    for (index, value) in values.iter().enumerate() {
        statement.raw_bind_parameter(index + 1, value)?;
    }
    Ok(())
}

/// Whether a statement, or what it creates, may end the transaction that it runs in.
fn gives_up(sql: &str) -> bool {
    let mut before = "";
    words(sql).any(|word| {
        let is_reaction = ["OR", "CONFLICT", "RAISE"]
            .iter()
            .any(|known| before.eq_ignore_ascii_case(known));
        before = word;
        is_reaction && word.eq_ignore_ascii_case("ROLLBACK")
    })
}

/// The words of a statement that are neither in comments nor in quotes.
fn words(sql: &str) -> impl Iterator<Item = &str> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        loop {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let first = rest.chars().next()?;
            let after = |end: &str| {
                let inside = rest.get(first.len_utf8()..).unwrap_or("");
                inside.split_once(end).map_or("", |(_, after)| after)
            };
            rest = match first {
                '-' if rest.starts_with("--") => after("\n"),
                '/' if rest.starts_with("/*") => after("*/"),
                '\'' => after("'"),
                '"' => after("\""),
                '`' => after("`"),
                '[' => after("]"),
                _ if is_word(first) => {
                    let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                    let (word, after) = rest.split_at(end);
                    rest = after;
                    return Some(word);
                }
                _ => &rest[first.len_utf8()..],
            };
        }
    })
}

/// What a crew remembers of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// The task.
    pub task_description: String,
    /// JSON.
    pub metadata: String,
    /// When, as ISO text.
    pub datetime: String,
    /// How well it went.
    pub score: f64,
}

/// Adds a memory; gives its number.
pub fn save_memory(connection: &Connection, memory: &Memory) -> Result<i64> {
    Ok(connection
        .prepare_cached(
            "INSERT INTO crewai_memories (task_description, metadata, datetime, score)
             VALUES (?1, ?2, ?3, ?4)",
        )?
        .insert(params![
            memory.task_description,
            memory.metadata,
            memory.datetime,
            memory.score
        ])?)
}

/// The newest memories of a task, and of those of one time the worst first.
pub fn load_memories(connection: &Connection, task: &str, limit: usize) -> Result<Vec<Memory>> {
    memories(
        connection,
        "SELECT task_description, metadata, datetime, score FROM crewai_memories
         WHERE task_description = ?1 ORDER BY datetime DESC, score LIMIT ?2",
        [task.to_owned().into()],
        limit,
    )
}

/// The memories with any of the words of a text, the best match first.
///
/// The index takes a run of letters of a script without spaces for one word. Of such a script each two
/// letters that follow one another are looked for in the memories themselves, and how many of them are
/// there comes first.
pub fn search_memories(connection: &Connection, text: &str, limit: usize) -> Result<Vec<Memory>> {
    let (words, pairs) = sought(text);
    if words.is_empty() && pairs.is_empty() {
        return Ok(Vec::new());
    }
    let words: Vec<_> = words
        .iter()
        .map(|word| format!("\"{}\"", word.replace('"', "\"\"")))
        .collect();
    let words = words.join(" OR ");
    if pairs.is_empty() {
        return memories(
            connection,
            "SELECT m.task_description, m.metadata, m.datetime, m.score
             FROM crewai_memories_text t JOIN crewai_memories m ON m.memory = t.rowid
             WHERE crewai_memories_text MATCH ?1 ORDER BY bm25(crewai_memories_text), m.memory DESC
             LIMIT ?2",
            [words.into()],
            limit,
        );
    }
    let sought = Pairs::of(&pairs);
    connection.create_scalar_function(
        "crewai_pairs",
        2,
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY,
        move |context| {
            let text = |at: usize| context.get_raw(at).as_str();
            Ok(sought.count([text(0)?, text(1)?]))
        },
    )?;
    let words = if words.is_empty() { "\"\"" } else { &words };
    memories(
        connection,
        "WITH worded AS MATERIALIZED (
             SELECT rowid AS memory, bm25(crewai_memories_text) AS rank
             FROM crewai_memories_text WHERE crewai_memories_text MATCH ?1
         ), paired AS MATERIALIZED (
             SELECT memory, crewai_pairs(task_description, metadata) AS pairs FROM crewai_memories
         )
         SELECT m.task_description, m.metadata, m.datetime, m.score
         FROM paired p JOIN crewai_memories m ON m.memory = p.memory
         LEFT JOIN worded w ON w.memory = p.memory
         WHERE w.memory IS NOT NULL OR p.pairs > 0
         ORDER BY p.pairs DESC, w.rank, m.memory DESC LIMIT ?2",
        [words.to_owned().into()],
        limit,
    )
}

/// Pairs of letters, and what else is looked for in a text as it is.
struct Pairs {
    pairs: HashSet<String>,
    others: HashSet<String>,
}

impl Pairs {
    fn of(sought: &[&str]) -> Self {
        let is_pair = |text: &&str| text.chars().count() == 2;
        let (pairs, others) = sought.iter().copied().partition(is_pair);
        let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        Self {
            pairs: owned(pairs),
            others: owned(others),
        }
    }

    /// How many of them are in texts.
    fn count(&self, texts: [&str; 2]) -> i64 {
        let mut found = HashSet::new();
        for text in texts {
            let ends = text.char_indices().map(|(at, _)| at).skip(2);
            let pairs = text.char_indices().zip(ends.chain([text.len()]));
            found.extend(pairs.filter_map(|((start, _), end)| self.pairs.get(&text[start..end])));
            found.extend(self.others.iter().filter(|other| text.contains(*other)));
        }
        found.len() as i64
    }
}

/// The words of a text, and, of scripts without spaces, each two letters side by side; letters of other
/// scripts beside those are both.
fn sought(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut words, mut pairs) = (Vec::new(), Vec::new());
    // SQLite ends a query at a NUL.
    for word in text.split(|c: char| c.is_whitespace() || c == '\0') {
        if !word.contains(is_unspaced) {
            words.extend(Some(word).filter(|word| !word.is_empty()));
            continue;
        }
        let mut rest = word;
        while let Some(first) = rest.chars().next() {
            let is_other = |c| is_unspaced(c) != is_unspaced(first);
            let (run, after) = rest.split_at(rest.find(is_other).unwrap_or(rest.len()));
            rest = after;
            if !is_unspaced(first) {
                let run = run.trim_matches(|c: char| !c.is_alphanumeric());
                words.extend(Some(run).filter(|run| !run.is_empty()));
                pairs.extend(Some(run).filter(|run| !run.is_empty()));
                continue;
            }
            let places: Vec<_> = run.char_indices().map(|(at, _)| at).collect();
            let ends = places.iter().skip(2).copied().chain([run.len()]);
            pairs.extend(
                places
                    .iter()
                    .zip(ends)
                    .map(|(&start, end)| &run[start..end]),
            );
        }
    }
    words.truncate(MAX_WORDS);
    pairs.truncate(MAX_WORDS);
    (words, pairs)
}

/// The memories that a statement selects, whose second parameter is how many at most.
fn memories<const N: usize>(
    connection: &Connection,
    sql: &str,
    values: [Value; N],
    limit: usize,
) -> Result<Vec<Memory>> {
    let mut values = Vec::from(values);
    values.insert(1, i64::try_from(limit).unwrap_or(i64::MAX).into());
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_map(params_from_iter(values), |row| {
        Ok(Memory {
            task_description: row.get(0)?,
            metadata: row.get(1)?,
            datetime: row.get(2)?,
            score: row.get(3)?,
        })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA.tables).unwrap();
        connection
    }

    #[test]
    fn what_belongs_to_a_connection_is_refused_however_it_is_written() {
        let db = database();
        for sql in [
            "commit",
            " /* x */ ROLLBACK",
            "-- y\n;begin",
            "PRAGMA synchronous=OFF",
        ] {
            let refused = query(&db, sql, &[]).unwrap_err();
            assert!(refused.to_string().contains("transaction()"), "{refused}");
        }
        assert_eq!(words("/* never closed").next(), None);
        assert!(query(&db, "SELECT 1; DELETE FROM crewai_memories", &[]).is_err());
        assert!(query(&db, "DELETE FROM crewai_memories", &[]).is_err());
    }

    #[test]
    fn what_would_end_the_transaction_of_others_is_refused() {
        let db = database();
        db.execute_batch("CREATE TABLE t (x UNIQUE)").unwrap();
        for sql in [
            "INSERT OR ROLLBACK INTO t VALUES (1)",
            "update or/**/rollback t SET x = 1",
            "CREATE TABLE u (x UNIQUE ON CONFLICT ROLLBACK)",
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
        ] {
            let refused = query(&db, sql, &[]).unwrap_err();
            assert!(refused.to_string().contains("ABORT"), "{refused}");
        }
        for sql in [
            "SELECT 'OR ROLLBACK', \"x\" FROM t -- or rollback",
            "SELECT x AS [or rollback], 'it''s OR ROLLBACK' FROM t /* OR ROLLBACK */",
            "SELECT x AS rollback FROM t WHERE x = 1 OR x = 2",
            "SELECT 'never closed'' OR ROLLBACK'",
        ] {
            query(&db, sql, &[]).unwrap();
        }
    }

    #[test]
    fn words_are_found_whatever_else_is_in_the_text() {
        let db = database();
        for (text, score) in [("the \"river\" flows", 1.0), ("an invoice", 2.0)] {
            let memory = Memory {
                task_description: text.to_owned(),
                metadata: "{}".to_owned(),
                datetime: "2026".to_owned(),
                score,
            };
            save_memory(&db, &memory).unwrap();
        }
        let found = |text| search_memories(&db, text, 9).unwrap().len();
        assert_eq!(found("RIVER"), 1);
        assert_eq!(found("river\" OR invoice NEAR("), 2);
        for blank in ["  ", "\0", " \0\0 "] {
            assert_eq!(found(blank), 0);
        }
        assert_eq!(found("a\0b"), 0);
        assert_eq!(found("\0invoice\0river"), 2);
        db.execute("DELETE FROM crewai_memories", []).unwrap();
        assert_eq!(found("river"), 0);
    }

    #[test]
    fn letters_of_scripts_without_spaces_are_found_two_by_two() {
        let (words, pairs) = sought("a\"b iPhone15の在庫、庫 が \0 。");
        assert_eq!(words, ["a\"b", "iPhone15", "。"]);
        assert_eq!(pairs, ["iPhone15", "の在", "在庫", "庫", "が"]);
        let db = database();
        for text in [
            "東京に行く",
            "東京の天気を京都で",
            "サウル 서울에서 만나요",
            "Tokyo",
        ] {
            let memory = Memory {
                task_description: text.to_owned(),
                metadata: r#"{"q":"大阪"}"#.to_owned(),
                datetime: "2026".to_owned(),
                score: 1.0,
            };
            save_memory(&db, &memory).unwrap();
        }
        let found = |text, limit| -> Vec<_> {
            let found = search_memories(&db, text, limit).unwrap();
            found
                .into_iter()
                .map(|memory| memory.task_description)
                .collect()
        };
        assert_eq!(found("東京都", 9), ["東京の天気を京都で", "東京に行く"]);
        assert_eq!(found("서울", 9), ["サウル 서울에서 만나요"]);
        assert_eq!(found("天気 tokyo", 9), ["東京の天気を京都で", "Tokyo"]);
        assert_eq!(found("大阪", 9).len(), 4);
        assert_eq!(found("大阪", 1), ["Tokyo"]);
        assert_eq!(found("北海道、。", 9), [""; 0]);
    }
}

//! Finding records by their words, ranked by BM25.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension};

use super::engine::Engine;
use super::error::Result;
use super::filter::{Filter, has_category, has_metadata};
use super::read;
use super::record::Record;
use super::scope;
use super::write::unreadable;

/// Words of a query that are looked for; later ones of a longer query are not.
const MAX_WORDS: usize = 200;

/// The index holds words and where they occur, not the texts again. It comes into being with the
/// first search, and triggers keep it in step from then on: who never searches by words pays
/// nothing for it.
const INDEX: &str = "
CREATE VIRTUAL TABLE record_text USING fts5 (
    content, content = 'records', content_rowid = 'record',
    tokenize = 'unicode61 remove_diacritics 2'
);
CREATE TRIGGER record_text_insert AFTER INSERT ON records BEGIN
    INSERT INTO record_text (rowid, content) VALUES (new.record, new.content);
END;
CREATE TRIGGER record_text_delete AFTER DELETE ON records BEGIN
    INSERT INTO record_text (record_text, rowid, content)
        VALUES ('delete', old.record, old.content);
END;
CREATE TRIGGER record_text_update AFTER UPDATE OF content ON records
WHEN old.content IS NOT new.content BEGIN
    INSERT INTO record_text (record_text, rowid, content)
        VALUES ('delete', old.record, old.content);
    INSERT INTO record_text (rowid, content) VALUES (new.record, new.content);
END;
INSERT INTO record_text (record_text) VALUES ('rebuild');
";

impl Engine {
    /// The `k` records that match `filter` and have the most, and the rarest, words of `query`;
    /// best first, equal scores by id. Scores are BM25's, above 0 and without an upper limit.
    pub fn search_text(
        &self,
        query: &str,
        filter: &Filter,
        k: usize,
    ) -> Result<Vec<(Record, f64)>> {
        let Some(words) = any_of(query) else {
            return Ok(Vec::new());
        };
        if !self.read(true, |link| is_indexed(&link.connection))? {
            self.write(false, |write| {
                // Another process may have been first.
                if !is_indexed(&write.transaction)? {
                    write.transaction.execute_batch(INDEX)?;
                }
                Ok(())
            })?;
        }
        self.read(Vec::new(), |link| {
            let snapshot = link.connection.unchecked_transaction()?;
            // A store that was replaced meanwhile begins without an index.
            if !is_indexed(&snapshot)? {
                return Ok(Vec::new());
            }
            let mut matches = snapshot.prepare_cached(
                "SELECT r.record, s.path, c.names, r.metadata, r.created_at, r.source,
                     r.private, -bm25(record_text) AS score
                 FROM record_text JOIN records r ON r.record = record_text.rowid
                 JOIN scopes s ON s.id = r.scope JOIN category_sets c ON c.id = r.categories
                 WHERE record_text MATCH ?1 ORDER BY score DESC, r.id",
            )?;
            let mut rows = matches.query([words])?;
            let mut found = Vec::new();
            while found.len() < k
                && let Some(row) = rows.next()?
            {
                if admits(filter, row)? {
                    found.push((read::by_row(&snapshot, row.get(0)?)?, row.get(7)?));
                }
            }
            Ok(found)
        })
    }
}

fn is_indexed(connection: &Connection) -> Result<bool> {
    let found = connection
        .prepare_cached("SELECT 1 FROM sqlite_schema WHERE name = 'record_text'")?
        .query_row([], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}

fn admits(filter: &Filter, row: &rusqlite::Row<'_>) -> Result<bool> {
    let text = |at: usize| row.get_ref(at)?.as_str().map_err(rusqlite::Error::from);
    if let Some(wanted) = &filter.scope
        && !scope::lineage(text(1)?).any(|above| above == wanted)
    {
        return Ok(false);
    }
    let created_at: i64 = row.get(4)?;
    if filter.created_from.is_some_and(|from| created_at < from)
        || filter
            .created_before
            .is_some_and(|before| created_at >= before)
    {
        return Ok(false);
    }
    let source: Option<String> = row.get(5)?;
    if let Some(wanted) = &filter.sources
        && !source
            .as_ref()
            .is_some_and(|source| wanted.contains(source))
    {
        return Ok(false);
    }
    if !filter.visible_to.admits(row.get(6)?, source.as_deref()) {
        return Ok(false);
    }
    if let Some(wanted) = &filter.categories
        && !has_category(text(2)?, wanted).map_err(unreadable)?
    {
        return Ok(false);
    }
    match &filter.metadata {
        Some(wanted) => has_metadata(text(3)?, wanted).map_err(unreadable),
        None => Ok(true),
    }
}

/// The query for records with at least one of the words, quoted so that none is an operator.
fn any_of(query: &str) -> Option<String> {
    let mut seen = HashSet::new();
    let words: Vec<String> = query
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty() && seen.insert(word.to_lowercase()))
        .take(MAX_WORDS)
        .map(|word| format!("\"{word}\""))
        .collect();
    (!words.is_empty()).then(|| words.join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_never_operators() {
        assert_eq!(any_of("NOT (a* OR \"b\") NEAR a-B").as_deref(), {
            Some("\"NOT\" OR \"a\" OR \"OR\" OR \"b\" OR \"NEAR\"")
        });
        assert_eq!(any_of(" -- *"), None);
    }
}

//! Finding records by their words, ranked by BM25.

use std::borrow::Cow;
use std::collections::HashSet;

use crewai_native_sdk::text::is_unspaced;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, OptionalExtension};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

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
/// nothing for it. What it is made of, `terms`, only this crate's connections know ([`register`]).
///
/// Releases before had indexes named `record_text`, of texts as they are, and `record_words`, of texts that
/// were not composed.
const INDEX: &str = "
DROP TRIGGER IF EXISTS record_text_insert;
DROP TRIGGER IF EXISTS record_text_delete;
DROP TRIGGER IF EXISTS record_text_update;
DROP TABLE IF EXISTS record_text;
DROP TRIGGER IF EXISTS record_words_insert;
DROP TRIGGER IF EXISTS record_words_delete;
DROP TRIGGER IF EXISTS record_words_update;
DROP TABLE IF EXISTS record_words;
DROP VIEW IF EXISTS record_spaced;
CREATE VIEW record_contents AS SELECT record, terms(content) AS content FROM records;
CREATE VIRTUAL TABLE record_terms USING fts5 (
    content, content = 'record_contents', content_rowid = 'record',
    tokenize = 'unicode61 remove_diacritics 2'
);
CREATE TRIGGER record_terms_insert AFTER INSERT ON records BEGIN
    INSERT INTO record_terms (rowid, content) VALUES (new.record, terms(new.content));
END;
CREATE TRIGGER record_terms_delete AFTER DELETE ON records BEGIN
    INSERT INTO record_terms (record_terms, rowid, content)
        VALUES ('delete', old.record, terms(old.content));
END;
CREATE TRIGGER record_terms_update AFTER UPDATE OF content ON records
WHEN old.content IS NOT new.content BEGIN
    INSERT INTO record_terms (record_terms, rowid, content)
        VALUES ('delete', old.record, terms(old.content));
    INSERT INTO record_terms (rowid, content) VALUES (new.record, terms(new.content));
END;
INSERT INTO record_terms (record_terms) VALUES ('rebuild');
";

/// Teaches a connection the function that the index is made with.
pub fn register(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    // An index of before calls it `spaced`, until a search replaces it.
    for name in ["terms", "spaced"] {
        connection.create_scalar_function(name, 1, flags, |context| {
            Ok(terms(context.get_raw(0).as_str()?).into_owned())
        })?;
    }
    Ok(())
}

/// Whether it is a vowel or another point of Hebrew or Arabic, which most texts leave out. The index's
/// tokenizer would take a word apart there.
fn is_point(c: char) -> bool {
    matches!(c, '\u{591}'..='\u{5bd}' | '\u{5bf}'..='\u{5c7}' | '\u{610}'..='\u{61a}' | '\u{640}'
        | '\u{64b}'..='\u{65f}' | '\u{670}' | '\u{6d6}'..='\u{6dc}' | '\u{6df}'..='\u{6ed}')
}

/// The text in its composed form (NFC), whichever it is written in, and without points.
fn composed(text: &str) -> Cow<'_, str> {
    let is_so = text.is_ascii()
        || (is_nfc_quick(text.chars()) == IsNormalized::Yes && !text.contains(is_point));
    if is_so {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().filter(|&c| !is_point(c)).collect())
}

/// What the index is made of: the composed text, with each letter of a script without spaces standing
/// alone, as a word.
fn terms(text: &str) -> Cow<'_, str> {
    let text = composed(text);
    if !text.contains(is_unspaced) {
        return text;
    }
    let mut out = String::with_capacity(2 * text.len());
    for c in text.chars() {
        if is_unspaced(c) {
            out.extend([' ', c, ' ']);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

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
                     r.private, -bm25(record_terms) AS score
                 FROM record_terms JOIN records r ON r.record = record_terms.rowid
                 JOIN scopes s ON s.id = r.scope JOIN category_sets c ON c.id = r.categories
                 WHERE record_terms MATCH ?1 ORDER BY score DESC, r.id",
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
        .prepare_cached("SELECT 1 FROM sqlite_schema WHERE name = 'record_terms'")?
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
///
/// Where a script has no spaces, each two letters that follow one another are looked for, side by
/// side: bigrams, which do nearly as well as words there and need no dictionary (Nie, Gao, Zhang and
/// Zhou, "On the use of words and n-grams for Chinese information retrieval", IRAL 2000).
fn any_of(query: &str) -> Option<String> {
    let mut seen = HashSet::new();
    // The index leaves marks out where a letter has no composed form with them.
    let is_mark = |c| matches!(c, '\u{300}'..='\u{36f}');
    let words: Vec<String> = composed(query)
        .split(|c: char| !c.is_alphanumeric() && !is_mark(c))
        .flat_map(words)
        .filter(|word| seen.insert(word.to_lowercase()))
        .take(MAX_WORDS)
        .map(|word| format!("\"{word}\""))
        .collect();
    (!words.is_empty()).then(|| words.join(" OR "))
}

/// What to look for of letters and digits without anything between them.
fn words(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let runs = letters.chunk_by(|&a, &b| is_unspaced(a) == is_unspaced(b));
    runs.flat_map(|run| match run {
        [first, _, ..] if is_unspaced(*first) => run
            .windows(2)
            .map(|two| format!("{} {}", two[0], two[1]))
            .collect(),
        _ => vec![run.iter().collect::<String>()],
    })
    .collect()
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

    #[test]
    fn letters_without_spaces_are_looked_for_two_by_two() {
        let query = any_of("iPhone15の在庫、の Straße 서울에서").unwrap();
        let expected = [
            "iPhone15", "の 在", "在 庫", "の", "Straße", "서 울", "울 에", "에 서",
        ];
        assert_eq!(
            query,
            expected.map(|word| format!("\"{word}\"")).join(" OR ")
        );
        assert_eq!(terms("no, né"), "no, né");
        assert_eq!(terms("a東京b"), "a 東  京 b");
    }

    #[test]
    fn it_makes_no_difference_in_which_form_a_text_is_written() {
        for text in [
            "résumé Besançon",
            "Việt",
            "서울에서",
            "がぎぐ",
            "x\u{302}y",
            "שלום",
            "سلام",
        ] {
            let apart: String = text.nfd().collect();
            assert_eq!(terms(&apart), terms(text));
            assert_eq!(any_of(&apart), any_of(text));
        }
        assert_eq!(any_of("שָׁלוֹם סَلَام"), any_of("שלום סلام"));
        assert_eq!(any_of("x\u{302}y").as_deref(), Some("\"x\u{302}y\""));
    }
}

//! One spelling for all JSON texts of the same arguments.

use std::borrow::Cow;

/// How deep values may be nested in a text that is brought into its canonical spelling.
const MAX_DEPTH: usize = 200;

/// Returns the text of a JSON object without blanks between its parts and with the members of every
/// object sorted; any other text as it is.
///
/// Members are sorted by the spelling of their keys, equal ones stay in their order, and strings and
/// numbers keep their spelling: `1`, `1.0`, `true` and `"1"` remain different. Two texts that differ
/// in what they say never become equal.
pub fn canonical(text: &str) -> Cow<'_, str> {
    if !text.starts_with('{') {
        return Cow::Borrowed(text);
    }
    let mut writer = Writer {
        text,
        at: 0,
        out: String::with_capacity(text.len()),
    };
    let whole = writer.object(0).is_some() && {
        writer.blanks();
        writer.at == text.len()
    };
    if whole {
        Cow::Owned(writer.out)
    } else {
        Cow::Borrowed(text)
    }
}

/// Reads `text` from `at` on and writes what it has read. `None` from its methods: no JSON.
struct Writer<'a> {
    text: &'a str,
    at: usize,
    out: String,
}

/// Where a member stands in what was written.
struct Member {
    start: usize,
    key_end: usize,
    end: usize,
}

impl Writer<'_> {
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.next()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(),
            _ => self.word(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<()> {
        let start = self.out.len();
        let mut members = Vec::new();
        self.items(depth, b'}', |writer| {
            let start = writer.out.len();
            if writer.next()? != b'"' {
                return None;
            }
            writer.string()?;
            let key_end = writer.out.len();
            if writer.next()? != b':' {
                return None;
            }
            writer.take();
            writer.value(depth + 1)?;
            let end = writer.out.len();
            members.push(Member {
                start,
                key_end,
                end,
            });
            Some(())
        })?;
        let key = |member: &Member| &self.out[member.start..member.key_end];
        if !members.is_sorted_by_key(key) {
            members.sort_by_key(key);
            let parts: Vec<&str> = members.iter().map(|m| &self.out[m.start..m.end]).collect();
            let sorted = parts.join(",");
            self.out.truncate(start + 1);
            self.out.push_str(&sorted);
            self.out.push('}');
        }
        Some(())
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.items(depth, b']', |writer| writer.value(depth + 1))
    }

    /// Takes an opening bracket, items with commas between them, and the closing bracket.
    fn items(
        &mut self,
        depth: usize,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        if depth == MAX_DEPTH {
            return None;
        }
        self.take();
        if self.next()? == close {
            self.take();
            return Some(());
        }
        loop {
            self.next()?;
            item(self)?;
            let after = self.next()?;
            if after != close && after != b',' {
                return None;
            }
            self.take();
            if after == close {
                return Some(());
            }
        }
    }

    fn string(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        loop {
            end += plain_length(bytes.get(end..)?);
            if *bytes.get(end)? == b'"' {
                return self.copy(end + 1);
            }
            end += 2; // a backslash, and what it escapes
        }
    }

    /// Takes a number or a word such as `null`; `json.dumps` writes `NaN` and `-Infinity`, too.
    fn word(&mut self) -> Option<()> {
        let length = self.text.as_bytes()[self.at..]
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
            .count();
        (length > 0).then_some(())?;
        self.copy(self.at + length)
    }

    fn copy(&mut self, end: usize) -> Option<()> {
        self.out.push_str(self.text.get(self.at..end)?);
        self.at = end;
        Some(())
    }

    /// Takes the single byte that `next` has shown.
    fn take(&mut self) {
        self.out.push(char::from(self.text.as_bytes()[self.at]));
        self.at += 1;
    }

    fn next(&mut self) -> Option<u8> {
        self.blanks();
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest
            .iter()
            .take_while(|byte| b" \t\n\r".contains(byte))
            .count();
    }
}

/// How many bytes from the start on are neither a quote nor a backslash.
fn plain_length(bytes: &[u8]) -> usize {
    const BLOCK: usize = 32;
    let special = |&byte: &u8| byte == b'"' || byte == b'\\';
    // Most strings are short.
    let (head, rest) = bytes.split_at(bytes.len().min(BLOCK));
    if let Some(length) = head.iter().position(special) {
        return length;
    }
    // Without an early end the compiler looks at all bytes of a block at once.
    let is_plain = |block: &&[u8; BLOCK]| !block.iter().fold(false, |any, b| any | special(b));
    let blocks = rest.as_chunks::<BLOCK>().0;
    let whole = blocks.iter().take_while(is_plain).count() * BLOCK;
    let last = &rest[whole..];
    head.len() + whole + last.iter().position(special).unwrap_or(last.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_are_sorted_at_every_level_and_blanks_dropped() {
        for (text, expected) in [
            ("{}", "{}"),
            (" {}", " {}"),
            ("{ \"a\" : [ ] }", r#"{"a":[]}"#),
            (r#"{"b": 1, "a": 2}"#, r#"{"a":2,"b":1}"#),
            (
                r#"{"b": [{"d": null, "c": "x, y: z"}, -1.5e+3], "a": {"y": NaN, "x": {}}}"#,
                r#"{"a":{"x":{},"y":NaN},"b":[{"c":"x, y: z","d":null},-1.5e+3]}"#,
            ),
            (r#"{"k": 2, "k": 1}"#, r#"{"k":2,"k":1}"#),
            (r#"{"b\"": 1, "a\\": 2}"#, r#"{"a\\":2,"b\"":1}"#),
            (
                r#"{"c long text, with \"blanks, quotes\" and a \\": 1, "a": "another one { \\\" }, that ends"}"#,
                r#"{"a":"another one { \\\" }, that ends","c long text, with \"blanks, quotes\" and a \\":1}"#,
            ),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_object_stays_as_it_is() {
        for text in [
            "",
            "x",
            "[2, 1]",
            "{",
            "{\"a\"",
            "{\"a\": }",
            "{\"a\": 1,}",
            "{'a': 1}",
            "{\"a\": 1} x",
            "{\"a\" 1}",
            "{\"a\\",
            "{\"a\\é",
            "{a b}",
            "{\"a\": 1 2}",
            "{\"a\": [1}]",
        ] {
            assert_eq!(canonical(text), text);
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_left_alone() {
        let text = format!("{{ \"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(canonical(&text), text);
    }

    proptest! {
        #[test]
        fn the_canonical_spelling_is_its_own(text in r#"[{}\[\]":,a1 \\é]{0,40}"#) {
            let once = canonical(&text).into_owned();
            prop_assert_eq!(canonical(&once), once.as_str());
        }
    }
}

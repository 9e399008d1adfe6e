//! A reader of JSON text that keeps its own stack.

use super::plain::plain_length;
use crate::build::{Build, MAX_DIGITS, ReadError, Stack, placed};

type Read<T> = Result<T, ReadError>;

/// Reads one value, which is all that the text may hold but white space.
///
/// Memory grows with the text: by at most some 100 bytes for each of its bytes.
pub fn read<B: Build>(text: &str, builder: &mut B) -> Read<B::Value> {
    let mut reader = Reader {
        text,
        at: 0,
        scratch: String::new(),
    };
    let mut stack = Stack::new();
    loop {
        reader.value(builder, &mut stack)?;
        // What was read completes what is around it, as long as that ends here.
        loop {
            reader.skip_space();
            let at = reader.at;
            let Some(open) = stack.last() else {
                return match stack.values.pop() {
                    Some(value) if at == text.len() => Ok(value),
                    _ => Err(ReadError::new(at, "something after the end")),
                };
            };
            let is_map = open.is_map;
            match reader.take() {
                Some(b',') => {
                    if is_map {
                        reader.key(builder, &mut stack)?;
                    }
                    break;
                }
                Some(b']') if !is_map => stack.close(builder, at)?,
                Some(b'}') if is_map => stack.close(builder, at)?,
                _ => {
                    return Err(
                        reader.expected(at, if is_map { "',' or '}'" } else { "',' or ']'" })
                    );
                }
            }
        }
    }
}

/// What a byte is worth as a hexadecimal digit; of another one, more than any.
static HEX: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut digit = 0;
    while digit < 16 {
        values[b"0123456789abcdef"[digit] as usize] = digit as u8;
        values[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// A string without its escapes.
    scratch: String,
}

impl Reader<'_> {
    /// Reads a scalar or an empty list or map onto the stack, opening what is around it.
    fn value<B: Build>(&mut self, builder: &mut B, stack: &mut Stack<B::Value>) -> Read<()> {
        loop {
            self.skip_space();
            let at = self.at;
            let value = match self.take() {
                Some(b'"') => {
                    let text = self.string()?;
                    builder.text(text)
                }
                Some(b'{') => {
                    stack.open(at, true, 0)?;
                    self.skip_space();
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        return stack.close(builder, self.at - 1);
                    }
                    self.key(builder, stack)?;
                    continue;
                }
                Some(b'[') => {
                    stack.open(at, false, 0)?;
                    self.skip_space();
                    if self.peek() == Some(b']') {
                        self.at += 1;
                        return stack.close(builder, self.at - 1);
                    }
                    continue;
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.at = at;
                    self.number(builder)?
                }
                Some(b't') => {
                    self.word(at, "true")?;
                    builder.truth(true)
                }
                Some(b'f') => {
                    self.word(at, "false")?;
                    builder.truth(false)
                }
                Some(b'n') => {
                    self.word(at, "null")?;
                    builder.null()
                }
                _ => return Err(self.expected(at, "a value")),
            };
            stack.values.push(value);
            return Ok(());
        }
    }

    fn key<B: Build>(&mut self, builder: &mut B, stack: &mut Stack<B::Value>) -> Read<()> {
        self.skip_space();
        let at = self.at;
        if self.take() != Some(b'"') {
            return Err(self.expected(at, "a key in double quotes"));
        }
        let key = self.string()?;
        let key = builder.key(key);
        stack.key(at, key);
        self.skip_space();
        let at = self.at;
        if self.take() != Some(b':') {
            return Err(self.expected(at, "':'"));
        }
        Ok(())
    }

    /// Reads a string whose opening quote is behind.
    fn string(&mut self) -> Read<&str> {
        let begin = self.at;
        let length = plain_length(&self.text.as_bytes()[begin..]);
        self.at += length;
        if self.peek() == Some(b'"') {
            self.at += 1;
            // The quote is ASCII, so this is the border of a character.
            return Ok(&self.text[begin..begin + length]);
        }
        self.escaped_string(begin)
    }

    #[cold]
    fn escaped_string(&mut self, begin: usize) -> Read<&str> {
        self.scratch.clear();
        self.scratch.push_str(&self.text[begin..self.at]);
        loop {
            let at = self.at;
            match self.take() {
                Some(b'"') => return Ok(&self.scratch),
                Some(b'\\') => {
                    let character = self.escape(at)?;
                    self.scratch.push(character);
                    // Texts of other alphabets have one after the other.
                    if self.peek() == Some(b'\\') {
                        continue;
                    }
                }
                Some(_) => return Err(ReadError::new(at, "a control character in a string")),
                None => return Err(ReadError::new(at, "a string without an end")),
            }
            let begin = self.at;
            self.at += plain_length(&self.text.as_bytes()[begin..]);
            self.scratch.push_str(&self.text[begin..self.at]);
        }
    }

    fn escape(&mut self, at: usize) -> Read<char> {
        Ok(match self.take() {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'u') => {
                let mut code = self.hex(at)?;
                if (0xd800..0xdc00).contains(&code)
                    && self.text.as_bytes()[self.at..].starts_with(b"\\u")
                {
                    self.at += 2;
                    let low = self.hex(at)?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(ReadError::new(at, "half of a surrogate pair"));
                    }
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                }
                char::from_u32(code)
                    .ok_or_else(|| ReadError::new(at, "half of a surrogate pair"))?
            }
            _ => return Err(ReadError::new(at, "an unknown escape")),
        })
    }

    fn hex(&mut self, at: usize) -> Read<u32> {
        let digits = self.text.as_bytes()[self.at..].first_chunk::<4>();
        let values = digits.map(|digits| digits.map(|digit| HEX[usize::from(digit)]));
        let [a, b, c, d] = values
            .filter(|values| values.iter().all(|value| *value < 16))
            .ok_or_else(|| ReadError::new(at, "an escape without four digits"))?
            .map(u32::from);
        self.at += 4;
        Ok(a << 12 | b << 8 | c << 4 | d)
    }

    fn number<B: Build>(&mut self, builder: &mut B) -> Read<B::Value> {
        let begin = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let first = self.at;
        self.digits("a digit")?;
        if self.at > first + 1 && self.text.as_bytes()[first] == b'0' {
            return Err(ReadError::new(first, "a number that begins with 0"));
        }
        let whole = self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits("a digit after the point")?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits("a digit in the exponent")?;
        }
        let digits = &self.text[begin..self.at];
        if self.at > whole {
            return match digits.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(builder.float(number)),
                _ => Err(ReadError::new(begin, "a number too large for 64 bits")),
            };
        }
        if let Ok(number) = digits.parse::<i64>() {
            return placed(builder.int(number), begin);
        }
        if whole - first > MAX_DIGITS {
            return Err(ReadError::new(
                begin,
                format!("a whole number of more than {MAX_DIGITS} digits"),
            ));
        }
        placed(builder.big_int(digits), begin)
    }

    fn digits(&mut self, expected: &str) -> Read<()> {
        let begin = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == begin {
            return Err(self.expected(begin, expected));
        }
        Ok(())
    }

    fn word(&mut self, at: usize, word: &str) -> Read<()> {
        if !self.text.as_bytes()[at..].starts_with(word.as_bytes()) {
            return Err(self.expected(at, "a value"));
        }
        self.at = at + word.len();
        Ok(())
    }

    #[cold]
    fn expected(&self, at: usize, what: &str) -> ReadError {
        let found = match self.text.get(at..).and_then(|rest| rest.chars().next()) {
            Some(found) => format!("{found:?}"),
            None => "the end".to_owned(),
        };
        ReadError::new(at, format!("expected {what}, found {found}"))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }
}

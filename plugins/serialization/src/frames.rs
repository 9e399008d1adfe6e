//! Streams: messages one after the other, each behind its length, with a mark at the end.
//!
//! | bytes | |
//! |---|---|
//! | 4 | `CNMS` |
//! | 1 | version of this layout, 1 |
//! | 1 | format of the messages: `j` JSON, `m` MessagePack |
//! | 4 + n, each message | its length n above 0, big-endian, and its bytes |
//! | 4 + 8, at the end | 0, and the number of messages, big-endian |

use crate::build::ReadError;

const MAGIC: &[u8; 4] = b"CNMS";
const VERSION: u8 = 1;
const HEADER: usize = 6;
const LENGTH: usize = 4;
const COUNT: usize = 8;

/// Returns how a stream of messages in this format begins.
pub fn header(format: u8) -> [u8; HEADER] {
    let [a, b, c, d] = *MAGIC;
    [a, b, c, d, VERSION, format]
}

/// Returns what stands before a message; `None` where it is empty or has 4 GiB or more.
pub fn length(message: usize) -> Option<[u8; LENGTH]> {
    u32::try_from(message)
        .ok()
        .filter(|&length| length > 0)
        .map(u32::to_be_bytes)
}

/// Returns how a stream of so many messages ends.
pub fn end(count: u64) -> [u8; LENGTH + COUNT] {
    let mut end = [0; LENGTH + COUNT];
    end[LENGTH..].copy_from_slice(&count.to_be_bytes());
    end
}

/// Takes a stream apart, in whatever pieces it comes.
#[derive(Debug)]
pub struct Frames {
    longest: usize,
    /// What has come and was not given out. At most one piece more than one message.
    bytes: Vec<u8>,
    /// Where in `bytes` the next frame begins.
    at: usize,
    /// Where in the stream `bytes` begins.
    offset: usize,
    format: Option<u8>,
    count: u64,
    ended: bool,
}

impl Frames {
    /// A stream whose messages have at most `longest` bytes each.
    pub fn new(longest: usize) -> Self {
        Self {
            longest,
            bytes: Vec::new(),
            at: 0,
            offset: 0,
            format: None,
            count: 0,
            ended: false,
        }
    }

    /// The format of the messages, once the header has come.
    pub fn format(&self) -> Option<u8> {
        self.format
    }

    /// Takes the next piece of the stream.
    pub fn feed(&mut self, piece: &[u8]) {
        self.bytes.drain(..self.at);
        self.offset += self.at;
        self.at = 0;
        self.bytes.extend_from_slice(piece);
    }

    /// Returns the next message and where in the stream it begins; `None` where more must come.
    pub fn next_frame(&mut self) -> Result<Option<(usize, &[u8])>, ReadError> {
        let here = self.offset + self.at;
        if self.ended {
            return if self.at == self.bytes.len() {
                Ok(None)
            } else {
                Err(ReadError::new(
                    here,
                    "something after the end of the stream",
                ))
            };
        }
        if self.format.is_none() {
            let begin = &self.bytes[self.at..];
            if !MAGIC.iter().zip(begin).all(|(a, b)| a == b) {
                return Err(ReadError::new(here, "no stream of messages"));
            }
            let Some(header) = begin.first_chunk::<HEADER>() else {
                return Ok(None);
            };
            if header[4] != VERSION {
                return Err(ReadError::new(
                    here + 4,
                    format!(
                        "a stream of version {}; version {VERSION} is understood",
                        header[4]
                    ),
                ));
            }
            self.format = Some(header[5]);
            self.at += HEADER;
        }
        let here = self.offset + self.at;
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.longest {
            return Err(ReadError::new(
                here,
                format!(
                    "a message of {length} bytes; at most {} are accepted",
                    self.longest
                ),
            ));
        }
        if length == 0 {
            let Some(count) = rest[LENGTH..].first_chunk::<COUNT>() else {
                return Ok(None);
            };
            let count = u64::from_be_bytes(*count);
            if count != self.count {
                return Err(ReadError::new(
                    here,
                    format!("the end of {count} messages after {}", self.count),
                ));
            }
            self.ended = true;
            self.at += LENGTH + COUNT;
            return self.next_frame();
        }
        let begin = self.at + LENGTH;
        if self.bytes.len() - begin < length {
            return Ok(None);
        }
        self.at = begin + length;
        self.count += 1;
        Ok(Some((
            self.offset + begin,
            &self.bytes[begin..begin + length],
        )))
    }

    /// Says that nothing more comes.
    pub fn finish(&self) -> Result<(), ReadError> {
        if self.ended {
            Ok(())
        } else {
            Err(ReadError::new(
                self.offset + self.bytes.len(),
                format!(
                    "the stream ends without its end mark, after {} messages",
                    self.count
                ),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Frames, end, header, length};

    fn read(stream: &[u8], sizes: &[usize]) -> Result<Vec<Vec<u8>>, super::ReadError> {
        let (mut frames, mut found, mut at) = (Frames::new(100), Vec::new(), 0);
        for size in sizes.iter().chain([&stream.len()]) {
            let next = stream.len().min(at + size);
            frames.feed(&stream[at..next]);
            at = next;
            while let Some((begin, frame)) = frames.next_frame()? {
                assert_eq!(frame, &stream[begin..begin + frame.len()]);
                found.push(frame.to_vec());
            }
        }
        frames.finish()?;
        Ok(found)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn messages_come_back_in_whatever_pieces(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
            sizes in prop::collection::vec(0..40_usize, 0..30),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut stream = header(b'j').to_vec();
            for message in &messages {
                stream.extend(length(message.len()).unwrap());
                stream.extend(message);
            }
            stream.extend(end(messages.len() as u64));
            prop_assert_eq!(read(&stream, &sizes).unwrap(), messages);
            if let Some((at, byte)) = damage {
                let at = at.index(stream.len());
                stream[at] = byte;
                // Read otherwise or refused, whatever it has become.
                if let Err(error) = read(&stream, &sizes) {
                    prop_assert!(error.at <= stream.len());
                }
            }
        }
    }
}

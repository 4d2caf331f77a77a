//! What servers of the lab say, and the data that they stream.

use std::{net::SocketAddr, sync::LazyLock};

/// A server's answer: who served, and whom it saw.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Name of the server
    pub backend: String,
    /// The client as the server saw it
    pub client: SocketAddr,
    /// The server's own end of the connection
    pub server: SocketAddr,
    /// Bytes of the request's body, or of the datagram
    pub received: u64,
    /// [`checksum`] over them
    pub checksum: u64,
}

impl Answer {
    /// As a line of JSON.
    pub(super) fn to_json(&self) -> String {
        format!(
            "{{\"backend\": \"{}\", \"client\": \"{}\", \"server\": \"{}\", \"received\": {}, \
             \"checksum\": \"{:016x}\"}}\n",
            self.backend, self.client, self.server, self.received, self.checksum
        )
    }

    /// As a datagram of `length` bytes, or as many as the text takes; [`pattern`] follows the text.
    pub(super) fn to_datagram(&self, length: usize) -> Vec<u8> {
        let mut datagram = self.to_json().into_bytes();
        let left = length.saturating_sub(datagram.len());
        datagram.extend(pattern_run(0, left));
        datagram
    }

    /// The answer, and what follows its text; an error is the text that is none.
    pub(super) fn from_datagram(datagram: &[u8]) -> Result<(Self, &[u8]), String> {
        let end =
            datagram.iter().position(|byte| *byte == b'\n').map_or(datagram.len(), |at| at + 1);
        let (text, rest) = datagram.split_at(end);
        let text = String::from_utf8_lossy(text);
        Self::from_json(&text).map(|answer| (answer, rest)).ok_or_else(|| text.into_owned())
    }

    /// Reads what [`Answer::to_json`] writes.
    pub(super) fn from_json(text: &str) -> Option<Self> {
        Some(Self {
            backend: field(text, "backend")?.to_owned(),
            client: field(text, "client")?.parse().ok()?,
            server: field(text, "server")?.parse().ok()?,
            received: field(text, "received")?.parse().ok()?,
            checksum: u64::from_str_radix(field(text, "checksum")?, 16).ok()?,
        })
    }
}

/// What a datagram begins with that asks for an answer of some length, in decimal, and a line feed.
pub(super) const ASK_FOR_BYTES: &str = "/bytes/";

/// The length of answer that a datagram asks for, 0 where it does not.
pub(super) fn wanted_length(question: &[u8]) -> usize {
    let number = question.strip_prefix(ASK_FOR_BYTES.as_bytes()).and_then(|rest| {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        std::str::from_utf8(&rest[..end]).ok()?.parse::<u16>().ok()
    });
    number.unwrap_or_default().into()
}

/// The value of `name`. Names of servers hold no quotes, commas or braces, so none can be mistaken.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\"{name}\": "))?;
    let end = rest.find([',', '}'])?;
    Some(rest[..end].trim_matches('"'))
}

/// Period of [`pattern`].
const PERIOD: u64 = 251;
/// Longest [`pattern_run`].
pub(super) const RUN: usize = 64 << 10;

/// Byte `at` of the endless data that servers stream and clients upload. No power of two divides
/// its period, so that a segment that is lost or doubled shows.
pub fn pattern(at: u64) -> u8 {
    (at % PERIOD) as u8
}

/// Bytes `at..at + length` of [`pattern`], at most [`RUN`] of them.
pub(super) fn pattern_run(at: u64, length: usize) -> &'static [u8] {
    static RUNS: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..PERIOD + RUN as u64).map(pattern).collect());
    let start = (at % PERIOD) as usize;
    &RUNS[start..start + length.min(RUN)]
}

/// How many bytes of `bytes` are those of [`pattern`] from `at` on, before the first that is not.
pub(super) fn pattern_prefix(mut at: u64, bytes: &[u8]) -> usize {
    let mut right = 0;
    for part in bytes.chunks(RUN) {
        let expected = pattern_run(at, part.len());
        if part != expected {
            return right + part.iter().zip(expected).take_while(|(a, b)| a == b).count();
        }
        right += part.len();
        at += part.len() as u64;
    }
    right
}

/// FNV-1a over `bytes`, continued from `state`; begin with 0.
pub fn checksum(state: u64, bytes: &[u8]) -> u64 {
    // The offset basis is folded in here, so that callers need not know it.
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    bytes.iter().fold(state ^ BASIS, |state, byte| {
        (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }) ^ BASIS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_survives_its_text() {
        for (client, server) in [
            ("198.51.100.2:40000", "203.0.113.10:80"),
            ("[2001:db8:1::2]:40000", "[2001:db8:f::10]:80"),
        ] {
            let answer = Answer {
                backend: "b-1".into(),
                client: client.parse().unwrap(),
                server: server.parse().unwrap(),
                received: 1 << 40,
                checksum: 0x0123_4567_89ab_cdef,
            };
            assert_eq!(Answer::from_json(&answer.to_json()), Some(answer.clone()));
            for length in [0, 8192, 60_000] {
                let datagram = answer.to_datagram(length);
                let (read, padding) = Answer::from_datagram(&datagram).unwrap();
                assert_eq!(read, answer);
                assert_eq!(pattern_prefix(0, padding), padding.len());
                assert!(datagram.len() == length || length == 0 && padding.is_empty());
            }
        }
        assert_eq!(Answer::from_json("{\"backend\": \"b\"}"), None);
    }

    #[test]
    fn a_question_may_ask_for_a_length() {
        assert_eq!(wanted_length(b"/bytes/60000\n\0\x01"), 60_000);
        for other in [&b"/bytes/60000"[..], b"/bytes/x\n", b"/bytes/99999\n", b"\0\x01\x02", b""] {
            assert_eq!(wanted_length(other), 0);
        }
        assert_eq!(Answer::from_datagram(b"no").unwrap_err(), "no");
    }

    #[test]
    fn runs_are_the_pattern_wherever_they_begin() {
        for at in [0, 1, 250, 251, 65_535, 1 << 33] {
            let run = pattern_run(at, RUN);
            assert!(run.iter().zip(at..).all(|(byte, at)| *byte == pattern(at)));
            assert_eq!((run.len(), pattern_run(at, 5).len()), (RUN, 5));
        }
        let mut bytes: Vec<u8> = (7..200_007).map(pattern).collect();
        assert_eq!(pattern_prefix(7, &bytes), bytes.len());
        assert_eq!(pattern_prefix(8, &bytes), 0);
        bytes[150_000] ^= 1;
        assert_eq!(pattern_prefix(7, &bytes), 150_000);
    }

    #[test]
    fn a_checksum_does_not_depend_on_how_the_data_was_cut() {
        let data: Vec<u8> = (0..1000).map(pattern).collect();
        let whole = checksum(0, &data);
        let parts = data.chunks(7).fold(0, checksum);
        assert_eq!(whole, parts);
        let mut other = data;
        other.swap(300, 301);
        assert_ne!(checksum(0, &other), whole);
        // FNV-1a of "a", from its authors' test vectors.
        assert_eq!(checksum(0, b"a") ^ 0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c);
    }
}

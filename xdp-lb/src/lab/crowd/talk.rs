//! One connection of a crowd, without I/O: what it sends, and what must come back.

use std::time::Instant;

use crate::lab::{Answer, answer::pattern_run};

/// Bytes of most exchanges, and of every 16th, which takes several segments.
const SHORT: usize = 64;
const LONG: usize = 5_000;
const LONG_EVERY: u64 = 16;
/// A greeting's answer is far shorter.
const LONGEST_GREETING: usize = 4_096;

/// What the bytes that came in meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Heard {
    /// More must come
    Part,
    /// The answer is complete, and right
    All,
    /// It is not what was sent
    Wrong,
}

/// A connection: first asked who serves it, then an echo.
#[derive(Debug)]
pub(super) struct Talk {
    /// Who it is among all, from 1 on in the order of their making
    pub(super) id: u64,
    /// Who serves it, once it has said so
    pub(super) backend: Option<String>,
    /// When the last exchange was complete, or the connection was begun
    pub(super) good: Instant,
    /// When the exchange began that is under way, connecting included
    pub(super) asked: Option<Instant>,
    /// When the last complete one began
    pub(super) began: Instant,
    /// Exchanges so far
    pub(super) exchanges: u64,
    heard: Vec<u8>,
}

impl Talk {
    pub(super) fn new(id: u64, now: Instant) -> Self {
        Self {
            id,
            backend: None,
            good: now,
            asked: Some(now),
            began: now,
            exchanges: 0,
            heard: Vec::new(),
        }
    }

    /// Bytes to send for the next exchange.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<u8> {
        self.asked = Some(now);
        if self.backend.is_none() {
            return b"GET / HTTP/1.1\r\nHost: crowd\r\n\r\nGET /echo HTTP/1.1\r\nHost: crowd\r\n\r\n"
                .to_vec();
        }
        self.question()
    }

    /// Its number and that of the exchange, then data that no other exchange has at this place.
    fn question(&self) -> Vec<u8> {
        let length = if self.exchanges % LONG_EVERY == LONG_EVERY - 1 { LONG } else { SHORT };
        let mut question = [self.id.to_be_bytes(), self.exchanges.to_be_bytes()].concat();
        question.extend(pattern_run(self.id + self.exchanges, length - question.len()));
        question
    }

    /// Takes in what has come.
    pub(super) fn hear(&mut self, bytes: &[u8], now: Instant) -> Heard {
        let Some(asked) = self.asked else { return Heard::Wrong };
        self.heard.extend(bytes);
        let heard = if self.backend.is_none() { self.greeting() } else { self.echo() };
        if heard == Heard::All {
            self.heard.clear();
            self.exchanges += 1;
            self.good = now;
            self.began = asked;
            self.asked = None;
        }
        heard
    }

    /// Two answers: who serves, and that all comes back from now on.
    fn greeting(&mut self) -> Heard {
        let text = String::from_utf8_lossy(&self.heard);
        if !text.contains("HTTP/1.1 101 ") || !text.ends_with("\r\n\r\n") {
            let hopeless = text.len() > LONGEST_GREETING;
            return if hopeless { Heard::Wrong } else { Heard::Part };
        }
        match Answer::from_json(&text) {
            Some(answer) => {
                self.backend = Some(answer.backend);
                Heard::All
            }
            None => Heard::Wrong,
        }
    }

    fn echo(&self) -> Heard {
        let question = self.question();
        if !question.starts_with(&self.heard) {
            Heard::Wrong
        } else if self.heard.len() == question.len() {
            Heard::All
        } else {
            Heard::Part
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeted(id: u64) -> Talk {
        let now = Instant::now();
        let mut talk = Talk::new(id, now);
        assert!(talk.ask(now).starts_with(b"GET / "));
        let answer = Answer {
            backend: "b3".to_owned(),
            client: "198.51.100.2:40000".parse().unwrap(),
            server: "203.0.113.10:80".parse().unwrap(),
            received: 0,
            checksum: 0,
        };
        let first = format!("HTTP/1.1 200 OK\r\n\r\n{}", answer.to_json());
        assert_eq!(talk.hear(first.as_bytes(), now), Heard::Part);
        let second = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n";
        assert_eq!(talk.hear(second, now), Heard::All);
        assert_eq!(talk.backend.as_deref(), Some("b3"));
        talk
    }

    #[test]
    fn every_byte_of_every_exchange_is_looked_at() {
        let now = Instant::now();
        let mut talk = greeted(7);
        let mut lengths = Vec::new();
        for _ in 0..32 {
            let question = talk.ask(now);
            lengths.push(question.len());
            let (first, rest) = question.split_at(5);
            assert_eq!(talk.hear(first, now), Heard::Part);
            assert_eq!(talk.hear(rest, now), Heard::All);
        }
        assert!(lengths.contains(&SHORT) && lengths.contains(&LONG));
        let mut question = talk.ask(now);
        question[40] ^= 1;
        assert_eq!(talk.hear(&question, now), Heard::Wrong);
    }

    #[test]
    fn what_belongs_to_another_connection_or_exchange_is_wrong() {
        let now = Instant::now();
        let (mut one, mut other) = (greeted(1), greeted(2));
        let question = other.ask(now);
        one.ask(now);
        assert_eq!(one.hear(&question, now), Heard::Wrong);
        let mut one = greeted(1);
        let first = one.ask(now);
        assert_eq!(one.hear(&first, now), Heard::All);
        assert_eq!(one.hear(&first, now), Heard::Wrong, "nothing was asked");
        one.ask(now);
        assert_eq!(one.hear(&first, now), Heard::Wrong, "an exchange of before");
    }
}

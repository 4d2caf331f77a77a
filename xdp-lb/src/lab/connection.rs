//! One HTTP/1.1 connection of a lab's server, without I/O: bytes in, bytes out.
//!
//! It understands what the lab's client and curl send: GET and HEAD, and POST or PUT with a
//! `Content-Length`.

use std::{net::SocketAddr, ops::Range};

use super::{
    Answer,
    answer::{RUN, checksum, pattern_run},
};

/// Longest request head.
const LONGEST_HEAD: usize = 16 << 10;
/// Bytes of a stream that are made at a time.
const CHUNK: u64 = RUN as u64;

/// State of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    client: SocketAddr,
    server: SocketAddr,
    input: Vec<u8>,
    output: Vec<u8>,
    stream: Range<u64>,
    body: Option<Body>,
    echo: bool,
    closing: bool,
    requests: u64,
}

/// A request's body on its way in.
#[derive(Clone, Copy, Debug)]
struct Body {
    left: u64,
    received: u64,
    checksum: u64,
}

impl Connection {
    pub(super) fn new(name: &str, client: SocketAddr, server: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            client,
            server,
            input: Vec::new(),
            output: Vec::new(),
            stream: 0..0,
            body: None,
            echo: false,
            closing: false,
            requests: 0,
        }
    }

    /// Takes in what the client sent and does what it asks for.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        if self.echo {
            self.output.extend(bytes);
            return;
        }
        self.input.extend(bytes);
        while self.step() {}
    }

    /// Bytes to send next; empty when there are none for now.
    pub(super) fn output(&mut self) -> &[u8] {
        if self.output.is_empty() && !self.stream.is_empty() {
            let end = self.stream.end.min(self.stream.start + CHUNK);
            self.output.extend(pattern_run(self.stream.start, (end - self.stream.start) as usize));
            self.stream.start = end;
        }
        &self.output
    }

    /// The first `count` bytes of the output have been sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.output.drain(..count);
    }

    /// Nothing more will be sent.
    pub(super) fn finished(&self) -> bool {
        self.closing && self.body.is_none() && self.output.is_empty() && self.stream.is_empty()
    }

    /// Requests that were answered since the last call.
    pub(super) fn take_requests(&mut self) -> u64 {
        std::mem::take(&mut self.requests)
    }

    /// Does one thing with the input; false when it needs more of it.
    fn step(&mut self) -> bool {
        if let Some(mut body) = self.body.take() {
            let here = self.input.len().min(usize::try_from(body.left).unwrap_or(usize::MAX));
            body.checksum = checksum(body.checksum, &self.input[..here]);
            body.received += here as u64;
            body.left -= here as u64;
            self.input.drain(..here);
            if body.left > 0 {
                self.body = Some(body);
                return false;
            }
            self.answer(body.received, body.checksum, true);
            return !self.input.is_empty();
        }
        let Some(length) = self.input.windows(4).position(|end| end == b"\r\n\r\n") else {
            if self.input.len() > LONGEST_HEAD {
                self.refuse("431 Request Header Fields Too Large");
            }
            return false;
        };
        let head: Vec<u8> = self.input.drain(..length + 4).collect();
        self.request(&String::from_utf8_lossy(&head));
        !self.input.is_empty() && !self.closing
    }

    fn request(&mut self, head: &str) {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut length = 0;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
                self.closing = true;
            }
            if name.eq_ignore_ascii_case("content-length") {
                match value.parse() {
                    Ok(value) => length = value,
                    Err(_) => return self.refuse("400 Bad Request"),
                }
            }
            if name.eq_ignore_ascii_case("expect") {
                self.output.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
        }
        match (method, path) {
            ("GET", "/echo") => {
                self.requests += 1;
                self.echo = true;
                self.output.extend(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
                let early = std::mem::take(&mut self.input);
                self.output.extend(early);
            }
            ("GET", path) if path.starts_with("/bytes/") => match path["/bytes/".len()..].parse() {
                Ok(length) => {
                    self.head("200 OK", "application/octet-stream", length);
                    self.stream = 0..length;
                }
                Err(_) => self.refuse("400 Bad Request"),
            },
            ("GET" | "HEAD", _) => self.answer(0, 0, method == "GET"),
            ("POST" | "PUT", _) => {
                self.body = Some(Body { left: length, received: 0, checksum: 0 });
                while length == 0 && self.body.is_some() {
                    self.step();
                }
            }
            _ => self.refuse("405 Method Not Allowed"),
        }
    }

    fn answer(&mut self, received: u64, checksum: u64, with_body: bool) {
        let answer = Answer {
            backend: self.name.clone(),
            client: self.client,
            server: self.server,
            received,
            checksum,
        };
        let text = answer.to_json();
        self.head("200 OK", "application/json", text.len() as u64);
        if with_body {
            self.output.extend(text.bytes());
        }
    }

    fn refuse(&mut self, status: &str) {
        self.closing = true;
        self.head(status, "text/plain", 0);
    }

    fn head(&mut self, status: &str, kind: &str, length: u64) {
        self.requests += 1;
        let connection = if self.closing { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 {status}\r\nServer: {}\r\nContent-Type: {kind}\r\n\
             Content-Length: {length}\r\nConnection: {connection}\r\n\r\n",
            self.name
        );
        self.output.extend(head.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        let client = "198.51.100.2:40000".parse().unwrap();
        Connection::new("b1", client, "203.0.113.10:80".parse().unwrap())
    }

    fn all(connection: &mut Connection) -> String {
        let mut text = Vec::new();
        while !connection.output().is_empty() {
            text.extend(connection.output());
            connection.sent(connection.output.len());
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn body(text: &str) -> &str {
        text.split_once("\r\n\r\n").unwrap().1
    }

    #[test]
    fn a_request_may_come_in_pieces_and_two_at_once() {
        let mut connection = connection();
        connection.receive(b"GET / HTTP/1.1\r\nHost: x\r\n");
        assert_eq!(all(&mut connection), "");
        connection.receive(b"\r\nGET / HTTP/1.1\r\n\r\n");
        let text = all(&mut connection);
        assert_eq!(text.matches("200 OK").count(), 2);
        assert!(text.contains("keep-alive"));
        assert_eq!(connection.take_requests(), 2);
        assert!(!connection.finished());
        let answer = Answer::from_json(body(&text)).unwrap();
        assert_eq!((answer.backend.as_str(), answer.client.port()), ("b1", 40_000));
    }

    #[test]
    fn it_closes_when_asked_to_and_not_before_all_is_sent() {
        let mut connection = connection();
        connection.receive(b"GET /bytes/100000 HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(!connection.finished());
        let text = all(&mut connection);
        assert!(text.contains("Content-Length: 100000"));
        assert!(connection.finished());
    }

    #[test]
    fn an_upload_is_counted_and_summed() {
        let mut connection = connection();
        let head = b"PUT / HTTP/1.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\n";
        connection.receive(head);
        assert!(!connection.finished());
        connection.receive(b"x");
        assert!(all(&mut connection).contains("\"received\": 1"));
        assert!(connection.finished());

        let mut connection = self::connection();
        connection.receive(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab");
        assert_eq!(all(&mut connection), "");
        connection.receive(b"cdeGET / HTTP/1.1\r\n\r\n");
        let text = all(&mut connection);
        assert_eq!(text.matches("200 OK").count(), 2);
        let answer = Answer::from_json(body(&text)).unwrap();
        assert_eq!((answer.received, answer.checksum), (5, checksum(0, b"abcde")));
        connection.receive(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
        assert!(all(&mut connection).contains("\"received\": 0"));
    }

    #[test]
    fn after_the_switch_every_byte_comes_back() {
        let mut connection = connection();
        connection.receive(b"GET /echo HTTP/1.1\r\n\r\nearly");
        assert!(all(&mut connection).ends_with("\r\n\r\nearly"));
        connection.receive(b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(all(&mut connection), "GET / HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn what_it_does_not_understand_ends_the_connection() {
        for (request, status) in [
            ("DELETE / HTTP/1.1\r\n\r\n", "405"),
            ("GET /bytes/x HTTP/1.1\r\n\r\n", "400"),
            ("PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "400"),
            (&"x".repeat(LONGEST_HEAD + 1), "431"),
        ] {
            let mut connection = connection();
            connection.receive(request.as_bytes());
            let text = all(&mut connection);
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
            assert!(connection.finished());
        }
    }
}

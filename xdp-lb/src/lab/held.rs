//! One HTTP connection as a client has it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use super::{Answer, ClientError, socket::path_mtu};

/// Bytes that are read at a time.
const BUFFER: usize = 64 << 10;

/// An HTTP response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// Status code
    pub status: u16,
    /// Body
    pub body: Vec<u8>,
}

/// A connection that is kept open.
#[derive(Debug)]
pub struct Held {
    stream: BufReader<TcpStream>,
    local: SocketAddr,
    server: SocketAddr,
    echoes: bool,
}

impl Held {
    pub(super) fn new(stream: TcpStream, server: SocketAddr) -> io::Result<Self> {
        let local = stream.local_addr()?;
        Ok(Self { stream: BufReader::with_capacity(BUFFER, stream), local, server, echoes: false })
    }

    /// The client's end.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The MTU of the path to the server, as far as the client's kernel has learnt it.
    pub fn path_mtu(&self) -> Result<u32, ClientError> {
        path_mtu(self.stream.get_ref(), self.server)
            .map_err(|source| ClientError::Talk { server: self.server, source })
    }

    /// Sends another request on the same connection.
    pub fn ask(&mut self) -> Result<Answer, ClientError> {
        let response = self.fetch("/", false)?;
        self.parse(&response)
    }

    /// GET on the same connection.
    pub fn get(&mut self, path: &str) -> Result<Response, ClientError> {
        self.fetch(path, false)
    }

    /// Has `bytes` echoed. The first call turns the connection into an echo for good: requests
    /// sent on it afterwards come back as they are.
    pub fn echo(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ClientError> {
        let server = self.server;
        if !self.echoes {
            let response = self.fetch("/echo", false)?;
            if response.status != 101 {
                let what = format!("status {} to /echo", response.status);
                return Err(ClientError::Unexpected { server, what });
            }
            self.echoes = true;
        }
        self.send(bytes)?;
        let mut back = vec![0; bytes.len()];
        let read = self.stream.read_exact(&mut back);
        read.map_err(|source| ClientError::Talk { server, source })?;
        Ok(back)
    }

    pub(super) fn fetch(&mut self, path: &str, last: bool) -> Result<Response, ClientError> {
        self.send(request(self.server, path, last).as_bytes())?;
        let response = self.response()?;
        if last {
            // The server closes first, so that the client's port is free again at once.
            let _ = self.stream.read(&mut [0]);
        }
        Ok(response)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let sent = self.stream.get_mut().write_all(bytes);
        sent.map_err(|source| ClientError::Talk { server: self.server, source })
    }

    pub(super) fn response(&mut self) -> Result<Response, ClientError> {
        let server = self.server;
        read_response(&mut self.stream).map_err(|source| ClientError::Talk { server, source })
    }

    /// GET of a long body, of which `take` gets each part as it comes; returns the status. It goes
    /// on until `deadline`.
    pub(super) fn stream(
        &mut self,
        path: &str,
        deadline: Instant,
        mut take: impl FnMut(&[u8]),
    ) -> Result<u16, ClientError> {
        let server = self.server;
        let talk = |source| ClientError::Talk { server, source };
        self.send(request(server, path, true).as_bytes())?;
        let (status, mut left) = read_head(&mut self.stream).map_err(talk)?;
        while left > 0 {
            if Instant::now() > deadline {
                return Err(talk(io::ErrorKind::TimedOut.into()));
            }
            let part = self.stream.fill_buf().map_err(talk)?;
            let length = part.len().min(left);
            if length == 0 {
                return Err(talk(io::ErrorKind::UnexpectedEof.into()));
            }
            take(&part[..length]);
            self.stream.consume(length);
            left -= length;
        }
        Ok(status)
    }

    pub(super) fn parse(&self, response: &Response) -> Result<Answer, ClientError> {
        let text = String::from_utf8_lossy(&response.body);
        Answer::from_json(&text).filter(|_| response.status == 200).ok_or_else(|| {
            let what = format!("status {} with {text:?}", response.status);
            ClientError::Unexpected { server: self.server, what }
        })
    }
}

fn request(server: SocketAddr, path: &str, last: bool) -> String {
    let connection = if last { "close" } else { "keep-alive" };
    format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: {connection}\r\n\r\n")
}

fn read_response(stream: &mut impl BufRead) -> io::Result<Response> {
    let (status, length) = read_head(stream)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Response { status, body })
}

/// Status, and the length of the body.
fn read_head(stream: &mut impl BufRead) -> io::Result<(u16, usize)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| bad("no HTTP status"))?;
    let mut length = 0;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().map_err(|_| bad("a bad Content-Length"))?;
            }
            Some(_) => {}
            None => return Ok((status, length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_ends_where_its_head_says() {
        let mut text = &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: y\r\n\r\nabcHTTP"[..];
        let response = read_response(&mut text).unwrap();
        assert_eq!(response, Response { status: 200, body: b"abc".to_vec() });
        assert_eq!(text, b"HTTP");
    }

    #[test]
    fn a_response_that_ends_early_is_an_error() {
        for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"] {
            let error = read_response(&mut text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{text:?}");
        }
        assert!(read_response(&mut &b"SSH-2.0-x\r\n"[..]).is_err());
    }
}

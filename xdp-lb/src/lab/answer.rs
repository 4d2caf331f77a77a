//! What servers of the lab say, and the data that they stream.

use std::net::SocketAddr;

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

/// The value of `name`. Names of servers hold no quotes, commas or braces, so none can be mistaken.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\"{name}\": "))?;
    let end = rest.find([',', '}'])?;
    Some(rest[..end].trim_matches('"'))
}

/// Byte `at` of the endless data that servers stream and clients upload. No power of two divides
/// its period, so that a segment that is lost or doubled shows.
pub fn pattern(at: u64) -> u8 {
    (at % 251) as u8
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
            assert_eq!(Answer::from_json(&answer.to_json()), Some(answer));
        }
        assert_eq!(Answer::from_json("{\"backend\": \"b\"}"), None);
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

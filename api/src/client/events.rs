//! Reads server-sent events.

use axum::http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::task::JoinHandle;

use super::{Client, ClientError};

/// Longest event, in bytes.
const LONGEST: usize = 16 << 20;

/// What a server sends as long as it is read.
pub struct Events {
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
    /// What has come and is no whole event yet
    rest: Vec<u8>,
}

/// An event with a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// What it is
    pub name: String,
    /// Its data: of this API JSON
    pub data: String,
}

impl Client {
    /// Reads a stream of events; `path` begins behind `/api/v1`.
    ///
    /// # Errors
    ///
    /// Where there is no answer, or a problem.
    pub async fn events(&self, path: &str) -> Result<Events, ClientError> {
        let (response, connection) = self.open(Method::GET, path, None, &[]).await?;
        Ok(Events { body: response.into_body(), connection, rest: Vec::new() })
    }
}

impl Events {
    /// The next event; none where the server has ended the stream.
    ///
    /// # Errors
    ///
    /// Where the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            // Fields end with a newline, events with an empty line (HTML, 9.2.6).
            while let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let text: Vec<u8> = self.rest.drain(..end + 2).collect();
                if let Some(event) = event(&String::from_utf8_lossy(&text)) {
                    return Ok(Some(event));
                }
            }
            if self.rest.len() > LONGEST {
                return Err(ClientError::Broken("an event has no end".to_owned()));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| ClientError::Broken(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What the lines say; nothing where they are a comment.
fn event(text: &str) -> Option<Event> {
    let field = |name: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        lines.map(|value| value.strip_prefix(' ').unwrap_or(value)).collect::<Vec<_>>().join("\n")
    };
    let (name, data) = (field("event"), field("data"));
    (!name.is_empty() || !data.is_empty()).then_some(Event { name, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_its_name_and_the_lines_of_its_data() {
        let of = |text| event(text).map(|one| (one.name, one.data));
        let is = |name: &str, data: &str| Some((name.to_owned(), data.to_owned()));
        assert_eq!(of("event: packet\ndata: {\"a\": 1}\n\n"), is("packet", "{\"a\": 1}"));
        assert_eq!(of("data:a\ndata: b\n\n"), is("", "a\nb"));
        assert_eq!(of(": keep alive\n\n"), None);
    }
}

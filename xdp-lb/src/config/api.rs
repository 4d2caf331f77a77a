//! Where the API is served, and to whom.

use std::{net::SocketAddr, path::PathBuf};

use super::{mistake::quote, read::At};

/// The socket where nothing is said.
pub const SOCKET: &str = "/run/xdp-lb/api.sock";

/// Where the API is served, and to whom.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiConfig {
    /// Unix socket; absolute
    pub socket: PathBuf,
    /// Name of the group that may use the socket
    pub group: Option<String>,
    /// Address and port for TCP
    pub listen: Option<SocketAddr>,
    /// File with tokens that may read
    pub read_token_file: Option<PathBuf>,
    /// File with tokens that may do everything
    pub write_token_file: Option<PathBuf>,
    /// Files with a certificate and its key, in PEM
    pub tls: Option<(PathBuf, PathBuf)>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            socket: SOCKET.into(),
            group: None,
            listen: None,
            read_token_file: None,
            write_token_file: None,
            tls: None,
        }
    }
}

/// The section `api`.
pub(super) fn api(at: &At<'_>) -> Option<ApiConfig> {
    let keys = &["socket", "group", "listen", "readTokenFile", "writeTokenFile", "tls"];
    let fields = at.fields(keys)?;
    let file = |key| fields.optional(key).map(|at| path(&at));
    let socket = fields.optional("socket").map_or(Some(SOCKET.into()), |at| path(&at));
    let group =
        fields.optional("group").map(|at| at.text("the name of a group").map(str::to_owned));
    let read_token_file = file("readTokenFile");
    let write_token_file = file("writeTokenFile");
    let tls = fields.optional("tls").map(|at| {
        let fields = at.fields(&["certificate", "key"])?;
        let certificate = fields.required("certificate", "certificate: /etc/xdp-lb/tls.crt");
        let certificate = certificate.and_then(|at| path(&at));
        let key = fields.required("key", "key: /etc/xdp-lb/tls.key").and_then(|at| path(&at));
        Some((certificate?, key?))
    });
    let tokens = read_token_file.is_some() || write_token_file.is_some();
    let listen = fields.optional("listen").map(|at| listen(&at, tokens, tls.is_some()));
    Some(ApiConfig {
        socket: socket?,
        group: wanted(group)?,
        listen: wanted(listen)?,
        read_token_file: wanted(read_token_file)?,
        write_token_file: wanted(write_token_file)?,
        tls: wanted(tls)?,
    })
}

/// What may be left out, but must be right where it is not.
#[expect(
    clippy::option_option,
    reason = "outside: whether it is right; inside: whether it is there"
)]
pub(super) fn wanted<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => value.map(Some),
    }
}

pub(super) fn path(at: &At<'_>) -> Option<PathBuf> {
    let text = at.text("an absolute path, like `/run/xdp-lb/api.sock`")?;
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        at.mistake(format_args!("\"{}\" is no absolute path: begin it with `/`", quote(text)));
        return None;
    }
    Some(path)
}

fn listen(at: &At<'_>, tokens: bool, tls: bool) -> Option<SocketAddr> {
    let wanted = "an address and a port, like `127.0.0.1:9870` or `\"[::1]:9870\"`";
    let Ok(listen) = at.text(wanted)?.parse::<SocketAddr>() else {
        at.expected(wanted);
        return None;
    };
    if listen.ip().is_loopback() || tokens && tls {
        return Some(listen);
    }
    at.mistake(format_args!(
        "{} is no loopback address, so the API needs `readTokenFile` or `writeTokenFile`, and `tls`",
        listen.ip()
    ));
    None
}

//! A service as users write it, for the document and for clients.
//!
//! The daemon's configuration reader decides what is accepted; these types only describe it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A service, with the keys of the configuration file.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Unique name: 1 to 253 of the characters `a-z A-Z 0-9 . _ / -`. May be left out where the path
    /// has it.
    #[schema(max_length = 253, min_length = 1, pattern = "^[A-Za-z0-9._/-]+$")]
    pub name: Option<String>,
    /// How packets get to the backends: `l2`, `ipip`, `geneve`, `local`, `snat` or `hybrid`;
    /// `defaultMode` where it is left out
    pub mode: Option<String>,
    /// Slots of the Maglev table; the smallest that suits where it is left out
    pub table_size: Option<u32>,
    /// How long a client keeps its backend, whose address alone decides then, like `3h`
    pub session_affinity: Option<String>,
    /// Networks whose clients alone may use frontends with an address
    pub source_ranges: Option<Vec<String>>,
    /// What becomes of packets where there is no backend: `reject` or `drop`
    pub no_backends: Option<String>,
    /// How the backends are asked whether they are well; nobody asks where it is left out
    pub health_check: Option<HealthCheckSpec>,
    /// Where clients reach the service; at least one
    #[schema(required)]
    pub frontends: Vec<FrontendSpec>,
    /// Who serves; `[]` for nobody
    #[schema(required)]
    pub backends: Vec<BackendSpec>,
}

/// How the backends of a service are asked whether they are well.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthCheckSpec {
    /// `tcp`, `http`, `https` or `udp`
    #[serde(rename = "type")]
    #[schema(required)]
    pub kind: Option<String>,
    /// From one question to the next: `1s` to `1h`; `5s` where it is left out
    pub interval: Option<String>,
    /// How long an answer may take, at most `interval`; `2s` where it is left out
    pub timeout: Option<String>,
    /// Good answers in a row until a backend is up; 2 where it is left out
    #[schema(minimum = 1, maximum = 100)]
    pub rise: Option<u32>,
    /// Bad answers in a row until it is down; 3 where it is left out
    #[schema(minimum = 1, maximum = 100)]
    pub fall: Option<u32>,
    /// The port that is asked; the backend's where it is left out
    #[schema(minimum = 1)]
    pub port: Option<u16>,
    /// What happens where no backend is up: those that were up last go on (`keep`), or new flows are
    /// refused (`reject`)
    pub all_down: Option<String>,
    /// Path of the request (`http`, `https`); `/` where it is left out
    pub path: Option<String>,
    /// Host of the request (`http`, `https`); the address where it is left out
    pub host: Option<String>,
    /// Good status codes (`http`, `https`), like `200-299`; `200-399` where it is left out
    pub status: Option<String>,
    /// Whether the answer's `X-Load-Balancing-Endpoint-Weight` sets the weight (`http`, `https`)
    pub weight_header: Option<bool>,
    /// Payload (`udp`): text, or bytes in hexadecimal behind `0x`
    pub send: Option<String>,
    /// What the answer begins with (`udp`); any answer will do where it is left out
    pub expect: Option<String>,
}

/// Where clients reach a service: at an address and port, or at a port of the node's own addresses.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendSpec {
    /// IPv4 or IPv6 address
    pub address: Option<String>,
    /// Port
    #[schema(minimum = 1)]
    pub port: Option<u16>,
    /// Port on the node's own addresses, instead of `address` and `port`
    #[schema(minimum = 1)]
    pub node_port: Option<u16>,
    /// `TCP`, `UDP` or `SCTP`; `TCP` where it is left out
    pub protocol: Option<String>,
}

/// Who serves.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendSpec {
    /// IPv4 or IPv6 address
    pub address: Option<String>,
    /// Port; the frontend's where it is left out
    #[schema(minimum = 1)]
    pub port: Option<u16>,
    /// Share of new flows; 0 drains, 1 where it is left out
    pub weight: Option<u16>,
    /// Address of the node that it runs on
    pub node: Option<String>,
}

//! What users declare, checked: every value here is one that the data path can serve.

use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr};

use xdp_lb_abi::FrontendKey;
pub use xdp_lb_abi::Mode;

/// Transport protocol of a frontend.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Protocol {
    /// IP protocol 6
    Tcp,
    /// IP protocol 17
    Udp,
    /// IP protocol 132
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this IP protocol number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A text that names no protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the protocol is TCP, UDP or SCTP")]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text {
            "TCP" | "tcp" => Ok(Self::Tcp),
            "UDP" | "udp" => Ok(Self::Udp),
            "SCTP" | "sctp" => Ok(Self::Sctp),
            _ => Err(UnknownProtocol),
        }
    }
}

/// Address, port and protocol that clients use.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Frontend {
    /// Address that clients use
    pub address: IpAddr,
    /// Port that clients use
    pub port: NonZeroU16,
    /// Transport protocol
    pub protocol: Protocol,
}

impl Frontend {
    /// The key of the frontend table.
    pub fn key(&self) -> FrontendKey {
        FrontendKey::new(self.address.into(), self.port.get(), self.protocol.number())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}:{}/{}", self.port, self.protocol),
            IpAddr::V6(v6) => write!(f, "[{v6}]:{}/{}", self.port, self.protocol),
        }
    }
}

/// Address that serves, and its share.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Backend {
    /// Address that serves
    pub address: IpAddr,
    /// Port that serves; the frontend's where there is none
    pub port: Option<NonZeroU16>,
    /// Share of new flows in proportion to the other backends' weights; 0 drains
    pub weight: u16,
}

/// A service: frontends that share their backends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// Unique name
    pub name: String,
    /// Not empty, and no frontend is in two services
    pub frontends: Vec<Frontend>,
    /// How packets get to the backends
    pub mode: Mode,
    /// Maglev table size, one of [`crate::maglev::LADDER`]; the smallest that suits where there is
    /// none
    pub table_size: Option<u32>,
    /// At most [`xdp_lb_abi::MAX_SERVICE_BACKENDS`], no two with the same address and port
    pub backends: Vec<Backend>,
}

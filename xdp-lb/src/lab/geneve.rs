//! Geneve headers (RFC 8926), and the option by which an instance tells the next one which frontend
//! a client used.
//!
//! As the rest of [`super::layers`], this is written beside the RFC for captures, and shares nothing
//! with the data path. The option, of a class that the IANA registry leaves to experiments (RFC
//! 8926, section 7):
//!
//! ```text
//! class 0xff4c (2) · type 0x81 for IPv4, 0x82 for IPv6 (1) · length in words (1)
//! frontend's port (2) · zero (2) · frontend's address (4 or 16)
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// UDP port of Geneve.
pub const PORT: u16 = 6081;
/// Class of the option that names a frontend.
pub const CLASS: u16 = 0xff4c;
/// Type of that option for an IPv4 frontend; the highest bit says that it is critical.
pub const FRONTEND_4: u8 = 0x81;
/// Type of that option for an IPv6 frontend.
pub const FRONTEND_6: u8 = 0x82;

/// Bytes of the fixed header, and of an option's.
const HEADER: usize = 8;
const OPTION_HEADER: usize = 4;

/// A Geneve header and the UDP port in front of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Geneve<'a> {
    /// UDP source port
    pub source_port: u16,
    /// Flag O: no data, but a control packet
    pub control: bool,
    /// Flag C: some option has to be understood
    pub critical: bool,
    /// EtherType of what follows
    pub protocol: u16,
    /// Virtual network
    pub vni: u32,
    /// Options in their order
    pub options: Vec<TunnelOption<'a>>,
    /// What follows
    pub inner: &'a [u8],
}

/// An option of a Geneve header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TunnelOption<'a> {
    /// Whose types are meant
    pub class: u16,
    /// Type, with the critical bit
    pub kind: u8,
    /// Data, a multiple of 4 bytes
    pub data: &'a [u8],
}

impl<'a> Geneve<'a> {
    /// Takes a UDP datagram to [`PORT`] apart.
    pub(super) fn parse(datagram: &'a [u8]) -> Result<Self, String> {
        let (udp, rest) = datagram.split_first_chunk::<8>().ok_or("no UDP header is there")?;
        let Some((fixed, rest)) = rest.split_first_chunk::<HEADER>() else {
            return Err(format!("it has {} bytes", rest.len()));
        };
        if fixed[0] >> 6 != 0 {
            return Err(format!("its version is {}", fixed[0] >> 6));
        }
        let length = usize::from(fixed[0] & 0x3f) * 4;
        let Some((options, inner)) = rest.split_at_checked(length) else {
            return Err(format!("it states {length} bytes of options, and {} follow", rest.len()));
        };
        Ok(Self {
            source_port: u16::from_be_bytes([udp[0], udp[1]]),
            control: fixed[1] & 0x80 != 0,
            critical: fixed[1] & 0x40 != 0,
            protocol: u16::from_be_bytes([fixed[2], fixed[3]]),
            vni: u32::from_be_bytes([0, fixed[4], fixed[5], fixed[6]]),
            options: parse_options(options)?,
            inner,
        })
    }

    /// The frontend that an instance names, if its option is there and right.
    pub fn frontend(&self) -> Option<SocketAddr> {
        self.options.iter().find_map(TunnelOption::frontend)
    }
}

fn parse_options(mut bytes: &[u8]) -> Result<Vec<TunnelOption<'_>>, String> {
    let mut options = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<OPTION_HEADER>() {
        let length = usize::from(head[3] & 0x1f) * 4;
        let Some((data, next)) = rest.split_at_checked(length) else {
            return Err(format!("an option of {length} bytes has only {}", rest.len()));
        };
        let class = u16::from_be_bytes([head[0], head[1]]);
        options.push(TunnelOption { class, kind: head[2], data });
        bytes = next;
    }
    Ok(options)
}

impl TunnelOption<'_> {
    fn frontend(&self) -> Option<SocketAddr> {
        let (head, address) = self.data.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes([head[0], head[1]]);
        let address: IpAddr = match (self.class, self.kind) {
            (CLASS, FRONTEND_4) => Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into(),
            (CLASS, FRONTEND_6) => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
            _ => return None,
        };
        Some(SocketAddr::new(address, port))
    }
}

/// The option that names `frontend`, header included.
pub fn frontend_option(frontend: SocketAddr) -> Vec<u8> {
    let (kind, address) = match frontend.ip() {
        IpAddr::V4(address) => (FRONTEND_4, address.octets().to_vec()),
        IpAddr::V6(address) => (FRONTEND_6, address.octets().to_vec()),
    };
    let words = 1 + (address.len() / 4) as u8;
    let [high, low] = CLASS.to_be_bytes();
    let [port_high, port_low] = frontend.port().to_be_bytes();
    [&[high, low, kind, words, port_high, port_low, 0, 0], address.as_slice()].concat()
}

/// The header in front of an IP packet of this EtherType, with these options; critical if one is.
pub fn header(protocol: u16, options: &[u8]) -> Vec<u8> {
    let critical = parse_options(options)
        .is_ok_and(|options| options.iter().any(|option| option.kind & 0x80 != 0));
    let [high, low] = protocol.to_be_bytes();
    let fixed = [(options.len() / 4) as u8, u8::from(critical) << 6, high, low, 0, 0, 0, 0];
    [&fixed, options].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(header: &[u8], inner: &[u8]) -> Vec<u8> {
        [&[0xc0, 0x01, 0x17, 0xc1, 0, 0, 0, 0], header, inner].concat()
    }

    #[test]
    fn the_option_is_what_the_documentation_draws() {
        let option = frontend_option("203.0.113.80:443".parse().unwrap());
        assert_eq!(option, [0xff, 0x4c, 0x81, 2, 1, 0xbb, 0, 0, 203, 0, 113, 80]);
        let option = frontend_option("[2001:db8:80::80]:80".parse().unwrap());
        assert_eq!(option[..8], [0xff, 0x4c, 0x82, 5, 0, 80, 0, 0]);
        assert_eq!(option[8..].len(), 16);
        assert_eq!(header(0x0800, &option)[..4], [6, 0x40, 8, 0]);
        assert_eq!(header(0x86dd, &[0xff, 0x4c, 1, 0])[..4], [1, 0, 0x86, 0xdd]);
    }

    #[test]
    fn a_frontend_survives_its_option() {
        for text in ["203.0.113.80:443", "[2001:db8:80::80]:80"] {
            let frontend = text.parse().unwrap();
            let foreign = [0, 1, 0, 1, 9, 9, 9, 9];
            let options = [&foreign, frontend_option(frontend).as_slice()].concat();
            let bytes = datagram(&header(0x0800, &options), b"inner");
            let geneve = Geneve::parse(&bytes).unwrap();
            assert_eq!((geneve.frontend(), geneve.inner), (Some(frontend), &b"inner"[..]));
            assert_eq!((geneve.source_port, geneve.options.len()), (0xc001, 2));
            assert!(geneve.critical && !geneve.control);
        }
    }

    #[test]
    fn what_is_cut_or_unknown_is_said() {
        let option = frontend_option("203.0.113.80:443".parse().unwrap());
        let whole = datagram(&header(0x0800, &option), b"");
        for (length, part) in [(7, "UDP"), (12, "4 bytes"), (20, "12 bytes of options")] {
            let reason = Geneve::parse(&whole[..length]).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
        let mut version = whole.clone();
        version[8] |= 0x40;
        assert!(Geneve::parse(&version).unwrap_err().contains("version is 1"));
        let mut longer = whole.clone();
        longer[19] += 1;
        assert!(Geneve::parse(&longer).unwrap_err().contains("an option of 12 bytes"));
        // Options that add up, but name no frontend: shorter, or of another type.
        let mut shorter = whole.clone();
        shorter.drain(24..);
        (shorter[8], shorter[19]) = (2, 1);
        assert_eq!(Geneve::parse(&shorter).unwrap().frontend(), None);
        let mut other = whole;
        other[18] = 0x82;
        assert_eq!(Geneve::parse(&other).unwrap().frontend(), None);
    }
}

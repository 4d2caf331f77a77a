//! ICMP and ICMPv6 to a frontend's address: echo requests, which are answered here, and errors about
//! packets that a backend sent in the frontend's name, which go to that backend.

use xdp_lb_abi::{Address, AddressFlags, Reason};

use crate::{
    Frame, Hand, Stage, Tables, Verdict, checksum, decide,
    frame::write,
    header::TTL,
    is_foreign_frontend,
    link::Link,
    parse::{Facts, IPV4, IPV6, Kind, Word},
    quote::read_quote,
    send_on,
    stage::Quote,
};

/// Answers an echo request, or sends an error on to the backend that owns the quoted flow.
///
/// # Errors
///
/// What is counted.
#[inline(always)]
pub fn icmp<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Result<Verdict, Reason> {
    if hand.facts.kind.0 == Kind::Echo {
        return Err(echo(frame, tables, &hand.facts));
    }
    read(frame, tables, &hand.facts)
}

/// Reads what an ICMP error quotes, and goes on with that.
///
/// Reading, deciding and forwarding are stages of their own: for all at once, the stack of a program
/// (512 bytes) is too small.
#[inline(always)]
fn read<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Result<Verdict, Reason> {
    match read_quote(frame, facts) {
        // If not, it would be about a packet that somebody else sent.
        Ok(quote) if quote.source == facts.destination => {
            tables.hand_on(|hand| quote.copy_to(&mut hand.quote));
            Ok(Verdict::Next(Stage::Error))
        }
        Ok(_) | Err(_) if is_foreign_frontend(tables, &facts.destination) => Err(Reason::NotServed),
        Ok(_) | Err(_) => Err(Reason::IcmpQuote),
    }
}

/// Finds the backend whose packet an ICMP error quotes. Errors about packets of mode `snat` go on in
/// its own stage, and all others are the kernel's.
///
/// Nothing is recorded, and no error is ever answered (RFC 1122, 3.2.2).
///
/// # Errors
///
/// What is counted.
#[inline(always)]
pub fn error<T: Tables>(tables: &T, hand: &Hand) -> Result<Verdict, Reason> {
    let (facts, quote) = (&hand.facts, &hand.quote);
    match decide::decide(&quoted_flow(facts, quote), tables) {
        Ok(choice) => send_on(tables, &choice),
        Err(Reason::NoFrontend) => {
            let (port, _) = quote.ports.0;
            if !tables.settings().is_some_and(|settings| settings.is_nat_port(port)) {
                let foreign = is_foreign_frontend(tables, &facts.destination);
                return Err(if foreign { Reason::NotServed } else { Reason::Icmp });
            }
            Ok(Verdict::Next(Stage::Unsnat))
        }
        Err(Reason::TimeExceeded) => Err(Reason::TtlZero),
        Err(Reason::Reset) => Err(Reason::NoBackend),
        Err(reason) => Err(reason),
    }
}

/// The flow of the quoted packet as its client sends it: that packet was an answer.
#[inline(always)]
fn quoted_flow(facts: &Facts, quote: &Quote) -> Facts {
    let (frontend, client) = quote.ports.0;
    Facts {
        source: quote.destination,
        destination: quote.source,
        protocol: quote.protocol,
        ports: Word((client, frontend)),
        opens: Word(false),
        ..*facts
    }
}

/// Answers an echo request to a frontend's address; others are left to the kernel.
///
/// The reply is the request with its addresses swapped and a fresh TTL.
#[inline(always)]
fn echo<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Reason {
    let flags = tables.address_flags(&facts.destination);
    if flags & AddressFlags::FRONTEND == 0 {
        return Reason::Icmp;
    }
    // What is not answered here is the kernel's where the address is its own.
    let other = if flags & AddressFlags::LOCAL == 0 { Reason::NotServed } else { Reason::Icmp };
    // Options may carry a source route, which a reply would have to reverse (RFC 1122, 3.2.2.6), and
    // extension headers what only the kernel can answer: a route, an authentication.
    let header = if facts.destination.is_v6() { IPV6 } else { IPV4 };
    if facts.transport() != facts.link() + header {
        return other;
    }
    if !is_host(&facts.source) {
        return other;
    }
    match write_echo_reply(frame, facts) {
        Ok(()) => Reason::Echo,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn write_echo_reply<F: Frame>(frame: &mut F, facts: &Facts) -> Result<(), Reason> {
    // Everything is inside the linear part: the parser read the transport header.
    if facts.destination.is_v6() {
        frame.window::<IPV6>(facts.link())?[7] = TTL;
        write(frame, facts.link() + 8, facts.destination.octets())?;
        write(frame, facts.link() + 24, facts.source.octets())?;
        // The pseudo header's sum is that of the same addresses.
        turn(frame, facts.transport(), [128, 0], [129, 0])?;
    } else {
        let header = frame.window::<IPV4>(facts.link())?;
        let before = u16::from_be_bytes([header[8], header[9]]);
        let after = u16::from_be_bytes([TTL, header[9]]);
        let sum = checksum::update(u16::from_be_bytes([header[10], header[11]]), before, after);
        header[8] = TTL;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header[12..16].copy_from_slice(&facts.destination.v4_octets());
        header[16..20].copy_from_slice(&facts.source.v4_octets());
        turn(frame, facts.transport(), [8, 0], [0, 0])?;
    }
    Link::read(frame, facts.link())?.answer().write(frame, facts.destination.is_v6())
}

/// Changes type and code of an ICMP message from `old` to `new`.
#[inline(always)]
fn turn<F: Frame>(frame: &mut F, at: usize, old: [u8; 2], new: [u8; 2]) -> Result<(), Reason> {
    let header = frame.window::<4>(at)?;
    let sum = checksum::update(
        u16::from_be_bytes([header[2], header[3]]),
        u16::from_be_bytes(old),
        u16::from_be_bytes(new),
    );
    let [high, low] = sum.to_be_bytes();
    *header = [new[0], new[1], high, low];
    Ok(())
}

/// Whether the address is one host's, so that an ICMP message may be sent to it (RFC 1122, 3.2.2;
/// RFC 4443, 2.4 e).
#[inline(always)]
pub(crate) fn is_host(address: &Address) -> bool {
    let first = if address.is_v6() { address.octets()[0] } else { address.v4_octets()[0] };
    if address.is_v6() {
        // Multicast, unspecified and loopback.
        let [high, low] = address.words();
        first != 0xff && (high != 0 || u64::from_be(low) > 1)
    } else {
        // "This network", loopback, multicast and broadcast.
        first != 0 && first != 127 && first < 224
    }
}

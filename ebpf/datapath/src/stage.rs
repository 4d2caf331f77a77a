//! The stages that a packet may go through after the first one.
//!
//! The first stage forwards in modes `l2` and `ipip`, which most packets of a balancer need. All else
//! is a program of its own in the kernel, reached by a tail call: the common path stays short, and
//! each program is verified by itself. What one stage found out is handed to the next in a [`Hand`],
//! so that nothing is read or decided twice.

use xdp_lb_abi::{Address, Reason};

use crate::{
    Frame, Tables, Verdict, deliver, forward, fragment, icmp,
    parse::{Facts, Offset, Word},
    pods, refuse, remember, settle, snat, unsnat, unwrap,
};

/// More stages than any packet goes through.
pub const MAX_STAGES: usize = 8;

/// A stage; its number is its index in the program array.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Stage {
    /// Modes `geneve` and `local`
    Pods = 0,
    /// Mode `snat`, towards the backend
    Snat = 1,
    /// Mode `snat`, back to the client
    Unsnat = 2,
    /// Tunnel packets for this host
    Unwrap = 3,
    /// ICMP to a frontend: echo requests, and errors about its flows
    Icmp = 4,
    /// Fragments
    Fragment = 5,
    /// Packets that are answered instead of forwarded: too big, expired, or refused
    Refuse = 6,
    /// Packets for pods on this host, addressed to them already
    Deliver = 7,
    /// Modes `l2` and `ipip`, for what the first stage could not forward itself
    Forward = 8,
    /// ICMP errors whose quotation was read
    Error = 9,
    /// Services that remember flows or clients
    Remember = 10,
    /// Mode `snat`: a new flow
    Open = 11,
}

/// What one stage tells the next. What a stage does not need is what some packet before has left there.
#[derive(Clone, Copy, Debug)]
pub struct Hand {
    /// What the packet's headers say
    pub facts: Facts,
    /// For stages `Pods` and `Snat`: the chosen backend
    pub backend: Chosen,
    /// For packets of kind [`crate::parse::Kind::Error`], once stage `Icmp` has read it: what the
    /// error is about. For stage `Deliver`: the frontend, as its source
    pub quote: Quote,
    /// For stages `Refuse` and `Deliver`: what is to be counted once that is done
    pub refusal: Word<Reason>,
    /// For stage `Refuse` and [`Reason::TooBig`]: the largest packet that would have been sent on
    pub mtu: usize,
}

/// A backend that was chosen for a packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chosen {
    /// Backend id
    pub id: u32,
    /// The flow's hash
    pub hash: u32,
    /// Index of the frontend's counters
    pub stats: u32,
}

/// The packet that an ICMP error quotes: one that a frontend sent to its client.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// Where its IP header starts
    pub at: Offset,
    /// Where its transport header starts
    pub transport: Offset,
    /// Where the quotation ends
    pub end: usize,
    /// Its source: a frontend, or our own address in mode `snat`
    pub source: Address,
    /// Its destination: a client, or in mode `snat` a backend
    pub destination: Address,
    /// Source and destination port
    pub ports: Word<(u16, u16)>,
    /// Transport protocol
    pub protocol: Word<u8>,
}

impl Quote {
    /// Where its IP header starts.
    #[inline(always)]
    pub const fn at(&self) -> usize {
        self.at.get()
    }

    /// Where its transport header starts.
    #[inline(always)]
    pub const fn transport(&self) -> usize {
        self.transport.get()
    }

    /// Copies it field by field, as [`Facts::copy_to`] does.
    #[inline(always)]
    pub(crate) fn copy_to(&self, into: &mut Self) {
        into.at.set(self.at());
        into.transport.set(self.transport());
        into.end = self.end;
        into.source = self.source;
        into.destination = self.destination;
        into.ports.0 = self.ports.0;
        into.protocol.0 = self.protocol.0;
    }

    /// No quotation.
    pub const NONE: Self = Self {
        at: Offset::new(0),
        transport: Offset::new(0),
        end: 0,
        source: Address::v4([0; 4]),
        destination: Address::v4([0; 4]),
        ports: Word((0, 0)),
        protocol: Word(0),
    };
}

#[cfg(any(test, feature = "host"))]
impl Hand {
    /// What is there before the first packet.
    pub const NOTHING: Self = Self {
        facts: Facts {
            kind: Word(crate::parse::Kind::Flow),
            link: Offset::new(0),
            priority: Word(0),
            transport: Offset::new(0),
            source: Quote::NONE.source,
            destination: Quote::NONE.destination,
            protocol: Word(0),
            ports: Word((0, 0)),
            opens: Word(false),
            length: 0,
            traffic_class: Word(0),
            ttl: Word(0),
            identification: Word(0),
        },
        backend: Chosen { id: 0, hash: 0, stats: 0 },
        quote: Quote::NONE,
        refusal: Word(Reason::Inconsistent),
        mtu: 0,
    };
}

/// Hands the packet on to a stage that needs to know no more than what its headers say.
#[inline(always)]
pub(crate) fn go_on<T: Tables>(tables: &T, stage: Stage, facts: &Facts) -> Verdict {
    tables.hand_on(|hand| facts.copy_to(&mut hand.facts));
    Verdict::Next(stage)
}

/// Has the sender told why its packet is not forwarded; `mtu` where it is too big.
#[inline(always)]
pub(crate) fn refuse_with<T: Tables>(
    tables: &T,
    facts: &Facts,
    refusal: Reason,
    mtu: usize,
) -> Verdict {
    tables.hand_on(|hand| facts.copy_to(&mut hand.facts));
    hand_back(tables, refusal, mtu)
}

/// The same for a packet that an earlier stage handed on.
#[inline(always)]
pub(crate) fn hand_back<T: Tables>(tables: &T, refusal: Reason, mtu: usize) -> Verdict {
    tables.hand_on(|hand| {
        hand.refusal.0 = refusal;
        hand.mtu = mtu;
    });
    Verdict::Next(Stage::Refuse)
}

/// Goes on with a packet in a stage: counts what becomes of it, and returns that.
#[inline(always)]
pub fn resume<F: Frame, T: Tables>(
    stage: Stage,
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Verdict {
    let result = match stage {
        Stage::Pods => pods::pods(frame, tables, hand),
        Stage::Snat => snat::snat(frame, tables, hand),
        Stage::Unsnat => unsnat::unsnat(frame, tables, hand),
        Stage::Unwrap => unwrap::unwrap(frame, tables, &hand.facts),
        Stage::Icmp => icmp::icmp(frame, tables, hand),
        Stage::Fragment => fragment::fragment(tables, &hand.facts),
        Stage::Error => icmp::error(tables, hand),
        Stage::Remember => remember(tables, &hand.facts),
        Stage::Open => snat::open_flow(frame, tables, hand),
        Stage::Forward => forward::forward_later(frame, tables, hand),
        Stage::Deliver => deliver::deliver(frame, tables, hand),
        Stage::Refuse => Err(refuse::refuse(frame, tables, hand)),
    };
    settle(frame, tables, result)
}

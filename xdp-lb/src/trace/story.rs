//! What the packet path did, in words.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use xdp_lb_abi::{
    Address, AddressFlags, Backend, Device, Flow, FlowKey, Forward, Hop, Mode, Phase, Reason,
    Reverse, Service, Settings, Table,
};
use xdp_lb_api::trace::StepView;
use xdp_lb_datapath::{
    Claim, Hand, MemoryFrame, Stage,
    parse::{Facts, Kind, parse, protocol},
};
use xdp_lb_plan::model::Protocol;

/// What the packet path did so far.
#[derive(Debug, Default)]
pub(super) struct Story {
    pub(super) steps: Vec<StepView>,
    /// Names of the devices that have a program, by index
    devices: BTreeMap<u32, String>,
    /// The flow that is decided about: the packet's, or the one that an ICMP error is about
    flow: Option<FlowKey>,
    settings: Option<Settings>,
    tables: Option<Choice>,
    now: u64,
    backend: Option<(u32, Backend)>,
    pub(super) frontend: Option<String>,
    pub(super) device: Option<Device>,
    pub(super) reasons: Vec<Reason>,
}

/// The tables that a backend is chosen by, and where the flow's slots are.
#[derive(Debug)]
struct Choice {
    service: Service,
    /// For the current table and the previous one: the hash that picks a slot, and what it is of
    picks: [(u32, &'static str); 2],
    said: [bool; 2],
}

impl Story {
    /// Begins with what the headers say.
    pub(super) fn new(frame: &[u8], ingress: u32, devices: BTreeMap<u32, String>) -> Self {
        let mut story = Self { devices, ..Self::default() };
        match parse(&mut MemoryFrame::new(frame, ingress)) {
            Ok(facts) => {
                story.flow = Some(facts.flow());
                story.say("parse", headers(&facts));
            }
            Err(reason) => {
                story.say("parse", format!("the headers say no more: {}", reason.as_str()))
            }
        }
        story
    }

    pub(super) fn say(&mut self, step: &str, found: String) {
        self.steps.push(StepView { step: step.to_owned(), found });
    }

    pub(super) fn settings(&mut self, settings: Option<&Settings>) {
        self.settings = settings.copied();
        if settings.is_none() {
            self.say("settings", "the daemon has not written any yet".to_owned());
        }
    }

    pub(super) fn now(&mut self, now: u64) {
        self.now = now;
    }

    pub(super) fn stage(&mut self, stage: Stage, hand: &Hand) {
        let facts = &hand.facts;
        if facts.kind.0 == Kind::Error && matches!(stage, Stage::Error) {
            let quote = &hand.quote;
            let (frontend, client) = quote.ports.0;
            let ports = (client, frontend);
            self.flow =
                Some(FlowKey::new(quote.destination, quote.source, ports, quote.protocol.0));
            let about = self.flow.map(|flow| flow_name(&flow)).unwrap_or_default();
            self.say("error", format!("is about an answer of the flow {about}"));
        } else if facts.kind.0 != Kind::Error {
            self.flow = Some(facts.flow());
        }
        let what = match stage {
            Stage::Pods => "modes geneve and local: the destination becomes the pod",
            Stage::Snat => "mode snat: both addresses are rewritten, towards the backend",
            Stage::Unsnat => "mode snat: perhaps an answer, back to the client",
            Stage::Unwrap => "perhaps a tunnel packet for this host",
            Stage::Icmp => "ICMP",
            Stage::Fragment => "fragments follow the first one of their packet",
            Stage::Refuse => "the sender is to be told",
            Stage::Deliver => "delivered to a pod on this host",
            Stage::Forward => "modes l2 and ipip",
            Stage::Error => "an ICMP error: finds the backend whose answer it is about",
            Stage::Remember => "the service remembers flows or clients",
            Stage::Open => "mode snat: a new flow needs a port",
        };
        self.say("stage", what.to_owned());
    }

    pub(super) fn service(&mut self, service: Option<&Service>) {
        let (Some(service), Some(flow)) = (service, self.flow) else { return };
        let name = frontend_name(flow.destination(), flow.ports().1, flow.protocol());
        let phase = match service.phase() {
            Phase::Rest => "at rest",
            Phase::Handover => "in a handover",
            Phase::Exceptions => "at rest but for recorded flows",
        };
        let table = service.current();
        let switched = match (service.switched(), service.affinity()) {
            (false, _) => "",
            (true, 0) => ", session affinity was switched off",
            (true, _) => ", session affinity was switched on",
        };
        let (slots, backends) = (table.size(), table.length());
        self.say(
            "frontend",
            format!("{name}, {phase}{switched}: {slots} slots, {backends} backends"),
        );
        self.frontend = Some(name);
        if service.sources() == 0 {
            self.say("source", "every client may use it".to_owned());
        }
        let key = self.settings.as_ref().map_or([0; 2], Settings::flow_key);
        let by_flow = (flow.hash(key), "flow");
        let by_client = (flow.client().hash(key), "client");
        let (now, other) =
            if service.affinity() == 0 { (by_flow, by_client) } else { (by_client, by_flow) };
        let picks = [now, if service.switched() { other } else { now }];
        self.tables = Some(Choice { service: *service, picks, said: [false; 2] });
    }

    pub(super) fn source(&mut self, client: Address, allowed: bool) {
        let is = if allowed { "is" } else { "is in none" };
        let of = if allowed { " in one" } else { "" };
        self.say("source", format!("{} {is}{of} of the service's sourceRanges", client.to_ip()));
    }

    /// A word of the arena: of the current table's slots, of the previous one's, or of a list.
    pub(super) fn arena(&mut self, word: u32, value: Option<u64>) {
        let (Some(choice), Some(value)) = (&mut self.tables, value) else { return };
        let Choice { service, picks, .. } = *choice;
        let tables = [service.current(), service.previous()];
        for (index, table) in tables.into_iter().enumerate() {
            let (hash, by) = picks[index];
            let slot = table.slot(hash);
            let (at, shift) = table.locate_slot(slot);
            if choice.said[index] || table.size() == 0 || at != word {
                continue;
            }
            choice.said[index] = true;
            let entry = (value >> shift) as u16;
            let size = table.size();
            let which = ["current", "previous"][index];
            let names = match entry & !Table::LOOK_UP {
                Table::GONE if index == 1 => "a backend that takes no more packets".to_owned(),
                number if index == 1 && entry & Table::LOOK_UP != 0 => {
                    format!("backend {number} of its list, and recorded flows")
                }
                number => format!("backend {number} of its list"),
            };
            let found = format!(
                "hash {hash:08x} of the {by}: slot {slot} of {size} in the {which} table names {names}"
            );
            return self.say("slot", found);
        }
    }

    pub(super) fn backend(&mut self, id: u32, backend: Option<&Backend>) {
        let Some(backend) = backend else {
            return self.say("backend", format!("#{id} does not exist"));
        };
        if self.backend.is_none_or(|(had, _)| had != id) {
            let serving = if backend.serving() { "" } else { ", takes no packets" };
            let mode = backend.mode().map_or("of no mode", mode_name);
            let name = backend_name(backend);
            self.say("backend", format!("#{id}: {name}, {mode}{serving}"));
        }
        self.backend = Some((id, *backend));
    }

    pub(super) fn flow(&mut self, step: &str, flow: Option<&Flow>) {
        let found = match flow {
            None => "none is recorded".to_owned(),
            Some(flow) => {
                let ago = self.now.saturating_sub(flow.seen()) / 1_000_000_000;
                let started = self.tables.as_ref().map_or(0, |one| one.service.started());
                let old = if step == "flow" && flow.seen() < started {
                    ", before the service last rested: it says nothing"
                } else {
                    ""
                };
                let seen =
                    if self.now == 0 { String::new() } else { format!(", seen {ago} s ago") };
                format!("recorded for backend #{}{seen}{old}", flow.backend())
            }
        };
        self.say(step, found);
    }

    pub(super) fn known(&mut self, step: &str, known: bool) {
        self.say(step, if known { "is recorded" } else { "is not recorded" }.to_owned());
    }

    pub(super) fn address(&mut self, address: Address, flags: u32) {
        let frontend = flags & AddressFlags::FRONTEND != 0;
        let local = flags & AddressFlags::LOCAL != 0;
        let what = match (frontend, local) {
            (true, true) => "is a frontend's and this host's own",
            (true, false) => "is a frontend's",
            (false, true) => "is this host's own",
            (false, false) => "is neither a frontend's nor this host's own",
        };
        self.say("address", format!("{} {what}", address.to_ip()));
    }

    pub(super) fn nat_forward(&mut self, key: &FlowKey, flow: Option<&Forward>) {
        let found = match flow {
            None => format!("{} is not known", flow_name(key)),
            Some(flow) => {
                let (source, target) = (flow.source(key.is_v6()), flow.target(key.is_v6()));
                format!(
                    "{} is known: to {} from {}, for backend #{}",
                    flow_name(key),
                    end(target),
                    end(source),
                    flow.backend()
                )
            }
        };
        self.say("snat", found);
    }

    pub(super) fn nat_reverse(&mut self, key: &FlowKey, flow: Option<&Reverse>) {
        let found = match flow {
            None => format!("no answers are expected from {}", flow_name(key)),
            Some(flow) => {
                let (client, frontend) = (flow.client(key.is_v6()), flow.frontend(key.is_v6()));
                let name = frontend_name(frontend.0, frontend.1, key.protocol());
                self.frontend.get_or_insert_with(|| name.clone());
                format!("answers {} are for {} from {name}", flow_name(key), end(client))
            }
        };
        self.say("snat", found);
    }

    /// A port that was asked for: what the backend would see is at the end of its answers' key.
    pub(super) fn port(&mut self, key: &FlowKey, claim: Claim) {
        let source = end((key.destination(), key.ports().1));
        let found = match claim {
            Claim::New => format!("{source} is free, and would be taken"),
            Claim::Taken => format!("{source} is taken"),
            Claim::Full => "the table of flows is full".to_owned(),
        };
        self.say("port", found);
    }

    pub(super) fn opened(&mut self, flow: &Forward, claim: Claim) {
        let found = match claim {
            Claim::New => format!("the flow would be recorded for backend #{}", flow.backend()),
            Claim::Taken => "another packet has opened the flow".to_owned(),
            Claim::Full => "the table of flows is full".to_owned(),
        };
        self.say("record", found);
    }

    pub(super) fn route(&mut self, to: Address, hop: Hop) {
        let found = match hop.device() {
            0 => format!("the kernel's routing table knows no way to {}", to.to_ip()),
            _ => format!("the kernel's routing table sends {} to {}", to.to_ip(), mac(hop.mac())),
        };
        self.say("route", found);
    }

    pub(super) fn device(&mut self, index: u16, device: Option<&Device>) {
        let Some(device) = device else {
            return self.say("device", format!("{index} of the table is gone"));
        };
        self.device = Some(*device);
        let name = self.device_name(device.ifindex());
        let tags = match device.tags() {
            0 => String::new(),
            1 => ", one VLAN tag".to_owned(),
            tags => format!(", {tags} VLAN tags"),
        };
        let mtu = match self.backend {
            Some((_, backend)) if backend.mtu() != 0 => backend.mtu().into(),
            _ => device.mtu(),
        };
        self.say("device", format!("{name}: packets of {mtu} bytes at most on that path{tags}"));
    }

    pub(super) fn counted_frontend(&mut self, bytes: usize) {
        self.say("count", format!("{bytes} bytes for the frontend"));
    }

    pub(super) fn counted_backend(&mut self, id: u32) {
        self.say("count", format!("and for backend #{id}"));
    }

    pub(super) fn counted_reason(&mut self, reason: Reason) {
        self.say("count", format!("reason {}", reason.as_str()));
        self.reasons.push(reason);
    }

    /// The backend that the packet path looked at last, and its mode.
    pub(super) fn chosen(&self) -> Option<(String, Option<&'static str>)> {
        let (_, backend) = self.backend.as_ref()?;
        Some((backend_name(backend), backend.mode().map(mode_name)))
    }

    pub(super) fn device_name(&self, ifindex: u32) -> String {
        self.devices.get(&ifindex).cloned().unwrap_or_else(|| format!("#{ifindex}"))
    }
}

fn headers(facts: &Facts) -> String {
    let what = match facts.kind.0 {
        Kind::Flow => "",
        Kind::Echo => ", an echo request",
        Kind::Error => ", an ICMP error",
        Kind::Tunnel => ", IP in IP",
        Kind::FirstFragment => ", a first fragment",
        Kind::LaterFragment => ", a later fragment",
    };
    let opens = if facts.opens.0 { ", opens a connection" } else { "" };
    let tags = (facts.link() - 14) / 4;
    let tags = if tags == 0 { String::new() } else { format!(", {tags} VLAN tags") };
    let version = if facts.destination.is_v6() { 6 } else { 4 };
    format!(
        "IPv{version}, {}{what}{opens}, {} bytes, TTL {}{tags}",
        protocol_name(facts.protocol.0),
        facts.length,
        facts.ttl.0
    )
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::ICMP => "ICMP".to_owned(),
        protocol::ICMPV6 => "ICMPv6".to_owned(),
        _ => Protocol::from_number(number)
            .map_or_else(|| format!("protocol {number}"), |one| one.to_string()),
    }
}

fn end((address, port): (Address, u16)) -> String {
    SocketAddr::new(address.to_ip(), port).to_string()
}

fn flow_name(key: &FlowKey) -> String {
    let (source, destination) = key.ports();
    let (source, destination) =
        (end((key.source(), source)), end((key.destination(), destination)));
    format!("{source} > {destination} {}", protocol_name(key.protocol()))
}

pub(crate) fn frontend_name(address: Address, port: u16, protocol: u8) -> String {
    format!("{}/{}", end((address, port)), protocol_name(protocol))
}

/// Address and port, or the address alone where the port stays the packet's.
pub(crate) fn backend_name(backend: &Backend) -> String {
    match (backend.address().to_ip(), backend.port()) {
        (address, 0) => address.to_string(),
        (address, port) => SocketAddr::new(address, port).to_string(),
    }
}

pub(crate) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::L2 => "l2",
        Mode::Ipip => "ipip",
        Mode::Geneve => "geneve",
        Mode::Local => "local",
        Mode::Snat => "snat",
    }
}

pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The family of an address, in words.
pub(super) const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

//! The tables of the tracing programs: what the packet path reads is the live maps', what it would
//! write stays here, and every question is written down with its answer.
//!
//! Answers are handed on from the note itself, so what is told is what the packet path saw, also
//! where a map changes meanwhile.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use xdp_lb_abi::{
    Address, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, Fragment, Hop, Reason,
    Reverse, Service, Settings, Translation,
    asked::{ANSWERED, Asked, NOTE_ANSWER, NOTE_WORDS, NOTES as MOST, Note, noted},
};
use xdp_lb_datapath::{Claim, Hand, Lookup, Tables, parse::Facts};

use crate::{
    frame::Interface,
    tables::{
        ANSWER_FRAGMENTS, ANSWERS, ARENA, BACKENDS, CLIENTS, DEVICES, FLOWS, FRAGMENTS, FRONTENDS,
        Maps, NAT_FORWARD, NAT_REVERSE, SERVICES, SETTINGS, TRANSLATIONS, may_send,
    },
};

#[btf_map]
static NOTES: Array<Note, MOST> = Array::new();
#[btf_map]
static NOTED: Array<u64, { noted::WORDS }> = Array::new();
/// Entries that the packet has added.
#[btf_map]
static OPENED_FORWARD: HashMap<FlowKey, Forward, 16> = HashMap::new();
#[btf_map]
static OPENED_REVERSE: HashMap<FlowKey, Reverse, 16> = HashMap::new();
/// Keys of entries that it has removed.
#[btf_map]
static REMOVED_FORWARD: HashMap<FlowKey, u32, 16> = HashMap::new();
#[btf_map]
static REMOVED_REVERSE: HashMap<FlowKey, u32, 16> = HashMap::new();

/// The live maps, read only.
pub(crate) struct Traced<'a, C>(Maps<'a, C>);

impl<'a, C> Traced<'a, C> {
    #[inline(always)]
    pub(crate) const fn new(context: &'a C) -> Self {
        Self(Maps::new(context))
    }
}

/// Room for the next note; none once all is used up.
#[inline(always)]
fn next() -> Option<*mut u64> {
    let count = NOTED.get_ptr_mut(noted::COUNT)?;
    // SAFETY: one packet is traced at a time.
    let number = unsafe { *count };
    // SAFETY: as above.
    unsafe { *count = number + 1 };
    NOTES.get_ptr_mut(number as u32).map(<*mut Note>::cast)
}

/// Writes down a question about `argument` and the entry that was found; hands the note's copy on.
#[inline(always)]
fn note<V: Copy>(what: Asked, argument: u64, found: Option<&V>) -> Option<&'static V> {
    const { assert!(size_of::<V>().is_multiple_of(8) && align_of::<V>() <= 8) };
    const { assert!(size_of::<V>() / 8 <= NOTE_WORDS - NOTE_ANSWER) };
    let head = what as u64 | if found.is_some() { ANSWERED } else { 0 };
    let entry = next()?;
    // SAFETY: the note has so many words, and is this packet's alone; `V` is plain numbers.
    unsafe {
        *entry = head;
        *entry.add(1) = argument;
        let answer = entry.add(NOTE_ANSWER);
        let words: *const u64 = (&raw const *found?).cast();
        for index in 0..size_of::<V>() / size_of::<u64>() {
            // Volatile, so that no call of `memmove` comes of it, which copies byte by byte.
            answer.add(index).write_volatile(words.add(index).read());
        }
        Some(&*answer.cast::<V>())
    }
}

/// Writes down a question whose answer is a number; hands it on.
#[inline(never)]
fn said(what: Asked, argument: u64, answer: u64) -> u64 {
    write(what, argument, answer);
    answer
}

#[inline(always)]
fn write(what: Asked, argument: u64, answer: u64) {
    if let Some(entry) = next() {
        // SAFETY: as above.
        unsafe {
            *entry = what as u64 | ANSWERED;
            *entry.add(1) = argument;
            *entry.add(NOTE_ANSWER) = answer;
        }
    }
}

/// Writes down something that would have been written.
#[inline(always)]
fn would(what: Asked, argument: u64, value: u64) {
    said(what, argument, value);
}

#[inline(always)]
fn asked(what: Asked, answer: bool) -> bool {
    said(what, 0, answer.into()) != 0
}

#[inline(always)]
fn is_full(word: u32) -> bool {
    NOTED.get(word).is_some_and(|word| *word != 0)
}

impl<C: Interface> Lookup for Traced<'_, C> {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        settings(0)
    }

    #[inline(always)]
    fn may_be_served(&self, port: u16) -> bool {
        asked(Asked::MayBeServed, self.0.may_be_served(port))
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        bucket(index)
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<&Service> {
        service(index)
    }

    #[inline(always)]
    fn arena(&self, word: u32) -> Option<u64> {
        arena(word).copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        backend(id)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        flow(key).copied()
    }

    #[inline(always)]
    fn record_flow(&self, _key: &FlowKey, backend: u32, _generation: u32) {
        would(Asked::RecordFlow, backend.into(), 0);
    }

    #[inline(always)]
    fn touch_flow(&self, _key: &FlowKey) {
        would(Asked::TouchFlow, 0, 0);
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        said(Asked::Clock, 0, self.0.clock())
    }

    #[inline(always)]
    fn client(&self, key: &FlowKey) -> Option<Flow> {
        client(key).copied()
    }

    #[inline(always)]
    fn record_client(&self, _key: &FlowKey, backend: u32, _generation: u32) {
        would(Asked::RecordClient, backend.into(), 0);
    }

    #[inline(always)]
    fn is_allowed(&self, sources: u32, client: &Address) -> bool {
        let allowed = self.0.is_allowed(sources, client);
        said(Asked::Allowed, sources.into(), allowed.into()) != 0
    }
}

impl<C: Interface> Tables for Traced<'_, C> {
    #[inline(always)]
    fn device(&self, index: u16) -> Option<&Device> {
        device(index.into())
    }

    #[inline(always)]
    fn address_flags(&self, address: &Address) -> u32 {
        said(Asked::AddressFlags, 0, self.0.address_flags(address).into()) as u32
    }

    #[inline(always)]
    fn is_peer(&self, address: &Address) -> bool {
        asked(Asked::Peer, self.0.is_peer(address))
    }

    /// What one stage tells the next is the tracing programs' own.
    #[inline(always)]
    fn hand_on(&self, write: impl FnOnce(&mut Hand)) {
        self.0.hand_on(write);
    }

    #[inline(always)]
    fn may_be_frontend(&self, address: &Address) -> bool {
        asked(Asked::MayBeFrontend, self.0.may_be_frontend(address))
    }

    #[inline(always)]
    fn is_pod(&self, address: &Address) -> bool {
        asked(Asked::Pod, self.0.is_pod(address))
    }

    #[inline(always)]
    fn answer(&self, key: &FlowKey) -> Option<Answer> {
        answer(key).copied()
    }

    #[inline(always)]
    fn record_answer(&self, _key: &FlowKey, _answer: &Answer) {
        would(Asked::RecordAnswer, 0, 0);
    }

    #[inline(always)]
    fn claim_answer(&self, key: &FlowKey, _answer: &Answer) -> bool {
        // SAFETY: the value is not looked at.
        asked(Asked::ClaimAnswer, unsafe { ANSWERS.get(key) }.is_none())
    }

    #[inline(always)]
    fn forget_answer(&self, _key: &FlowKey) {
        would(Asked::ForgetAnswer, 0, 0);
    }

    #[inline(always)]
    fn may_be_answer(&self, pod: &Address, port: u16, protocol: u8) -> bool {
        asked(Asked::MayBeAnswer, self.0.may_be_answer(pod, port, protocol))
    }

    #[inline(always)]
    fn expect_answers(&self, _pod: &Address, _port: u16, _protocol: u8) {
        would(Asked::ExpectAnswers, 0, 0);
    }

    #[inline(always)]
    fn translation(&self, key: &FlowKey) -> Option<Translation> {
        translation(key).copied()
    }

    #[inline(always)]
    fn record_translation(&self, _key: &FlowKey, _translation: &Translation) {
        would(Asked::RecordTranslation, 0, 0);
    }

    #[inline(always)]
    fn fragment(&self, key: &FlowKey) -> Option<Fragment> {
        fragment(key).copied()
    }

    #[inline(always)]
    fn record_fragment(&self, _key: &FlowKey, _fragment: &Fragment) {
        would(Asked::RecordFragment, 0, 0);
    }

    #[inline(always)]
    fn answer_fragment(&self, key: &FlowKey) -> Option<Answer> {
        answer_fragment(key).copied()
    }

    #[inline(always)]
    fn record_answer_fragment(&self, _key: &FlowKey, _answer: &Answer) {
        would(Asked::RecordAnswerFragment, 0, 0);
    }

    #[inline(always)]
    fn nat_forward(&self, key: &FlowKey) -> Option<Forward> {
        nat_forward(key).copied()
    }

    #[inline(always)]
    fn claim_nat_forward(&self, key: &FlowKey, flow: &Forward) -> Claim {
        claimed(claim_forward(key, flow))
    }

    #[inline(always)]
    fn see_nat_forward(&self, _key: &FlowKey, _seen: u64, state: u8) {
        would(Asked::SeeNatForward, state.into(), 0);
    }

    #[inline(always)]
    fn remove_nat_forward(&self, key: &FlowKey) -> bool {
        remove_forward(key) != 0
    }

    #[inline(always)]
    fn nat_reverse(&self, key: &FlowKey) -> Option<Reverse> {
        nat_reverse(key).copied()
    }

    #[inline(always)]
    fn claim_nat_reverse(&self, key: &FlowKey, flow: &Reverse) -> Claim {
        claimed(claim_reverse(key, flow))
    }

    #[inline(always)]
    fn see_nat_reverse(&self, _key: &FlowKey, _seen: u64, state: u8) {
        would(Asked::SeeNatReverse, state.into(), 0);
    }

    #[inline(always)]
    fn remove_nat_reverse(&self, key: &FlowKey) {
        remove_reverse(key);
    }

    #[inline(always)]
    fn route_back(&self, facts: &Facts, from: &Address, to: &Address) -> Hop {
        Hop::from_word(said(Asked::RouteBack, 0, self.0.route_back(facts, from, to).word()))
    }

    #[inline(always)]
    fn device_of(&self, ifindex: u32) -> u16 {
        said(Asked::DeviceOf, ifindex.into(), self.0.device_of(ifindex).into()) as u16
    }

    #[inline(always)]
    fn may_send_icmp(&self, rate: u32) -> bool {
        asked(Asked::MaySendIcmp, may_send(rate))
    }

    #[inline(always)]
    fn route(&self, facts: &Facts, backend: &Backend) -> Hop {
        Hop::from_word(said(Asked::Route, 0, self.0.route(facts, backend).word()))
    }

    /// Names the device for this run alone: the frame of a test run goes nowhere.
    #[inline(always)]
    fn redirect(&self, device: u16) -> bool {
        said(Asked::Redirect, device.into(), self.0.redirect(device).into()) != 0
    }

    #[inline(always)]
    fn count_frontend(&self, stats: u32, facts: &Facts) {
        would(Asked::CountFrontend, stats.into(), facts.length as u64);
    }

    #[inline(always)]
    fn count_backend(&self, id: u32, facts: &Facts) {
        would(Asked::CountBackend, id.into(), facts.length as u64);
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason, bytes: usize) {
        would(Asked::CountReason, reason as u64, bytes as u64);
    }
}

/// A flow's record as the packet would find it, after what it has changed itself.
#[inline(always)]
unsafe fn forward<'a>(key: &FlowKey) -> Option<&'a Forward> {
    // SAFETY: the caller copies the value at once.
    unsafe {
        if let Some(own) = OPENED_FORWARD.get(key) {
            return Some(own);
        }
        if REMOVED_FORWARD.get(key).is_some() { None } else { NAT_FORWARD.get(key) }
    }
}

/// The same by the backend's answers.
#[inline(always)]
unsafe fn reverse<'a>(key: &FlowKey) -> Option<&'a Reverse> {
    // SAFETY: the caller copies the value at once.
    unsafe {
        if let Some(own) = OPENED_REVERSE.get(key) {
            return Some(own);
        }
        if REMOVED_REVERSE.get(key).is_some() { None } else { NAT_REVERSE.get(key) }
    }
}

// Each question is a function of its own, and none of them calls another: what a caller has on its
// stack and what these have must fit in 512 bytes together, and Linux 6.1 counts 32 for each.

macro_rules! entries {
    ($($what:ident: $name:ident -> $value:ty, $index:ident => $found:expr;)*) => {$(
        #[inline(never)]
        fn $name($index: u32) -> Option<&'static $value> {
            note(Asked::$what, $index.into(), $found)
        }
    )*};
}

entries! {
    Settings: settings -> Settings, index => SETTINGS.get(index).filter(|one| one.buckets() != 0);
    Bucket: bucket -> Bucket, index => FRONTENDS.get(index);
    Service: service -> Service, index => SERVICES.get(index);
    Arena: arena -> u64, word => ARENA.get(word);
    Backend: backend -> Backend, id => BACKENDS.get(id);
    Device: device -> Device, index => DEVICES.get(index).filter(|one| one.ifindex() != 0);
}

macro_rules! records {
    ($($what:ident: $name:ident -> $value:ty, $key:ident => $found:expr;)*) => {$(
        #[inline(never)]
        fn $name($key: &FlowKey) -> Option<&'static $value> {
            // SAFETY: the value is copied at once.
            note(Asked::$what, 0, unsafe { $found })
        }
    )*};
}

records! {
    Flow: flow -> Flow, key => FLOWS.get(key);
    Client: client -> Flow, key => CLIENTS.get(key);
    Answer: answer -> Answer, key => ANSWERS.get(key);
    Translation: translation -> Translation, key => TRANSLATIONS.get(key);
    Fragment: fragment -> Fragment, key => FRAGMENTS.get(key);
    AnswerFragment: answer_fragment -> Answer, key => ANSWER_FRAGMENTS.get(key);
    NatForward: nat_forward -> Forward, key => forward(key);
    NatReverse: nat_reverse -> Reverse, key => reverse(key);
}

/// Numbers, as the notes have them.
const NEW: u64 = 0;
const TAKEN: u64 = 1;
const FULL: u64 = 2;

#[inline(always)]
const fn claimed(number: u64) -> Claim {
    match number {
        NEW => Claim::New,
        TAKEN => Claim::Taken,
        _ => Claim::Full,
    }
}

#[inline(never)]
fn claim_forward(key: &FlowKey, flow: &Forward) -> u64 {
    let mut claim = TAKEN;
    // SAFETY: the value is not looked at.
    if unsafe { forward(key) }.is_none() {
        let full = is_full(noted::FORWARD_FULL) || OPENED_FORWARD.insert(key, flow, 0).is_err();
        claim = if full { FULL } else { NEW };
    }
    write(Asked::ClaimNatForward, 0, claim);
    claim
}

#[inline(never)]
fn claim_reverse(key: &FlowKey, flow: &Reverse) -> u64 {
    let mut claim = TAKEN;
    // SAFETY: the value is not looked at.
    if unsafe { reverse(key) }.is_none() {
        let full = is_full(noted::REVERSE_FULL) || OPENED_REVERSE.insert(key, flow, 0).is_err();
        claim = if full { FULL } else { NEW };
    }
    write(Asked::ClaimNatReverse, 0, claim);
    claim
}

#[inline(never)]
fn remove_forward(key: &FlowKey) -> u64 {
    // SAFETY: the value is not looked at.
    let there = unsafe { forward(key) }.is_some().into();
    // Without room for it the claim that follows fails, and the trace says so.
    let _ = OPENED_FORWARD.remove(key);
    let _ = REMOVED_FORWARD.insert(key, 1, 0);
    write(Asked::RemoveNatForward, 0, there);
    there
}

#[inline(never)]
fn remove_reverse(key: &FlowKey) {
    // As above.
    let _ = OPENED_REVERSE.remove(key);
    let _ = REMOVED_REVERSE.insert(key, 1, 0);
    write(Asked::RemoveNatReverse, 0, 0);
}

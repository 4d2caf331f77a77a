//! The packet path once more, beside the kernel: the same code, whose questions are answered as the
//! kernel's tables answered them. Where it asks anything else, or comes to anything else, one of both
//! is wrong.

use std::cell::{Cell, RefCell};

use xdp_lb_abi::{
    Address, Answer, Backend, Bucket, Device, Flow, FlowKey, Forward, Fragment, Hop, Reason,
    Reverse, Service, Settings, Translation,
    asked::{ANSWERED, Asked, NOTE_ANSWER, Note},
};
use xdp_lb_datapath::{
    Claim, Frame as _, Hand, Lookup, MemoryFrame, Tables, Verdict, handle, parse::Facts, resume,
    stage::MAX_STAGES,
};
use zerocopy::{FromBytes, Immutable, IntoBytes as _, KnownLayout};

use super::story::Story;

/// Answers from the kernel's notes.
pub(super) struct Replay<'a> {
    notes: &'a [Note],
    next: Cell<usize>,
    hand: Cell<Option<Hand>>,
    difference: RefCell<Option<String>>,
    story: RefCell<Story>,
}

/// What the packet path came to.
pub(super) struct Replayed {
    pub(super) verdict: Verdict,
    pub(super) frame: Vec<u8>,
    pub(super) story: Story,
    pub(super) difference: Option<String>,
}

/// Runs the packet path over a frame.
pub(super) fn replay(frame: &[u8], ingress: u32, notes: &[Note], story: Story) -> Replayed {
    let tables = Replay {
        notes,
        next: Cell::new(0),
        hand: Cell::new(None),
        difference: RefCell::new(None),
        story: RefCell::new(story),
    };
    let mut frame = MemoryFrame::new(frame, ingress);
    let mut verdict = handle(&mut frame, &tables);
    for _ in 0..MAX_STAGES {
        let (Verdict::Next(stage), Some(hand)) = (verdict, tables.hand.get()) else { break };
        tables.story.borrow_mut().stage(stage, &hand);
        verdict = resume(stage, &mut frame, &tables, &hand);
    }
    if tables.next.get() < notes.len() {
        tables.differ(format!("the kernel went on with {:?}", notes[tables.next.get()][0]));
    }
    debug_assert_eq!(frame.total_length(), frame.bytes().len());
    Replayed {
        verdict,
        frame: frame.bytes().to_vec(),
        story: tables.story.into_inner(),
        difference: tables.difference.into_inner(),
    }
}

impl<'a> Replay<'a> {
    /// Notes the first difference; from then on nothing is found any more.
    fn differ(&self, what: String) {
        self.difference.borrow_mut().get_or_insert(what);
        self.next.set(self.notes.len());
    }

    /// The kernel's next note, which must be about this.
    fn take(&self, what: Asked, argument: u64) -> Option<&'a Note> {
        let number = self.next.get();
        let Some(note) = self.notes.get(number) else {
            self.differ(format!("the kernel did not ask for {what:?} {argument}"));
            return None;
        };
        if note[0] & !ANSWERED != what as u64 || note[1] != argument {
            let (kind, about) = (note[0] & !ANSWERED, note[1]);
            self.differ(format!(
                "question {number} is for {what:?} {argument}, and was for {kind} {about} in the kernel"
            ));
            return None;
        }
        self.next.set(number + 1);
        Some(note)
    }

    fn entry<V>(&self, what: Asked, argument: impl Into<u64>) -> Option<&'a V>
    where
        V: FromBytes + Immutable + KnownLayout,
    {
        let note = self.take(what, argument.into())?;
        if note[0] & ANSWERED == 0 {
            return None;
        }
        V::ref_from_prefix(note[NOTE_ANSWER..].as_bytes()).ok().map(|(value, _)| value)
    }

    fn number(&self, what: Asked, argument: impl Into<u64>) -> u64 {
        self.take(what, argument.into()).map_or(0, |note| note[NOTE_ANSWER])
    }

    fn is(&self, what: Asked) -> bool {
        self.number(what, 0_u64) != 0
    }

    fn tell<T>(&self, value: T, how: impl FnOnce(&mut Story, &T)) -> T {
        // After a difference nothing that is said counts.
        if self.difference.borrow().is_none() {
            how(&mut self.story.borrow_mut(), &value);
        }
        value
    }
}

impl Lookup for Replay<'_> {
    fn settings(&self) -> Option<&Settings> {
        self.tell(self.entry(Asked::Settings, 0_u64), |story, one| story.settings(*one))
    }

    fn may_be_served(&self, _port: u16) -> bool {
        self.is(Asked::MayBeServed)
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.entry(Asked::Bucket, index)
    }

    fn service(&self, index: u32) -> Option<&Service> {
        self.tell(self.entry(Asked::Service, index), |story, one| story.service(*one))
    }

    fn arena(&self, word: u32) -> Option<u64> {
        let value = self.entry::<u64>(Asked::Arena, word).copied();
        self.tell(value, |story, value| story.arena(word, *value))
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.tell(self.entry(Asked::Backend, id), |story, one| story.backend(id, *one))
    }

    fn flow(&self, _key: &FlowKey) -> Option<Flow> {
        let flow = self.entry(Asked::Flow, 0_u64).copied();
        self.tell(flow, |story, one| story.flow("flow", one.as_ref()))
    }

    fn record_flow(&self, _key: &FlowKey, backend: u32, _generation: u32) {
        self.number(Asked::RecordFlow, backend);
        self.tell((), |story, ()| {
            story.say("record", format!("the flow would be recorded for backend #{backend}"))
        });
    }

    fn touch_flow(&self, _key: &FlowKey) {
        self.number(Asked::TouchFlow, 0_u64);
    }

    fn clock(&self) -> u64 {
        self.tell(self.number(Asked::Clock, 0_u64), |story, now| story.now(*now))
    }

    fn client(&self, _key: &FlowKey) -> Option<Flow> {
        let client = self.entry(Asked::Client, 0_u64).copied();
        self.tell(client, |story, one| story.flow("affinity", one.as_ref()))
    }

    fn record_client(&self, _key: &FlowKey, backend: u32, _generation: u32) {
        self.number(Asked::RecordClient, backend);
        self.tell((), |story, ()| {
            story.say("record", format!("the client would be recorded for backend #{backend}"));
        });
    }

    fn is_allowed(&self, sources: u32, client: &Address) -> bool {
        let allowed = self.number(Asked::Allowed, sources) != 0;
        self.tell(allowed, |story, allowed| story.source(*client, *allowed))
    }
}

impl Tables for Replay<'_> {
    fn device(&self, index: u16) -> Option<&Device> {
        self.tell(self.entry(Asked::Device, index), |story, one| story.device(index, *one))
    }

    fn address_flags(&self, address: &Address) -> u32 {
        let flags = self.number(Asked::AddressFlags, 0_u64) as u32;
        self.tell(flags, |story, flags| story.address(*address, *flags))
    }

    fn is_peer(&self, address: &Address) -> bool {
        self.tell(self.is(Asked::Peer), |story, known| {
            let known = if *known { "is" } else { "is not" };
            story.say("peer", format!("{} {known} one of terminate.peers", address.to_ip()));
        })
    }

    fn hand_on(&self, write: impl FnOnce(&mut Hand)) {
        let mut hand = self.hand.get().unwrap_or(Hand::NOTHING);
        write(&mut hand);
        self.hand.set(Some(hand));
    }

    fn may_be_frontend(&self, _address: &Address) -> bool {
        self.is(Asked::MayBeFrontend)
    }

    fn is_pod(&self, address: &Address) -> bool {
        self.tell(self.is(Asked::Pod), |story, here| {
            let here = if *here { "is" } else { "is not" };
            story.say("pod", format!("{} {here} in one of terminate.pods", address.to_ip()));
        })
    }

    fn answer(&self, _key: &FlowKey) -> Option<Answer> {
        let answer = self.entry(Asked::Answer, 0_u64).copied();
        self.tell(answer, |story, one| story.known("delivery", one.is_some()))
    }

    fn record_answer(&self, _key: &FlowKey, _answer: &Answer) {
        self.number(Asked::RecordAnswer, 0_u64);
    }

    fn claim_answer(&self, _key: &FlowKey, _answer: &Answer) -> bool {
        self.tell(self.is(Asked::ClaimAnswer), |story, done| {
            if *done {
                story.say("record", "how the pod's answers leave would be recorded".to_owned());
            }
        })
    }

    fn forget_answer(&self, _key: &FlowKey) {
        self.number(Asked::ForgetAnswer, 0_u64);
    }

    fn may_be_answer(&self, _pod: &Address, _port: u16, _protocol: u8) -> bool {
        self.is(Asked::MayBeAnswer)
    }

    fn expect_answers(&self, _pod: &Address, _port: u16, _protocol: u8) {
        self.number(Asked::ExpectAnswers, 0_u64);
    }

    fn translation(&self, _key: &FlowKey) -> Option<Translation> {
        self.entry(Asked::Translation, 0_u64).copied()
    }

    fn record_translation(&self, _key: &FlowKey, _translation: &Translation) {
        self.number(Asked::RecordTranslation, 0_u64);
        self.tell((), |story, ()| {
            story.say("record", "the pod would see another source port".to_owned());
        });
    }

    fn fragment(&self, _key: &FlowKey) -> Option<Fragment> {
        let fragment = self.entry::<Fragment>(Asked::Fragment, 0_u64).copied();
        self.tell(fragment, |story, one| story.known("first fragment", one.is_some()))
    }

    fn record_fragment(&self, _key: &FlowKey, _fragment: &Fragment) {
        self.number(Asked::RecordFragment, 0_u64);
        self.tell((), |story, ()| {
            story.say(
                "record",
                "where the packet's other fragments go would be recorded".to_owned(),
            );
        });
    }

    fn answer_fragment(&self, _key: &FlowKey) -> Option<Answer> {
        self.entry(Asked::AnswerFragment, 0_u64).copied()
    }

    fn record_answer_fragment(&self, _key: &FlowKey, _answer: &Answer) {
        self.number(Asked::RecordAnswerFragment, 0_u64);
    }

    fn nat_forward(&self, key: &FlowKey) -> Option<Forward> {
        let flow = self.entry::<Forward>(Asked::NatForward, 0_u64).copied();
        self.tell(flow, |story, flow| story.nat_forward(key, flow.as_ref()))
    }

    fn claim_nat_forward(&self, _key: &FlowKey, flow: &Forward) -> Claim {
        let claim = claim(self.number(Asked::ClaimNatForward, 0_u64));
        self.tell(claim, |story, claim| story.opened(flow, *claim))
    }

    fn see_nat_forward(&self, _key: &FlowKey, _seen: u64, state: u8) {
        self.number(Asked::SeeNatForward, state);
    }

    fn remove_nat_forward(&self, _key: &FlowKey) -> bool {
        self.is(Asked::RemoveNatForward)
    }

    fn nat_reverse(&self, key: &FlowKey) -> Option<Reverse> {
        let flow = self.entry::<Reverse>(Asked::NatReverse, 0_u64).copied();
        self.tell(flow, |story, flow| story.nat_reverse(key, flow.as_ref()))
    }

    fn claim_nat_reverse(&self, key: &FlowKey, _flow: &Reverse) -> Claim {
        let claim = claim(self.number(Asked::ClaimNatReverse, 0_u64));
        self.tell(claim, |story, claim| story.port(key, *claim))
    }

    fn see_nat_reverse(&self, _key: &FlowKey, _seen: u64, state: u8) {
        self.number(Asked::SeeNatReverse, state);
    }

    fn remove_nat_reverse(&self, _key: &FlowKey) {
        self.number(Asked::RemoveNatReverse, 0_u64);
    }

    fn route_back(&self, _facts: &Facts, _from: &Address, to: &Address) -> Hop {
        let hop = Hop::from_word(self.number(Asked::RouteBack, 0_u64));
        self.tell(hop, |story, hop| story.route(*to, *hop))
    }

    fn device_of(&self, ifindex: u32) -> u16 {
        self.number(Asked::DeviceOf, ifindex) as u16
    }

    fn may_send_icmp(&self, rate: u32) -> bool {
        self.tell(self.is(Asked::MaySendIcmp), |story, may| {
            let may = if *may { "allows" } else { "is used up: allows no" };
            story.say(
                "rate",
                format!("icmpErrorsPerSecond ({rate} on each CPU) {may} another answer"),
            );
        })
    }

    fn route(&self, _facts: &Facts, backend: &Backend) -> Hop {
        let hop = Hop::from_word(self.number(Asked::Route, 0_u64));
        self.tell(hop, |story, hop| story.route(backend.address(), *hop))
    }

    fn redirect(&self, device: u16) -> bool {
        self.tell(self.number(Asked::Redirect, device) != 0, |story, there| {
            if !there {
                story.say("device", format!("device {device} of the table is gone"));
            }
        })
    }

    fn count_frontend(&self, stats: u32, facts: &Facts) {
        self.number(Asked::CountFrontend, stats);
        self.tell((), |story, ()| story.counted_frontend(facts.length));
    }

    fn count_backend(&self, id: u32, _facts: &Facts) {
        self.number(Asked::CountBackend, id);
        self.tell((), |story, ()| story.counted_backend(id));
    }

    fn count_reason(&self, reason: Reason, _bytes: usize) {
        self.number(Asked::CountReason, reason as u64);
        self.tell((), |story, ()| story.counted_reason(reason));
    }
}

const fn claim(number: u64) -> Claim {
    match number {
        0 => Claim::New,
        1 => Claim::Taken,
        _ => Claim::Full,
    }
}

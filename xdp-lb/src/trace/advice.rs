//! What a reason means for whoever asks about a packet, and what to do.

use xdp_lb_abi::Reason;

/// One or two sentences; `docs/operations.md` has the reasons as the counters mean them.
pub(super) const fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::NotIp => "Neither IPv4 nor IPv6: the kernel's.",
        Reason::NoFrontend => {
            "No service has a frontend with this address, port and protocol: see `xdp-lb service list`."
        }
        Reason::GroupAddress => "Its MAC address is a group's: the kernel's.",
        Reason::TooManyTags => "More than two VLAN tags are not followed: the kernel's.",
        Reason::Truncated => "The frame ends inside a header: the kernel's to refuse.",
        Reason::BadHeader => "The IP header is malformed: the kernel's to refuse.",
        Reason::BadLength => {
            "The lengths of IP and transport header do not fit the frame: the kernel's to refuse."
        }
        Reason::Fragment => "A fragment of a packet that is not for a frontend: the kernel's.",
        Reason::ExtensionHeader => "Its IPv6 extension headers are not followed: the kernel's.",
        Reason::Protocol => "Neither TCP, UDP, SCTP, ICMP nor a tunnel: the kernel's.",
        Reason::Icmp => {
            "Neither an echo request to a frontend nor about one of its flows: the kernel's."
        }
        Reason::TunnelNotOurs => {
            "IP in IP that is not for this host. To unwrap it here, configure `terminate` and put the \
             frontend's address on this host."
        }
        Reason::TunnelPeer => {
            "Its sender is no peer: add it to `terminate.peers` if it is a balancer."
        }
        Reason::TunnelEcn => {
            "A router marked congestion on a packet without ECN: it must be dropped (RFC 6040)."
        }
        Reason::NoBackend => {
            "The service has no backend that may serve: see `xdp-lb backend list` for their health."
        }
        Reason::NoNextHop => {
            "There is no route, or no neighbour answers: see `ip route get` and `ip neighbour` for the \
             backend's address (in snat also the client's)."
        }
        Reason::TtlZero => "It has no time to live left, and none may be told.",
        Reason::TooBig => {
            "It is longer than the path to the backend allows; its sender is told the size."
        }
        Reason::TooBigLimited => {
            "It is longer than the path allows, and the limit of ICMP errors is used up: raise \
             `icmpErrorsPerSecond`, or the path's MTU."
        }
        Reason::TooBigSilent => {
            "It is longer than the path allows, and its sender may not be told: raise the path's MTU."
        }
        Reason::MinimumMtu => {
            "An IPv6 packet of at most 1280 bytes must fit: give the tunnel's path an MTU of 1280 bytes and \
             the tunnel's headers."
        }
        Reason::Headroom => {
            "The driver leaves no room for a longer header: `xdp: generic` for this device may."
        }
        Reason::Inconsistent => {
            "The tables contradict themselves. Please report this with the output of -o json."
        }
        Reason::Echo => "An echo request to a frontend's address: the program answers.",
        Reason::Unwrapped => {
            "From a known peer: unwrapped, and the kernel delivers what is inside."
        }
        Reason::TimeExceeded => "Its time to live is over; its sender is told, as by any router.",
        Reason::SourceRange => "The client is in none of the service's `sourceRanges`.",
        Reason::Reset | Reason::Unreachable | Reason::RefusedSilently => {
            "The service has no backend that may serve, and says so: see `xdp-lb backend list`."
        }
        Reason::UnknownPortReset | Reason::UnknownPortUnreachable | Reason::UnknownPort => {
            "The address is a frontend's, and the port is not: see `xdp-lb service list`."
        }
        Reason::FragmentUnknown => {
            "The first fragment was not seen in the last 30 seconds, so nobody knows the port. Trace the \
             first one."
        }
        Reason::Local => "The kernel routes it to its pod on this host.",
        Reason::GeneveFormat | Reason::GeneveOption | Reason::GeneveChecksum => {
            "A Geneve packet, but not one of xdp-lb's: another overlay's port must differ, see docs/geneve.md."
        }
        Reason::NotHere => {
            "No network of `terminate.pods` has the pod: is the sender's list of backends out of date?"
        }
        Reason::TranslationExhausted => "The client has used up its ports towards this pod.",
        Reason::NatExhausted => "All ports towards this backend are taken: widen `snat.ports`.",
        Reason::NatFull => "The table of flows is full: raise `limits.natFlows`.",
        Reason::NatUnknown => {
            "It is in mid-stream of a flow that is not known (any more): a first packet (SYN, INIT) opens one."
        }
        Reason::NatAnswer => "An answer of a backend, on its way back to the client.",
        Reason::IcmpForwarded => "It goes to the end of the flow that it is about.",
        Reason::IcmpQuote => "What it quotes is cut off or malformed: the kernel's.",
        Reason::Family => "The backend's address is of another family than the frontend's.",
        Reason::Answered => "A pod's answer, in the frontend's name.",
        Reason::AnswerMalformed => "What a pod sends, or an error about it, cannot be read.",
        Reason::SctpFragment => {
            "A fragment of SCTP cannot get another port: its checksum is over the whole packet."
        }
        Reason::NotServed => {
            "Nothing that a frontend takes, and the address is not this host's own: the kernel would route \
             it back."
        }
        Reason::Neighbour => "Neighbour discovery: the kernel's.",
    }
}

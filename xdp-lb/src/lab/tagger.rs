//! VLAN tags for a host, on a kernel with or without VLAN devices.

use std::{
    fs, io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    LabError, Namespace,
    layers::Tag,
    raw::{LONGEST, open, receive, send},
};

/// Joins an untagged device to a VLAN on another device, as an access port of a switch does, until
/// it is dropped.
///
/// The host uses one end of a link inside its own node, the tagger has the other:
///
/// ```no_run
/// # use xdp_lb::lab::{Lab, Tagger, end, host, layers::Tag, link};
/// # fn main() -> Result<(), xdp_lb::lab::LabError> {
/// let lab = Lab::build("example", [
///     host("a"),
///     host("b"),
///     link(end("a", "eth0"), end("b", "eth0")),
///     link(end("a", "vlan7").addr("10.7.0.1/24"), end("a", "port7")),
/// ])?;
/// let tags = [Tag { protocol: 0x8100, id: 7 }];
/// let _tagger = Tagger::start(lab.ns("a")?, "port7", "eth0", &tags)?;
/// # Ok(())
/// # }
/// ```
///
/// Beside a single 802.1Q tag, each tag has to fit the trunk's MTU: give the host's device 4 bytes
/// less for each.
#[derive(Debug)]
pub struct Tagger {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Tagger {
    /// What comes out of `port` leaves on `trunk` behind `tags` (the outermost first), and what
    /// comes in on `trunk` behind exactly these tags goes to `port`.
    pub fn start(
        space: &Namespace,
        port: &str,
        trunk: &str,
        tags: &[Tag],
    ) -> Result<Self, LabError> {
        let failed = || format!("tag frames of {port} on {trunk} in {}", space.name());
        let prefix: Vec<u8> = tags
            .iter()
            .flat_map(|tag| [tag.protocol.to_be_bytes(), tag.id.to_be_bytes()].concat())
            .collect();
        let sockets = || {
            // The port is a switch's: it speaks only for the host behind it.
            fs::write(format!("/proc/sys/net/ipv6/conf/{port}/disable_ipv6"), "1")?;
            Ok((Arc::new(open(port)?), Arc::new(open(trunk)?)))
        };
        let (port, trunk) = space.run(sockets)?.map_err(LabError::system::<io::Error>(failed()))?;
        let mut tagger = Self { stop: Arc::default(), workers: Vec::new() };
        let tags = prefix.clone();
        let out = move |frame: &[u8]| Some(tagged(frame, &tags));
        tagger.carry(&port, &trunk, out).map_err(LabError::system(failed()))?;
        let back = move |frame: &[u8]| untagged(frame, &prefix);
        tagger.carry(&trunk, &port, back).map_err(LabError::system(failed()))?;
        Ok(tagger)
    }

    /// Carries frames from one device to another on a thread of its own, as `change` says.
    fn carry(
        &mut self,
        from: &Arc<OwnedFd>,
        to: &Arc<OwnedFd>,
        change: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> io::Result<()> {
        let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&self.stop));
        let work = move || {
            let mut buffer = vec![0; LONGEST];
            while !stop.load(Ordering::SeqCst) {
                // An error is an empty turn, or a device that is down for now.
                let Ok(frame) = receive(&from, &mut buffer, false) else { continue };
                if let Some(frame) = Some(frame).filter(|frame| !frame.sent)
                    && let Some(changed) = change(&frame.bytes)
                {
                    // A frame that is too long or finds the device down is lost, as on a wire.
                    let _ = send(&to, &changed);
                }
            }
        };
        self.workers.push(thread::Builder::new().name("lab-tagger".into()).spawn(work)?);
        Ok(())
    }
}

impl Drop for Tagger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            // A panic in it has been printed, and has shown as missing frames.
            let _ = worker.join();
        }
    }
}

fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(frame.len().min(12));
    [addresses, tags, rest].concat()
}

/// The frame without `tags`, unless it has others, or more.
fn untagged(frame: &[u8], tags: &[u8]) -> Option<Vec<u8>> {
    let (addresses, rest) = frame.split_at_checked(12)?;
    let rest = rest.strip_prefix(tags)?;
    let more = rest.starts_with(&[0x81, 0x00]) || rest.starts_with(&[0x88, 0xa8]);
    (!more).then(|| [addresses, rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_on_and_come_off() {
        let plain: Vec<u8> = (0..20).collect();
        let (seven, eight) = ([0x81, 0, 0, 7], [0x81, 0, 0, 8]);
        let frame = tagged(&plain, &seven);
        assert_eq!(frame[12..18], [0x81, 0, 0, 7, 12, 13]);
        assert_eq!(untagged(&frame, &seven), Some(plain.clone()));
        assert_eq!(untagged(&frame, &eight), None);
        assert_eq!(untagged(&plain, &seven), None);
        assert_eq!(untagged(&tagged(&frame, &eight), &eight), None);
        assert_eq!(untagged(&frame[..11], &seven), None);
    }
}

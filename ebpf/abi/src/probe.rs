//! Marks of packets by which the daemon asks one backend whether it is well.
//!
//! In modes `l2` and `ipip` a backend serves the frontend's address, so a packet to it is a packet to
//! the frontend, and only its socket's mark (`SO_MARK`) says which backend is meant.

/// The upper byte of the marks; the rest is the backend's id.
const MAGIC: u32 = 0xb5;
const SHIFT: u32 = 24;

/// The mark of packets for a backend; nothing where the id has more than 24 bits, which no
/// configuration allows.
#[inline(always)]
pub const fn probe_mark(backend: u32) -> Option<u32> {
    if backend >> SHIFT == 0 { Some(MAGIC << SHIFT | backend) } else { None }
}

/// The id of the backend that a packet with this mark is for; others use marks too.
#[inline(always)]
pub const fn probed_backend(mark: u32) -> Option<u32> {
    if mark >> SHIFT == MAGIC { Some(mark & ((1 << SHIFT) - 1)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_which_backend_is_meant() {
        for id in [0, 1, 0x7f_ffff, 0xff_ffff] {
            assert_eq!(probe_mark(id).and_then(probed_backend), Some(id));
        }
        assert_eq!(probe_mark(0x100_0000), None);
        // Unmarked packets, and those of kube-proxy.
        assert_eq!([0, 0x4000, 0x8000].map(probed_backend), [None; 3]);
    }
}

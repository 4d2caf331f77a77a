//! What the kernel offers for pinned links (`bpf_link`), and aya does not.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// A command of bpf(2), with as much of `union bpf_attr` as it reads.
fn bpf<const N: usize>(
    command: libc::c_long,
    mut attributes: [u64; N],
) -> io::Result<libc::c_long> {
    let length = size_of_val(&attributes);
    // SAFETY: pointer and length are those of one live array; what the numbers in it point to is the
    // caller's, and lives.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Two 32-bit fields that lie beside each other.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// Opens a pinned link.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // The path; descriptor and flags.
    let descriptor = bpf(BPF_OBJ_GET, [path.as_ptr() as u64, 0])?;
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Detaches a link at once. Without this the kernel does so some time after the last user of the link
/// is gone, and until then its device takes no other program.
///
/// # Errors
///
/// What the kernel says (Linux 5.9).
pub(crate) fn detach(link: impl AsFd) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, [pair(number(link.as_fd()), 0)]).map(drop)
}

/// Replaces a link's program, without a moment in between.
///
/// # Errors
///
/// ENOLINK where it was detached.
pub(crate) fn update(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    // The link and the program; flags, and a program that must be there before.
    let attributes = [pair(number(link.as_fd()), number(program.as_fd())), 0];
    bpf(BPF_LINK_UPDATE, attributes).map(drop)
}

/// The id of the cgroup that a link is attached to: the inode of its directory; 0 where that is gone.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn cgroup(link: impl AsFd) -> io::Result<u64> {
    // struct bpf_link_info: type and id, program and padding, then of a cgroup's link its id.
    let mut info = [0_u64; 16];
    let length = u32::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let attributes = [pair(number(link.as_fd()), length), info.as_mut_ptr() as u64];
    bpf(BPF_OBJ_GET_INFO_BY_FD, attributes)?;
    Ok(info[2])
}

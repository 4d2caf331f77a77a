//! What benchmarks load beside the packet path: the program that starts each run from the same frame,
//! and the programs that the packet path is compared with.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// As in the other object: for what the verifier does not follow.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod floors;
#[cfg(target_arch = "bpf")]
mod restore;

/// As in the other object: on the host this is an empty binary.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // As in the other object, nothing calls it.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

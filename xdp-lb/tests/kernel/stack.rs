//! How much stack the program's functions use.

use aya_obj::{Object, generated::bpf_insn};
use xdp_lb::object::OBJECT;
use xdp_lb_abi::names;

/// The register that points to the end of a function's stack.
const FRAME: u8 = 10;
/// Opcodes: `destination += immediate`, and the classes of loads and stores.
const ADD_IMMEDIATE: u8 = 0x07;
const MOVE: u8 = 0xbf;
const LOAD: u8 = 0x01;
const STORE_IMMEDIATE: u8 = 0x02;
const STORE: u8 = 0x03;

/// Bytes of stack of each function, deepest first; together they may have 512 along any chain of
/// calls. Read from the object's code, since the verifier tells them only when it refuses.
pub(crate) fn stack_depths() -> Vec<(String, i32)> {
    let object = Object::parse(OBJECT).unwrap();
    let mut depths: Vec<_> = object
        .functions
        .values()
        .filter(|function| function.name != names::XDP_PASS)
        .map(|function| (path(&function.name), depth(&function.instructions)))
        .filter(|(_, depth)| *depth > 0)
        .collect();
    depths.sort_by_key(|(name, depth)| (-depth, name.clone()));
    depths
}

/// The path in a mangled name (rustc's v0 scheme): identifiers, each behind its length, after that
/// of the crate and its disambiguator.
fn path(name: &str) -> String {
    let Some((_, mut rest)) = name.split_once("Cs").and_then(|(_, rest)| rest.split_once('_'))
    else {
        return name.into();
    };
    let mut path = Vec::new();
    while let Some((identifier, behind)) = identifier(rest) {
        path.push(identifier);
        rest = behind;
    }
    path.join("::")
}

/// An identifier at the start of a mangled name, and what is behind it.
fn identifier(name: &str) -> Option<(&str, &str)> {
    let digits = name.find(|letter: char| !letter.is_ascii_digit())?;
    let length = name[..digits].parse().ok()?;
    name[digits..].split_at_checked(length)
}

/// The lowest address that a function reaches below its frame's end.
fn depth(instructions: &[bpf_insn]) -> i32 {
    let mut lowest = 0;
    let mut previous: Option<&bpf_insn> = None;
    for instruction in instructions {
        let (source, destination) = (instruction.src_reg(), instruction.dst_reg());
        let reached = match instruction.code & 0x07 {
            LOAD if source == FRAME => instruction.off.into(),
            STORE | STORE_IMMEDIATE if destination == FRAME => instruction.off.into(),
            // The address of something on the stack: a copy of the register, then what is added.
            _ if instruction.code == ADD_IMMEDIATE => match previous {
                Some(copy) if copy.code == MOVE && copy.src_reg() == FRAME => instruction.imm,
                _ => 0,
            },
            _ => 0,
        };
        lowest = lowest.min(reached);
        previous = Some(instruction);
    }
    -lowest
}

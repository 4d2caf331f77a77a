//! What moves from one Maglev table to the next.

use std::net::{IpAddr, Ipv4Addr};

use xdp_lb_plan::{
    maglev::{Candidate, HashKey, Identity, build},
    model::Protocol,
};

use super::{Error, Trial};

/// Address of a backend.
pub(super) fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

/// Share of the slots that change their backend although it survives, of all whose backend does;
/// for each of `failures`.
pub(super) fn moved(trial: &Trial, size: u32, failures: &[u32]) -> Result<Vec<f64>, Error> {
    let before = owners(trial, trial.surviving(0), size)?;
    let share = |&count: &u32| {
        let after = owners(trial, trial.surviving(count), size)?;
        let failed: Vec<IpAddr> = trial.failed(count).iter().copied().map(address).collect();
        let could_stay = || before.iter().zip(&after).filter(|(old, _)| !failed.contains(old));
        let moved = could_stay().filter(|(old, new)| old != new).count();
        Ok(moved as f64 / could_stay().count() as f64)
    };
    failures.iter().map(share).collect()
}

/// Each slot's backend.
fn owners(trial: &Trial, backends: &[u32], size: u32) -> Result<Vec<IpAddr>, Error> {
    let candidate = |&number: &u32| {
        let identity = Identity { address: address(number), port: 80, protocol: Protocol::Tcp };
        Candidate { identity, weight: 1 }
    };
    let candidates: Vec<Candidate> = backends.iter().map(candidate).collect();
    let table = build(&HashKey::from(trial.maglev_key), &candidates, size)?;
    let owner = |&slot: &u16| table.backends()[usize::from(slot)].identity.address;
    Ok(table.slots().iter().map(owner).collect())
}

//! How many slots each backend gets.

use std::cmp::Reverse;

/// Divides `size` slots by `weights`, all positive.
///
/// Largest remainder (Hamilton): everyone gets the whole part of the exact share, and the slots
/// that are left go to the largest fractions, of equal ones to the earlier. So nobody is a full
/// slot away from the exact share.
///
/// As long as there are as many slots as backends, nobody goes without: whose exact share is less
/// than one slot gets one, and the others share the rest by the same rule.
pub(super) fn quotas(weights: &[u16], size: u32) -> Vec<u32> {
    let mut quotas = vec![0; weights.len()];
    let mut slots = u64::from(size);
    let mut total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();

    if size as usize >= weights.len() {
        for light in lighter_than_a_slot(weights, slots, total) {
            quotas[light] = 1;
            slots -= 1;
            total -= u64::from(weights[light]);
        }
    }

    let mut left = slots;
    let mut fractions = Vec::with_capacity(weights.len());
    for (index, &weight) in weights.iter().enumerate() {
        if quotas[index] == 0 {
            let share = slots * u64::from(weight);
            let whole = share / total;
            quotas[index] = whole as u32;
            left -= whole;
            fractions.push((Reverse(share - whole * total), index));
        }
    }
    // The fractions add up to `left` slots and each is less than one: `left` is less than their
    // number.
    if left > 0 {
        fractions.select_nth_unstable(left as usize);
        for &(_, index) in &fractions[..left as usize] {
            quotas[index] += 1;
        }
    }
    quotas
}

/// Indices of those whose exact share is less than one slot when the lighter ones have got one
/// each. Giving one away never raises the others' slots per weight, so once somebody's share
/// reaches a slot, that of everyone heavier does too.
fn lighter_than_a_slot(weights: &[u16], mut slots: u64, mut total: u64) -> Vec<usize> {
    let is_light = |weight: u16, slots: u64, total: u64| slots * u64::from(weight) < total;
    if !weights.iter().any(|&weight| is_light(weight, slots, total)) {
        return Vec::new();
    }
    let mut by_weight: Vec<usize> = (0..weights.len()).collect();
    by_weight.sort_unstable_by_key(|&index| weights[index]);
    by_weight
        .into_iter()
        .take_while(|&index| {
            let weight = weights[index];
            let light = is_light(weight, slots, total);
            if light {
                slots -= 1;
                total -= u64::from(weight);
            }
            light
        })
        .collect()
}

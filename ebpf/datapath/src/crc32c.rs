//! CRC32c, as SCTP uses it (RFC 9260, appendix A), of a change near the start of a packet.
//!
//! The CRC is linear over GF(2): the difference of two packets' checksums is the CRC, without its
//! first and last complement, of the difference of their bytes. That is some bits followed by zeros,
//! and a zero byte multiplies by x^8. So it takes two multiplications for any length, and no look at
//! the payload.

/// The polynomial 0x1EDC6F41 with its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^(8·n) modulo the polynomial, for each n below 256.
static LOW: [u32; 256] = powers(1 << 23);
/// The same for each n that is a multiple of 256.
static HIGH: [u32; 256] = powers(multiply(LOW[255], 1 << 23));

/// The powers of a polynomial; bit 31 is x^0.
const fn powers(base: u32) -> [u32; 256] {
    let mut powers = [1 << 31; 256];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], base);
        n += 1;
    }
    powers
}

/// The product of two polynomials modulo the CRC's.
#[inline(always)]
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut a, mut b, mut product) = (a, b, 0);
    let mut bit = 0;
    while bit < 32 {
        // Bit 31 of `b` is x^0, so its bits come from above.
        product ^= a & (b >> 31).wrapping_neg();
        b <<= 1;
        a = a >> 1 ^ POLYNOMIAL & (a & 1).wrapping_neg();
        bit += 1;
    }
    product
}

/// The difference in the checksum of a packet of `length` bytes (at least 4, below 65536) whose first
/// four bytes, read as a little-endian number, change in these bits.
#[inline(always)]
pub(crate) fn difference(bits: u32, length: u32) -> u32 {
    // `bits` stands for a polynomial that all `length` bytes are still to be shifted in after: its
    // own four and the zeros behind.
    let shift = multiply(LOW[(length & 0xff) as usize], HIGH[(length >> 8 & 0xff) as usize]);
    multiply(bits, shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The textbook's way, a bit at a time.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 }
            })
        })
    }

    /// RFC 3720, B.4.
    #[test]
    fn published_values() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    proptest! {
        #[test]
        fn a_difference_equals_a_full_computation(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..2000),
            start: [u8; 4],
        ) {
            let before = crc32c(&bytes);
            let bits = u32::from_le_bytes(start) ^ u32::from_le_bytes(bytes[..4].try_into().unwrap());
            bytes[..4].copy_from_slice(&start);
            prop_assert_eq!(before ^ difference(bits, bytes.len() as u32), crc32c(&bytes));
        }
    }
}

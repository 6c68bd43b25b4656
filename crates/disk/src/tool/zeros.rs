//! Finds what need not be written.

use std::ops::Range;

use crate::zeros::is_zero;

/// Zeros shorter than this are written with what is around them: a hole costs the file system more than they do.
const MIN_HOLE: usize = 32 << 10;
/// The unit in which zeros are looked for: no sector is larger.
const GRAIN: usize = 4096;

/// Calls `write` for each run of bytes that has to be written into a disk that is all zeros. Runs begin and end at whole grains.
pub(super) fn each_run<E>(bytes: &[u8], mut write: impl FnMut(Range<usize>) -> Result<(), E>) -> Result<(), E> {
    let mut run: Option<Range<usize>> = None;
    for (index, grain) in bytes.chunks(GRAIN).enumerate() {
        let at = index * GRAIN;
        if is_zero(grain) {
            if let Some(done) = run.take_if(|it| at + grain.len() - it.end >= MIN_HOLE) {
                write(done)?;
            }
        } else {
            let start = run.as_ref().map_or(at, |it| it.start);
            run = Some(start..at + grain.len());
        }
    }
    run.map_or(Ok(()), write)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(bytes: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        each_run(bytes, |run| {
            found.push(run);
            Ok::<(), ()>(())
        })
        .unwrap();
        found
    }

    #[test]
    fn long_zeros_are_left_out_and_short_ones_are_not() {
        let mut bytes = vec![0; 1 << 20];
        bytes[5000] = 1;
        bytes[20_000] = 1;
        bytes[500_000] = 1;
        assert_eq!(runs(&bytes), [4096..20_480, 499_712..503_808]);
        assert_eq!(runs(&vec![0; 1 << 20]), []);
        assert_eq!(runs(&[1; 100]).as_slice(), std::slice::from_ref(&(0..100)));
    }
}

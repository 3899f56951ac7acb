//! A header is bounded, is complete at one length only, and an error stays one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sekimori_mta_fuzz::smtp::proxy::{ProxyProgress, V2_OCTETS_MAX, parse};

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    match whole {
        Ok(ProxyProgress::More) => assert!(data.len() < V2_OCTETS_MAX),
        Ok(ProxyProgress::Done { consumed, .. }) => {
            assert!(consumed <= data.len() && consumed <= V2_OCTETS_MAX);
            for length in 0..consumed {
                assert_eq!(parse(&data[..length]), Ok(ProxyProgress::More));
            }
            assert_eq!(parse(&data[..consumed]), whole);
        }
        Err(error) => assert_eq!(parse(&[data, b"x"].concat()), Err(error)),
    }
});

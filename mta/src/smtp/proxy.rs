//! The PROXY protocol, versions 1 and 2 (haproxy's proxy-protocol.txt), receiver's side. Whether a peer may send one is the listener's
//! to decide; here octets become an address, within bounds, or an error at the first octet that does not fit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use memchr::memchr;

/// Octets of a version 1 line with its CRLF.
pub const V1_OCTETS_MAX: usize = 107;
/// Octets of a version 2 header with its extensions; those of a TLS proxy take some hundred.
pub const V2_OCTETS_MAX: usize = 4096;

const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_OCTETS: usize = 16;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client; none for LOCAL, UNKNOWN, unspecified and UNIX: the socket's own address counts.
    pub source: Option<SocketAddr>,
}

/// How far [`parse`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProgress {
    /// A header may still come of it.
    More,
    /// Complete.
    Done {
        /// What it says.
        header: ProxyHeader,
        /// Its octets; what follows is the client's.
        consumed: usize,
    },
}

/// Why it is no header. Nothing can be said to the peer: close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Another start: the peer is no proxy, or does not speak the protocol.
    #[error("no PROXY header")]
    NoHeader,
    /// Beyond [`V1_OCTETS_MAX`] or [`V2_OCTETS_MAX`].
    #[error("PROXY header is too long")]
    TooLong,
    /// Syntax of version 1.
    #[error("PROXY version 1 header is malformed")]
    BadLine,
    /// Version, command or length of version 2.
    #[error("PROXY version 2 header is malformed")]
    BadBinary,
    /// Datagrams, or a family that does not exist.
    #[error("PROXY header names an address family or transport that is not TCP")]
    NotTcp,
}

/// Parses the start of what a connection sent; call again with more (and the same start) after [`ProxyProgress::More`].
///
/// # Errors
/// [`ProxyError`], as early as it is certain.
pub fn parse(input: &[u8]) -> Result<ProxyProgress, ProxyError> {
    if begins(input, V1_START) {
        parse_line(input)
    } else if begins(input, V2_START) {
        parse_binary(input)
    } else {
        Err(ProxyError::NoHeader)
    }
}

/// Whether as much as there is agrees with `start`.
fn begins(input: &[u8], start: &[u8]) -> bool {
    input.iter().zip(start).all(|(a, b)| a == b)
}

fn parse_line(input: &[u8]) -> Result<ProxyProgress, ProxyError> {
    let window = input.get(..V1_OCTETS_MAX).unwrap_or(input);
    let Some(end) = memchr(b'\n', window) else {
        return if input.len() >= V1_OCTETS_MAX { Err(ProxyError::TooLong) } else { Ok(ProxyProgress::More) };
    };
    let line = window.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(ProxyError::BadLine)?;
    let fields = line.strip_prefix(V1_START).ok_or(ProxyError::BadLine)?;
    let fields = std::str::from_utf8(fields).map_err(|_| ProxyError::BadLine)?;
    let done = |source| Ok(ProxyProgress::Done { header: ProxyHeader { source }, consumed: end + 1 });
    if fields == "UNKNOWN" || fields.starts_with("UNKNOWN ") {
        return done(None);
    }
    let mut words = fields.split(' ');
    let (Some(family), Some(source), Some(destination), Some(source_port), Some(destination_port), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(ProxyError::BadLine);
    };
    let (source, _): (IpAddr, IpAddr) = match family {
        "TCP4" => (ip::<Ipv4Addr>(source)?, ip::<Ipv4Addr>(destination)?),
        "TCP6" => (ip::<Ipv6Addr>(source)?, ip::<Ipv6Addr>(destination)?),
        _ => return Err(ProxyError::NotTcp),
    };
    port(destination_port)?;
    done(Some(SocketAddr::new(source.to_canonical(), port(source_port)?)))
}

fn ip<T: std::str::FromStr + Into<IpAddr>>(text: &str) -> Result<IpAddr, ProxyError> {
    text.parse::<T>().map(Into::into).map_err(|_| ProxyError::BadLine)
}

fn port(text: &str) -> Result<u16, ProxyError> {
    // `parse` alone would take a sign.
    if text.bytes().all(|c| c.is_ascii_digit()) { text.parse().map_err(|_| ProxyError::BadLine) } else { Err(ProxyError::BadLine) }
}

fn parse_binary(input: &[u8]) -> Result<ProxyProgress, ProxyError> {
    let Some((fixed, rest)) = input.split_first_chunk::<V2_FIXED_OCTETS>() else {
        // The octet with version and command is judged as soon as it is there.
        let early = input.get(V2_START.len()).is_some_and(|&octet| !matches!(octet, 0x20 | 0x21));
        return if early { Err(ProxyError::BadBinary) } else { Ok(ProxyProgress::More) };
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if !matches!(command, 0x20 | 0x21) {
        return Err(ProxyError::BadBinary);
    }
    if V2_FIXED_OCTETS + length > V2_OCTETS_MAX {
        return Err(ProxyError::TooLong);
    }
    let Some(block) = rest.get(..length) else { return Ok(ProxyProgress::More) };
    let source = match (command, family) {
        // LOCAL: the proxy's own health check; UNSPEC and UNIX streams have no address of use here.
        (0x20, _) | (_, 0x00 | 0x31) => None,
        (_, 0x11) => Some(v4(block).ok_or(ProxyError::BadBinary)?),
        (_, 0x21) => Some(v6(block).ok_or(ProxyError::BadBinary)?),
        _ => return Err(ProxyError::NotTcp),
    };
    Ok(ProxyProgress::Done { header: ProxyHeader { source }, consumed: V2_FIXED_OCTETS + length })
}

/// Source and destination address, source and destination port; extensions behind them are skipped.
fn v4(block: &[u8]) -> Option<SocketAddr> {
    let [a, b, c, d, _, _, _, _, high, low, _, _] = *block.first_chunk::<12>()?;
    Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low])))
}

fn v6(block: &[u8]) -> Option<SocketAddr> {
    let (source, rest) = block.first_chunk::<36>()?.split_first_chunk::<16>()?;
    let [high, low, _, _] = *rest.last_chunk::<4>()?;
    Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*source)).to_canonical(), u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).expect("short").to_be_bytes();
        [V2_START, &[command, family], &length, block].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x30, 0x39, 0, 25];

    fn v6_block(source: &str) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().expect("an address");
        [source.octets().as_slice(), &[0; 16], &[0x30, 0x39, 0, 25]].concat()
    }

    #[test]
    fn reads_headers_in_any_pieces() {
        let tlv = [V4.as_slice(), &[0x04, 0, 3, 1, 2, 3]].concat();
        let cases: &[(Vec<u8>, Option<&str>)] = &[
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 12345 25\r\n".to_vec(), Some("192.0.2.1:12345")),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 12345 25\r\n".to_vec(), Some("[2001:db8::1]:12345")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 12345 25\r\n".to_vec(), Some("192.0.2.1:12345")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), None),
            (binary(0x21, 0x11, &V4), Some("192.0.2.1:12345")),
            (binary(0x21, 0x11, &tlv), Some("192.0.2.1:12345")),
            (binary(0x21, 0x21, &v6_block("2001:db8::1")), Some("[2001:db8::1]:12345")),
            (binary(0x21, 0x21, &v6_block("::ffff:192.0.2.1")), Some("192.0.2.1:12345")),
            (binary(0x20, 0x11, &V4), None),
            (binary(0x20, 0x00, b""), None),
            (binary(0x21, 0x00, b""), None),
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x20, 0x55, &vec![0; V2_OCTETS_MAX - 16]), None),
        ];
        for (header, source) in cases {
            let source = source.map(|text| text.parse().expect("an address"));
            let stream = [header.as_slice(), b"EHLO x\r\n"].concat();
            for length in 0..header.len() {
                assert_eq!(parse(&stream[..length]), Ok(ProxyProgress::More), "{length} octets of {}", header.escape_ascii());
            }
            let done = ProxyProgress::Done { header: ProxyHeader { source }, consumed: header.len() };
            assert_eq!(parse(header), Ok(done));
            assert_eq!(parse(&stream), Ok(done), "what follows is the client's");
        }
    }

    #[test]
    fn refuses_what_is_no_header() {
        use ProxyError::{BadBinary, BadLine, NoHeader, NotTcp, TooLong};
        let cases: &[(Vec<u8>, ProxyError)] = &[
            (b"EHLO x\r\n".to_vec(), NoHeader),
            (b"E".to_vec(), NoHeader),
            (b"proxy TCP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(), NoHeader),
            (b"\r\n\r\nx".to_vec(), NoHeader),
            (b"\x16\x03\x01".to_vec(), NoHeader),
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2 3\r\n".to_vec(), BadLine),
            (b"PROXY TCP4  192.0.2.1 10.0.0.1 1 2\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.1 x 1 2\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(), BadLine),
            (b"PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 +1 2\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 65536 2\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.1 10.0.0.1  2\r\n".to_vec(), BadLine),
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 1 \xff\r\n".to_vec(), BadLine),
            (b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(), NotTcp),
            ([b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat(), TooLong),
            ([V2_START, &[0x11]].concat(), BadBinary),
            ([V2_START, &[0x22]].concat(), BadBinary),
            (binary(0x31, 0x11, &V4), BadBinary),
            (binary(0x21, 0x11, &V4[..11]), BadBinary),
            (binary(0x21, 0x21, &[0; 35]), BadBinary),
            (binary(0x21, 0x12, &V4), NotTcp),
            (binary(0x21, 0x41, &V4), NotTcp),
            ([V2_START, &[0x21, 0x11, 0xff, 0xff]].concat(), TooLong),
        ];
        for (input, expected) in cases {
            assert_eq!(parse(input), Err(*expected), "{}", input.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_bounded_work(tail: Vec<u8>, start in 0usize..3) {
            let input = [[b"".as_slice(), V1_START, V2_START][start], &tail].concat();
            match parse(&input) {
                Ok(ProxyProgress::Done { consumed, .. }) => prop_assert!(consumed <= input.len() && consumed <= V2_OCTETS_MAX),
                Ok(ProxyProgress::More) => prop_assert!(input.len() < V2_OCTETS_MAX),
                Err(_) => {}
            }
        }
    }
}

//! `lockrun health`: one question to a lockrun's `--http`, for images that have no curl. Must never wait for longer than a
//! probe does.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::clock;
use crate::error::Failure;
use crate::lease::Moment;

/// For all of it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Of an answer, which is a line.
const LONGEST: usize = 8192;

/// Whether it is well, and the line that says so.
pub fn ask(at: SocketAddr, path: &str) -> Result<(bool, String), Failure> {
    let give_up_at = clock::now() + PATIENCE;
    let mut last = None;
    for at in reached_at(at) {
        match exchange(at, path, give_up_at) {
            Ok(answer) => return understand(at, &answer),
            Err(error) => last = Some(format!("{at}: no answer ({error})")),
        }
    }
    let why = last.unwrap_or_default();
    Err(Failure::unreachable(format!("{why}; is a lockrun with --http there?")))
}

/// One that listens at every address answers on the loopback.
fn reached_at(at: SocketAddr) -> Vec<SocketAddr> {
    let loopback: &[IpAddr] = match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        // Also where there is no IPv6.
        IpAddr::V6(ip) if ip.is_unspecified() => &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)],
        IpAddr::V4(_) | IpAddr::V6(_) => return vec![at],
    };
    loopback.iter().map(|ip| SocketAddr::new(*ip, at.port())).collect()
}

fn exchange(at: SocketAddr, path: &str, give_up_at: Moment) -> std::io::Result<Vec<u8>> {
    // A time of zero is refused by the calls that take one.
    let left = || give_up_at.since(clock::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&at, left())?;
    stream.set_write_timeout(Some(left()))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while answer.len() < LONGEST && clock::now() < give_up_at {
        stream.set_read_timeout(Some(left()))?;
        match stream.read(&mut part)? {
            0 => break,
            count => answer.extend_from_slice(&part[..count]),
        }
    }
    if answer.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

fn understand(at: SocketAddr, answer: &[u8]) -> Result<(bool, String), Failure> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    let line = body.lines().next().unwrap_or_default().to_string();
    match status {
        Some("200") => Ok((true, line)),
        Some("503") => Ok((false, line)),
        Some(_) | None => Err(Failure::refused(format!("{at}: what answers there is no lockrun; check the address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answers_of_a_lockrun_are_understood() {
        let at = SocketAddr::from(([127, 0, 0, 1], 80));
        let well = |answer: &str| understand(at, answer.as_bytes()).map(|(well, line)| format!("{well} {line}"));
        assert_eq!(well("HTTP/1.1 200 OK\r\na: b\r\n\r\nholding\n").as_deref(), Ok("true holding"));
        assert_eq!(well("HTTP/1.0 503 x\r\n\r\nstopping\nmore").as_deref(), Ok("false stopping"));
        for other in ["", "SSH-2.0-OpenSSH", "HTTP/1.1", "HTTP/1.1 404 Not Found\r\n\r\nno", "HTTP/2 200 OK\r\n\r\nx"] {
            assert_eq!(well(other).unwrap_err().code, 125, "{other}");
        }
    }
}

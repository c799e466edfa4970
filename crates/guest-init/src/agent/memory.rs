//! How much memory the machine has (proc(5), meminfo).

use hostel_proto::v1;

/// Reads the lines that the daemon wants; what is missing is 0.
pub(crate) fn reply(meminfo: &str) -> v1::MemoryReply {
    let bytes = |name: &str| {
        let line = meminfo
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    v1::MemoryReply {
        total_bytes: bytes("MemTotal"),
        available_bytes: bytes("MemAvailable"),
        free_bytes: bytes("MemFree"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_found_and_rubbish_is_zero() {
        let reply = reply(
            "MemTotal:        1000 kB\nMemFree:  x kB\nMemAvailable: 18446744073709551615 kB\n",
        );
        assert_eq!(
            (reply.total_bytes, reply.free_bytes, reply.available_bytes),
            (1_024_000, 0, u64::MAX)
        );
    }
}

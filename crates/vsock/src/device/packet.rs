//! The packet header of virtio-vsock (virtio 1.2, 5.10.6): 44 bytes, little endian.

/// Length of a header on the wire.
pub(crate) const HEADER_LEN: usize = 44;
/// The longest payload one packet may carry; what Linux drivers send at most.
pub(crate) const MAX_PAYLOAD: usize = 64 * 1024;
/// The address of the host.
pub(crate) const HOST_CID: u64 = 2;
/// The only socket type that is served.
pub(crate) const TYPE_STREAM: u16 = 1;

/// What a packet asks for.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// SHUTDOWN: the sender will receive no more.
pub(crate) const SHUTDOWN_RCV: u32 = 1;
/// SHUTDOWN: the sender will send no more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;
/// SHUTDOWN: both.
pub(crate) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// A decoded header. Every value is as the peer wrote it; nothing has been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) type_: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// Reads a header from its bytes.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut at = 0;
        let mut take = |n: usize| {
            let mut value = [0; 8];
            value[..n].copy_from_slice(&bytes[at..at + n]);
            at += n;
            u64::from_le_bytes(value)
        };
        Self {
            src_cid: take(8),
            dst_cid: take(8),
            src_port: take(4) as u32,
            dst_port: take(4) as u32,
            len: take(4) as u32,
            type_: take(2) as u16,
            op: take(2) as u16,
            flags: take(4) as u32,
            buf_alloc: take(4) as u32,
            fwd_cnt: take(4) as u32,
        }
    }

    /// Returns the bytes of a header.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
            at += value.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.type_.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_the_standard_says() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1122_3344,
            dst_port: 9,
            len: 0x55,
            type_: TYPE_STREAM,
            op: op::RW,
            flags: 3,
            buf_alloc: 0x1_0000,
            fwd_cnt: 0xffff_fffe,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[24..32], [0x55, 0, 0, 0, 1, 0, 5, 0]);
        assert_eq!(bytes[40..], [0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(Header::decode(&bytes), header);
    }
}

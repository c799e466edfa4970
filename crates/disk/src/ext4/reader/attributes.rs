//! Extended attributes and inline data as they are read.

use super::{inodes::Inode, volume::Volume};
use crate::{
    BlockSource,
    bytes::le32,
    ext4::{
        ReadError, checksum, flag,
        xattr::{self, Found, Value},
    },
};

/// A full name and the value that user space sees.
type Pair = (Vec<u8>, Vec<u8>);

/// The largest value the kernel makes.
const VALUE_MAX: u64 = 64 << 10;

impl<S: BlockSource> Volume<S> {
    fn spare(inode: &Inode) -> Result<Vec<Found>, ReadError> {
        if le32(&inode.spare, 0) != xattr::MAGIC {
            return Ok(Vec::new());
        }
        xattr::decode(&inode.spare, 4, 4).ok_or_else(|| {
            ReadError::corrupt(format!(
                "the attributes in inode {} are wrong",
                inode.number
            ))
        })
    }

    fn value(&self, value: Value) -> Result<Vec<u8>, ReadError> {
        match value {
            Value::Here(value) => Ok(value),
            Value::Inode(number, size) => {
                let inode = self.inode(number)?;
                if !inode.has(flag::EA_INODE) || inode.size != u64::from(size) {
                    return Err(ReadError::corrupt(format!(
                        "inode {number} holds no attribute of {size} bytes"
                    )));
                }
                self.contents(&inode, VALUE_MAX)
            }
        }
    }

    /// Returns the attributes of a file, sorted by name, in the form that getxattr(2) shows.
    pub(super) fn xattrs(&self, inode: &Inode) -> Result<Vec<Pair>, ReadError> {
        let wrong = || {
            ReadError::corrupt(format!(
                "the attribute block of inode {} is wrong",
                inode.number
            ))
        };
        let mut found = Self::spare(inode)?;
        if inode.xattr_block != 0 {
            let block = self.block(inode.xattr_block)?;
            let sum_wrong = self.checksums
                && le32(&block, 16) != checksum::xattr_block(self.seed, inode.xattr_block, &block);
            if le32(&block, 0) != xattr::MAGIC || sum_wrong {
                return Err(wrong());
            }
            found.extend(xattr::decode(&block, xattr::HEADER, 0).ok_or_else(wrong)?);
        }
        let mut out = Vec::new();
        for Found { index, name, value } in found {
            if (index, name.as_slice()) == xattr::INLINE_DATA {
                continue;
            }
            let value = self.value(value)?;
            out.push(xattr::shown(index, &name, value).ok_or_else(|| {
                ReadError::corrupt(format!(
                    "inode {} has an attribute of unknown kind {index}, or with an impossible name",
                    inode.number
                ))
            })?);
        }
        out.sort();
        Ok(out)
    }

    /// Returns data that is kept in the inode: 60 bytes in place of the map, the rest as an attribute.
    pub(super) fn inline_data(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let mut data = inode.map.to_vec();
        for Found { index, name, value } in Self::spare(inode)? {
            if (index, name.as_slice()) == xattr::INLINE_DATA {
                data.extend(self.value(value)?);
            }
        }
        if data.len() as u64 > inode.size {
            data.truncate(inode.size as usize);
        }
        if (data.len() as u64) < inode.size {
            return Err(ReadError::corrupt(format!(
                "inode {} has less inline data than its size",
                inode.number
            )));
        }
        Ok(data)
    }
}

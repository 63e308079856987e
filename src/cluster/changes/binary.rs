//! The output of pgoutput, version 1 (protocol documentation, "Logical Replication Message Formats"), of which only the
//! heads are looked at.

use crate::cluster::changes::Relation;
use crate::cluster::changes::stream::Message;
use crate::error::Malformed;
use crate::wire::read::Reader;

/// One message, of which `body` is the beginning at least.
///
/// # Errors
/// It is none of version 1, or what is there of it ends too early.
pub fn read(body: &[u8]) -> Result<Message, Malformed> {
    let mut r = Reader::new(body);
    let oid = |r: &mut Reader<'_>| r.i32().map(|oid| Relation::Oid(oid as u32));
    match r.u8()? {
        b'B' => {
            // The commit's position and time stand before the transaction.
            r.bytes(16)?;
            Ok(Message::Begin { xid: r.i32()? as u32 })
        }
        b'C' => Ok(Message::Commit),
        b'I' | b'U' | b'D' => Ok(Message::Change(vec![oid(&mut r)?])),
        b'T' => {
            let count = r.i32()?;
            r.u8()?;
            (0..count).map(|_| oid(&mut r)).collect::<Result<_, _>>().map(Message::Change)
        }
        b'O' | b'R' | b'Y' | b'M' => Ok(Message::Other),
        _ => Err(Malformed("unknown output of pgoutput")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_heads_of_messages() {
        let begin = [&b"B"[..], &[0; 16], &7u32.to_be_bytes()].concat();
        assert_eq!(read(&begin), Ok(Message::Begin { xid: 7 }));
        assert_eq!(read(b"I\0\0\0\x05N\0\x01"), Ok(Message::Change(vec![Relation::Oid(5)])));
        let truncate = b"T\0\0\0\x02\0\0\0\0\x05\0\0\0\x06";
        assert_eq!(read(truncate), Ok(Message::Change(vec![Relation::Oid(5), Relation::Oid(6)])));
        assert_eq!(read(b"C\0"), Ok(Message::Commit));
        assert_eq!(read(b"R\0\0\0\x05public\0t\0"), Ok(Message::Other));
        for cut in 0..truncate.len() {
            assert!(read(&truncate[..cut]).is_err(), "{cut}");
        }
        assert!(read(b"S").is_err(), "streamed transactions are not asked for");
    }
}

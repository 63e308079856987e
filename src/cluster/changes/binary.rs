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
            let count = u32::try_from(r.i32()?).map_err(|_| Malformed("a truncation of less than no relation"))?;
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
        assert!(read(b"T\xff\xff\xff\xff\0").is_err());
    }

    /// What PostgreSQL 15 sent of two transactions: rows written, updated with and without their keys, and deleted; an enum; two tables
    /// truncated; a message; and one that has an origin.
    const SENT: &str = "\
        420000000001ef3e7000030427bfc8520c000002f5
        52000049d67075626c6963006731006400020169640000000017ffffffff006e0000000019ffffffff
        49000049d64e0002740000000131740000000178
        49000049d64e00027400000001326e
        55000049d64e0002740000000131740000000179
        55000049d64b00027400000001326e4e00027400000001336e
        44000049d64b00027400000001336e
        59000049e87075626c6963006d6f6f6400
        52000049eb7075626c696300673300640001016d00000049e8ffffffff
        49000049eb4e0001740000000161
        540000000200000049d6000049dd
        4d010000000001ef3e7070000000000568656c6c6f
        43000000000001ef3e700000000001ef409000030427bfc8520c
        420000000001ef43c800030427bfc878f9000002f7
        4f00000000000000016f00
        49000049d64e000274000000013974000000016f
        43000000000001ef43c80000000001ef441000030427bfc878f9";

    #[test]
    fn reads_what_a_server_has_sent() {
        let byte = |hex: &[u8]| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
        let sent = SENT.split_whitespace().map(|line| line.as_bytes().chunks(2).map(byte).collect::<Vec<_>>());
        let (one, two, three) = (18902, 18909, 18923);
        let change = |oids: &[u32]| Message::Change(oids.iter().copied().map(Relation::Oid).collect());
        let mut expected = vec![Message::Begin { xid: 757 }, Message::Other];
        expected.extend(std::iter::repeat_n(change(&[one]), 5));
        expected.extend([Message::Other, Message::Other, change(&[three]), change(&[one, two]), Message::Other]);
        expected.extend([
            Message::Commit,
            Message::Begin { xid: 759 },
            Message::Other,
            change(&[one]),
            Message::Commit,
        ]);
        assert_eq!(sent.map(|message| read(&message).unwrap()).collect::<Vec<_>>(), expected);
    }
}

//! The limit of a cached read: each batch of frames is answered from memory, with the row that the repeated reads ask for.
//! One read, one write, one thread; no look at what is asked, and nobody is turned away.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BUFFER: usize = 16 * 1024;

/// AuthenticationOk, and that it is ready.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const READY: &[u8] = b"Z\0\0\0\x05I";
const PARSED: &[u8] = b"1\0\0\0\x04";
const BOUND: &[u8] = b"2\0\0\0\x04";
/// RowDescription: `abalance`, an int4 as text.
const COLUMNS: &[u8] = b"T\0\0\0\x21\0\x01abalance\0\0\0\x40\0\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";
/// DataRow with `0`, and CommandComplete.
const ROW: &[u8] = b"D\0\0\0\x0b\0\x01\0\0\0\x010C\0\0\0\x0dSELECT 1\0";

/// Answers until the process is ended.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (client, _) = listener.accept().await?;
            tokio::spawn(serve(client));
        }
    })
}

async fn serve(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (mut inbox, mut outbox) = (Vec::with_capacity(BUFFER), Vec::with_capacity(BUFFER));
    let mut welcomed = false;
    while client.read_buf(&mut inbox).await? > 0 {
        let mut at = 0;
        // The startup packet has no tag.
        while let Some(head) = inbox.get(at..at + usize::from(welcomed) + 4) {
            let (tag, length) = head.split_at(head.len() - 4);
            let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)).max(4);
            if inbox.len() < at + tag.len() + length {
                break;
            }
            at += tag.len() + length;
            answer(tag.first().copied(), &mut outbox);
            welcomed = true;
        }
        inbox.drain(..at);
        client.write_all(&outbox).await?;
        outbox.clear();
    }
    Ok(())
}

fn answer(tag: Option<u8>, outbox: &mut Vec<u8>) {
    let answers: &[&[u8]] = match tag {
        None => &[WELCOME],
        Some(b'Q') => &[COLUMNS, ROW, READY],
        Some(b'P') => &[PARSED],
        Some(b'B') => &[BOUND],
        Some(b'D') => &[COLUMNS],
        Some(b'E') => &[ROW],
        Some(b'S') => &[READY],
        Some(_) => &[],
    };
    answers.iter().for_each(|answer| outbox.extend_from_slice(answer));
}

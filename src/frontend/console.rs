//! The admin console's end of a connection: simple queries in, rows out.

use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::admin::console::Answer;
use crate::error::{Fault, sqlstate};
use crate::frontend::login::Opening;
use crate::wire::tag::frontend;
use crate::wire::{read, scan, write};

/// The largest statement the console reads.
const MAX_STATEMENT: usize = 64 * 1024;

/// Serves a console client until it leaves.
pub async fn serve(mut opening: Opening) {
    loop {
        match answer(&mut opening).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(fault) => {
                write::error(&mut opening.outbox, &fault);
                let _ = opening.stream.write_all_buf(&mut opening.outbox).await;
                return;
            }
        }
        if opening.stream.write_all_buf(&mut opening.outbox).await.is_err() || opening.stream.flush().await.is_err() {
            return;
        }
        match opening.stream.read_buf(&mut opening.inbox).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

/// Answers all whole messages; false at Terminate.
async fn answer(opening: &mut Opening) -> Result<bool, Fault> {
    let mut skipping = false;
    while let Some(head) = scan::head(&opening.inbox)? {
        if head.total > MAX_STATEMENT {
            return Err(Fault::protocol("invalid message length"));
        }
        if opening.inbox.len() < head.total {
            break;
        }
        let frame = opening.inbox.split_to(head.total);
        match head.tag {
            frontend::QUERY => {
                let text = String::from_utf8_lossy(read::query(&frame[scan::HEADER..])?).into_owned();
                run(opening, &text).await;
            }
            frontend::TERMINATE => return Ok(false),
            frontend::SYNC => {
                skipping = false;
                write::ready(&mut opening.outbox, b'I');
            }
            _ if skipping => {}
            _ => {
                skipping = true;
                let message = "the admin console speaks the simple query protocol only";
                write::error(&mut opening.outbox, &Fault::error(sqlstate::FEATURE_NOT_SUPPORTED, message));
            }
        }
    }
    Ok(true)
}

async fn run(opening: &mut Opening, text: &str) {
    let out = &mut opening.outbox;
    let Some(admin) = opening.proxy.admin.get().cloned() else {
        write::error(out, &Fault::error(sqlstate::CANNOT_CONNECT_NOW, "pgweir is starting"));
        return write::ready(out, b'I');
    };
    // Not here: the worker's other clients would wait for it. Given up where this client is.
    let (text, mut answers) = (text.to_owned(), JoinSet::new());
    let answer = async move {
        let mut frames = BytesMut::new();
        admin.answer(&text, Instant::now()).await.iter().for_each(|answer| encode(&mut frames, answer));
        frames
    };
    answers.spawn_on(answer, &opening.proxy.control);
    match answers.join_next().await {
        Some(Ok(frames)) => out.unsplit(frames),
        _ => write::error(out, &Fault::error(sqlstate::INTERNAL_ERROR, "the command has failed")),
    }
    write::ready(out, b'I');
}

fn encode(out: &mut BytesMut, answer: &Answer) {
    match answer {
        Answer::Rows { columns, rows, tag } => {
            write::row_description(out, columns.iter().copied());
            for row in rows {
                write::data_row(out, row.iter().map(Option::as_deref));
            }
            write::command_complete(out, tag);
        }
        Answer::Complete(tag) => write::command_complete(out, tag),
        Answer::Empty => write::empty_query(out),
        Answer::Error { sqlstate, message } => write::error(out, &Fault::error(*sqlstate, message.as_str())),
    }
}

//! A pass over a batch: reading, computing and writing at the same time, each a piece ahead of the next.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{self, Builder};

use super::piece::Piece;
use crate::cli::batch_file::BatchFile;
use crate::cli::elements::Elements;
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;

/// Pieces in memory: one that is read, one that is worked on, one that is written.
const BUFFERS: usize = 3;

/// Works on every piece in turn, and hands it on, with what came of it, to be written; `what` is what the progress line says is done.
pub(super) fn pass<T: Send>(
    what: &str,
    batch: &BatchFile,
    pieces: &[Piece],
    progress: &Progress,
    mut work: impl FnMut(&Piece, &mut Elements) -> Result<T, Failure>,
    mut write: impl FnMut(&Piece, &Elements, T) -> Result<(), Failure> + Send,
) -> Result<(), Failure> {
    let (empty, to_fill) = sync_channel(BUFFERS);
    let (filled, to_work_on) = sync_channel(BUFFERS);
    let (finished, to_write) = sync_channel::<(&Piece, Elements, T)>(BUFFERS);
    for _ in 0..BUFFERS.min(pieces.len()) {
        // The channel has room for all of them, and its other end is here.
        drop(empty.send(Elements::new(batch.dtype)));
    }
    thread::scope(|scope| {
        // Where another thread has failed, its end of a channel is gone: that is the sign to stop.
        let spawned = Builder::new().spawn_scoped(scope, move || {
            for piece in pieces {
                let Ok(mut elements) = to_fill.recv() else { return };
                let read = batch.read(piece, &mut elements).map(|()| elements);
                let failed = read.is_err();
                if filled.send(read).is_err() || failed {
                    return;
                }
            }
        });
        spawned.map_err(no_thread)?;
        let writer = Builder::new().spawn_scoped(scope, move || {
            for (piece, elements, result) in to_write {
                write(piece, &elements, result)?;
                drop(empty.send(elements));
            }
            Ok(())
        });
        let writer = writer.map_err(no_thread)?;
        let mut work_on_all = || {
            for piece in pieces {
                let Ok(read) = to_work_on.recv() else { break };
                let mut elements = read?;
                let result = work(piece, &mut elements)?;
                progress.advance(what, batch, piece);
                if finished.send((piece, elements, result)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let worked = work_on_all();
        drop((finished, to_work_on));
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        worked.and(written)
    })
}

fn no_thread(error: io::Error) -> Failure {
    Failure::Failed(format!(
        "cannot start a thread: got \"{error}\"; expected one that reads and one that writes; allow this process more"
    ))
}

//! A database file with bytes changed, cut off or put in: an answer or a refusal, never a panic, a hang, or a claim that is
//! not kept.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use lockrun::clock;
use lockrun::lease::Action;
use lockrun::store::sqlite::Open;
use lockrun::store::{Store, StoreError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::check;
use crate::records::{Room, block_on, name, step, store};

/// Long: the machine may be loaded, and only a hang waits it out.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    Zeros(Index, usize),
    CutTo(Index),
    More(Vec<u8>),
    /// Within the first hundred bytes, which say what the file is.
    Header(usize, u8),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        6 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        2 => (16..100_usize, any::<u8>()).prop_map(|(at, byte)| Damage::Header(at, byte)),
        1 => (any::<Index>(), 1..5000_usize).prop_map(|(at, count)| Damage::Zeros(at, count)),
        1 => any::<Index>().prop_map(Damage::CutTo),
        1 => vec(any::<u8>(), 1..600).prop_map(Damage::More),
    ];
    vec(one, 1..40)
}

fn apply(damage: &[Damage], bytes: &mut Vec<u8>) {
    for damage in damage {
        match damage {
            _ if bytes.len() < 101 => {}
            Damage::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Header(at, byte) => bytes[*at] = *byte,
            Damage::Zeros(at, count) => {
                let at = at.index(bytes.len());
                let end = (at + count).min(bytes.len());
                bytes[at..end].fill(0);
            }
            Damage::CutTo(at) => bytes.truncate(at.index(bytes.len()).max(100)),
            Damage::More(more) => bytes.extend(more),
        }
    }
}

fn answered(error: &StoreError) {
    let (StoreError::Refused(why) | StoreError::Unknown(why)) = error;
    assert!(!why.is_empty() && !why.contains("thread of the database is gone"), "it panicked: {why}");
}

/// Looks, claims if that is free, looks again.
fn use_it(path: &Path) {
    block_on(async {
        let store = store(path, Open::Create, None);
        if let Err(error) = store.list(clock::now()).await {
            answered(&error);
        }
        match store.read(&name(), clock::now()).await.map(step) {
            Err(error) => answered(&error),
            Ok(Some(Action::Swap { expect, record, .. })) => {
                if let Err(error) = store.swap(&name(), &expect, &record).await {
                    answered(&error);
                }
            }
            Ok(_) => {}
        }
        if let Err(error) = store.read(&name(), clock::now()).await {
            answered(&error);
        }
    });
}

#[test]
fn a_damaged_database_is_answered_for_or_refused() {
    let room = Room::new();
    check(250, damage(), |damage| {
        let (_dir, path) = room.fresh();
        let mut bytes = fs::read(&path).expect("a database");
        apply(&damage, &mut bytes);
        fs::write(&path, &bytes).expect("damaged");
        let (done, wait) = mpsc::channel();
        let user = std::thread::spawn(move || {
            use_it(&path);
            let _ = done.send(());
        });
        assert!(!matches!(wait.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Timeout)), "it hangs");
        user.join().expect("no panic");
    });
}

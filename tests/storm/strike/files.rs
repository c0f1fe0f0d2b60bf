//! Faults of the database's files and of their disk. Must never touch one that a fault of the disk keeps from being used.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::hold;
use crate::faults::Rule;
use crate::files::Files;
use crate::keeper;
use crate::random::Random;
use crate::ring::Ring;
use crate::world::World;

/// An error: it could not be injected.
pub fn strike(ring: &Ring, files: &Files, world: &World, rule: &'static Rule, random: &mut Random) -> io::Result<()> {
    let (db, folder) = (&files.db, files.db.parent().expect("a folder"));
    let around = |act: &mut dyn FnMut() -> io::Result<()>| world.fault(rule, &ring.name, "", act);
    let remove = |endings: &[&str]| {
        around(&mut || {
            files.remove(endings);
            Ok(())
        })
    };
    match rule.name {
        "busy" => {
            let connection = open(files)?;
            // The right to write may take a moment, in which nobody else is kept from it.
            connection.execute_batch(random.of(&["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])).map_err(not_now)?;
            around(&mut || {
                hold(ring, world, random);
                connection.execute_batch("ROLLBACK").map_err(not_now)
            })
        }
        "read-only" => around(&mut || {
            let parts = random.of(&[&["", "-wal", "-shm"][..], &["", "-wal", "-shm", "-lockrun"], &[""], &["-wal"]]);
            let done = parts.iter().try_for_each(|ending| keeper::set_immutable(&files.beside(ending), true));
            hold(ring, world, random);
            keeper::free_files(folder);
            done
        }),
        "deleted" => remove(&["", "-wal", "-shm"]),
        "replaced-empty" => around(&mut || {
            fs::write(files.beside(".new"), "")?;
            files.remove(&["-wal", "-shm"]);
            fs::rename(files.beside(".new"), db)
        }),
        "replaced-old" => {
            let copy = files.beside(".old");
            let _ = fs::remove_file(&copy);
            open(files)?.execute("VACUUM INTO ?1", [copy.to_str()]).map_err(not_now)?;
            world.pause(random.within(0..=world.table.times.ttl as u64));
            around(&mut || {
                files.remove(&["-wal", "-shm"]);
                fs::rename(&copy, db)
            })
        }
        "corrupted" => around(&mut || {
            let (from, length) = random.of(&[(0, 16), (16, 84), (100, 400), (4096, 4096)]);
            let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            File::options().write(true).open(db)?.write_all_at(&bytes, from)?;
            hold(ring, world, random);
            files.remove(&["-wal", "-shm", ""]);
            Ok(())
        }),
        "wal-removed" => remove(random.of(&[&["-wal"][..], &["-wal", "-shm"]])),
        "shm-removed" => remove(&["-shm"]),
        "shm-truncated" => around(&mut || {
            let length = random.of(&[0, 16, 4096]);
            File::options().write(true).open(files.beside("-shm"))?.set_len(length)
        }),
        "side-removed" => remove(&["-lockrun"]),
        "all-removed" => remove(random.of(&[&["", "-wal", "-shm", "-lockrun"][..], &["-wal", "-shm", "-lockrun"], &["-lockrun", ""]])),
        "full" => around(&mut || {
            let filler = db.with_file_name("filler");
            let filled = fill(&filler);
            hold(ring, world, random);
            let _ = fs::remove_file(filler);
            filled
        }),
        "frozen" => around(&mut || keeper::freeze(folder, || hold(ring, world, random))),
        name => unreachable!("{name} hits no file"),
    }
}

fn open(files: &Files) -> io::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&files.db, flags).map_err(not_now)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(not_now)?;
    connection.busy_timeout(Duration::from_millis(200)).map_err(not_now)?;
    Ok(connection)
}

/// The database is away, in use or damaged at this moment.
fn not_now(error: rusqlite::Error) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, error)
}

/// Takes all room that is left.
fn fill(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut step: libc::off_t = 1 << 20;
    let mut at = 0;
    while step >= 4096 {
        // SAFETY: no pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, at, step) } == 0 {
            at += step;
        } else {
            step /= 2;
        }
    }
    while file.write_all(&[0; 1024]).is_ok() && at < 1 << 30 {
        at += 1024;
    }
    Ok(())
}

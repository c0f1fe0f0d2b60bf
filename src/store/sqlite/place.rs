//! Where a database lies, and whether SQLite can lock there. Read-only: nothing is created or changed here. An allow-list,
//! because a deny-list misses the next network file system.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess};

/// Local file systems of one kernel, by statfs(2).
const LOCAL: [(i64, &str); 8] = [
    (0xEF53, "ext"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0xF2F5_2010, "f2fs"),
    (0x2FC1_2FC1, "zfs"),
    (0xCA45_1A4E, "bcachefs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58F6, "ramfs"),
];
const OVERLAY: i64 = 0x794C_7630;
/// For the message only.
const REFUSED: [(i64, &str); 16] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00C3_6400, "Ceph"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x564C, "NCP"),
    (0x7461_636F, "OCFS2"),
    (0x0BD0_0BD0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x4750_4653, "GPFS"),
    (0x786F_4256, "vboxsf"),
];

/// A place that was found good.
#[derive(Clone, Debug)]
pub struct Place {
    /// Absolute, with no symbolic link: every alias of a database must lead to the same side file.
    pub path: PathBuf,
    pub exists: bool,
    pub file_system: String,
    /// Things that are allowed but rarely meant.
    pub warnings: Vec<String>,
}

/// Looks at the path. The error is a whole line for the user, without the path in front.
pub fn look(path: &Path, allow_fs: bool) -> Result<Place, String> {
    let path = resolve(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.to_string()),
    };
    if let Some(metadata) = &metadata {
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err("it is a folder; name a file in it".to_string());
        }
        if !kind.is_file() {
            let what = if kind.is_fifo() { "a pipe" } else { "a device or socket" };
            return Err(format!("it is {what}, not a file; name another path"));
        }
        if is_mount_point(&path) {
            return Err("the file itself is a mount point, so each mount has a -wal and a lock of its own, and two would run; \
                 mount its folder"
                .to_string());
        }
        if metadata.nlink() > 1 && !allow_fs {
            return Err(format!("it has {} hard links, and under each name a lock of its own; keep one (or --allow-fs)", metadata.nlink()));
        }
    }
    let exists = metadata.is_some() && is_usable(&path)?;
    access(folder).map_err(|errno| not_writable("its folder", errno))?;
    let number = nix::sys::statfs::statfs(folder).map_err(|errno| errno.desc().to_string())?.filesystem_type().0;
    #[allow(clippy::unnecessary_cast)] // the width differs between C libraries
    let number = number as i64;
    let mut warnings = Vec::new();
    let file_system = match LOCAL.iter().find(|(magic, _)| *magic == number) {
        Some((_, name)) => (*name).to_string(),
        None if number == OVERLAY => {
            warnings.push(format!(
                "{}: on an overlay, private to this container: no other container sees this database; mount a volume",
                path.display()
            ));
            "overlay".to_string()
        }
        None => {
            let name = REFUSED.iter().find(|(magic, _)| *magic == number).map(|(_, name)| *name);
            let name = name.map_or_else(|| format!("type {number:#x}"), str::to_string);
            if !allow_fs {
                return Err(format!(
                    "its file system ({name}) is not one on which SQLite's locks are known to work; use a local one, or a \
                     server store (postgres, etcd, redis), or --allow-fs at your own risk"
                ));
            }
            warnings.push(format!("{}: on {name}, where SQLite's locks may not work (--allow-fs)", path.display()));
            name
        }
    };
    if on_empty_dir(folder) {
        warnings.push(format!(
            "{}: on an emptyDir, private to this pod: no other pod sees this database; use a volume that they share",
            path.display()
        ));
    }
    Ok(Place { path, exists, file_system, warnings })
}

fn resolve(path: &Path) -> Result<PathBuf, String> {
    if path.as_os_str().is_empty() {
        return Err("the path is empty".to_string());
    }
    // A dangling link is followed too: SQLite would create the file where it points to.
    let mut path = path.to_path_buf();
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => break,
        }
    }
    let Some(name) = path.file_name().map(ToOwned::to_owned) else {
        return Err("it is a folder; name a file in it".to_string());
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let folder = fs::canonicalize(folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("folder {} does not exist; create it first", folder.display()),
        _ => format!("folder {}: {error}", folder.display()),
    })?;
    Ok(folder.join(name))
}

/// False: it was removed after it had been seen.
fn is_usable(path: &Path) -> Result<bool, String> {
    match access(path) {
        Ok(()) => {}
        Err(Errno::ENOENT) => return Ok(false),
        Err(errno) => return Err(not_writable("it", errno)),
    }
    match looks_like_sqlite(path) {
        Ok(true) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Ok(false) | Err(_) => Err("it is not a SQLite database; name another file".to_string()),
    }
}

/// SQLite itself takes a file shorter than a page for an empty database, and would write over it.
fn looks_like_sqlite(path: &Path) -> io::Result<bool> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let mut file = fs::File::open(path)?;
    // Of this very file: another may have taken the place of the one that was seen before.
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut head = [0; 16];
    io::Read::read_exact(&mut file, &mut head)?;
    // All zeros: being made by another copy in this moment.
    Ok(head == *MAGIC || head == [0; 16])
}

fn access(path: &Path) -> Result<(), Errno> {
    eaccess(path, AccessFlags::R_OK | AccessFlags::W_OK)
}

fn not_writable(what: &str, errno: Errno) -> String {
    match errno {
        Errno::EROFS => format!("{what} is on a read-only file system; lockrun must write there"),
        _ => format!("{what} is not writable ({}); lockrun must write there", errno.desc().to_lowercase()),
    }
}

fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(c_path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: an all-zero statx is a valid one, and both pointers outlive the call.
    let result = unsafe {
        let mut result: libc::statx = std::mem::zeroed();
        if libc::statx(libc::AT_FDCWD, c_path.as_ptr(), 0, libc::STATX_BASIC_STATS, &mut result) != 0 {
            return false;
        }
        result
    };
    result.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0
}

/// Kubernetes mounts an emptyDir from a folder of this name.
fn on_empty_dir(folder: &Path) -> bool {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        return false;
    }
    fs::read("/proc/self/mountinfo").is_ok_and(|mounts| root_of(folder, &mounts).contains("/kubernetes.io~empty-dir/"))
}

/// The root of the mount that a folder is on, by the lines of proc_pid_mountinfo(5). Of two at one point the later one
/// hides the other.
fn root_of(folder: &Path, mounts: &[u8]) -> String {
    use std::os::unix::ffi::OsStringExt;
    let mounts = mounts.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (fields.nth(3)?, unescaped(fields.next()?));
        let depth = point.len();
        folder.starts_with(std::ffi::OsString::from_vec(point)).then_some((depth, root))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, root)| String::from_utf8_lossy(root).into_owned()).unwrap_or_default()
}

/// Space, tab, newline and backslash stand there as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        let (byte, next) = match code.filter(|_| *first == b'\\') {
            Some(code) => (code, &after[3..]),
            None => (*first, after),
        };
        bytes.push(byte);
        rest = next;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// As the kernel does it (mangle_path with " \t\n\\").
    fn escaped(path: &Path) -> Vec<u8> {
        let escape = |byte: &u8| if b" \t\n\\".contains(byte) { format!("\\{byte:03o}").into_bytes() } else { vec![*byte] };
        path.as_os_str().as_bytes().iter().flat_map(escape).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_mount_is_found_by_its_point_whatever_its_letters(name in proptest::collection::vec(1..=255_u8, 1..12), before: Vec<u8>) {
            let name: Vec<u8> = name.into_iter().filter(|byte| *byte != b'/').chain(*b"x").collect();
            let point = Path::new("/data").join(OsString::from_vec(name));
            let line = |root: &[u8], point: &Path| [b"36 35 98:0 ", root, b" ", &escaped(point), b" rw master:1 - ext4 /dev/x rw\n"].concat();
            let before: Vec<u8> = before.into_iter().filter(|byte| *byte != b'\n').chain(*b"\n").collect();
            let here = [line(b"/old", &point), line(b"/new", &point)].concat();
            let mounts = [line(b"/", Path::new("/")), before, here, line(b"/other", Path::new("/data/"))].concat();
            prop_assert_eq!(root_of(&point.join("folder"), &mounts), "/new");
            prop_assert_eq!(root_of(Path::new("/elsewhere"), &mounts), "/");
        }
    }

    #[test]
    fn every_alias_of_a_database_is_one_place() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let real = dir.path().join("real");
        fs::create_dir(&real).expect("a folder");
        std::os::unix::fs::symlink("real", dir.path().join("folder")).expect("a link");
        std::os::unix::fs::symlink("folder/x.db", dir.path().join("dangling.db")).expect("a link");
        let direct = look(&real.join("x.db"), false).expect("good").path;
        assert_eq!(look(&dir.path().join("folder/x.db"), false).expect("good").path, direct);
        assert_eq!(look(&dir.path().join("folder/../real/x.db"), false).expect("good").path, direct);
        assert_eq!(look(&dir.path().join("dangling.db"), false).expect("good").path, direct);
    }

    #[test]
    fn a_file_that_comes_and_goes_meanwhile_is_there_or_not_and_never_wrong() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (path, over) = (dir.path().join("x.db"), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    fs::write(&path, b"SQLite format 3\0").expect("a file");
                    let _ = fs::remove_file(&path);
                }
            });
            let wrong = (0..20_000).find_map(|_| look(&path, false).err());
            over.store(true, Ordering::Relaxed);
            assert_eq!(wrong, None);
        });
    }

    #[test]
    fn a_second_name_of_the_same_file_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join("x.db"), "").expect("a file");
        fs::hard_link(dir.path().join("x.db"), dir.path().join("y.db")).expect("a link");
        assert!(look(&dir.path().join("y.db"), false).expect_err("refused").contains("hard links"));
    }

    #[test]
    fn a_file_system_that_is_not_local_is_refused_unless_allowed() {
        // proc: a file system that is surely not on the list. Its files are not writable in general; this one is.
        let path = Path::new("/proc/self/task/../oom_score_adj");
        let error = look(path, false).expect_err("refused");
        assert!(error.contains("file system") || error.contains("not writable"), "{error}");
    }
}

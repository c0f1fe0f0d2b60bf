//! Mounts and frozen file systems of a test, undone whatever happens to it. Must never leave one frozen: a small shell
//! of its own, outside the scene, waits on a pipe and undoes all when the test ends, also when it is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::Scene;

pub struct Keeper {
    folder: PathBuf,
    undo: Child,
}

impl Keeper {
    pub fn mount(scene: &Scene, what: &[&str], folder: &Path) -> Keeper {
        let script = r#"read -r line; fsfreeze -u "$1" 2>/dev/null; umount -l "$1" 2>/dev/null; :"#;
        let mut undo = Command::new("sh");
        undo.args(["-c", script, "sh"]).arg(folder).current_dir("/").stdin(Stdio::piped());
        let undo = undo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell");
        // From here on Drop undoes it.
        let keeper = Keeper { folder: folder.to_path_buf(), undo };
        let mounted = scene.run(scene.command("mount").args(what).arg(folder));
        assert!(mounted.status.success(), "cannot mount here, run tests/run, as root: {}", mounted.stderr);
        keeper
    }

    /// An ext4 of its own on a loop device.
    pub fn ext4(scene: &Scene, name: &str) -> Keeper {
        let (image, folder) = (scene.path(&format!("{name}.img")), scene.path(name));
        fs::create_dir(&folder).expect("a folder");
        fs::File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("an image");
        let made = scene.run(scene.command("mkfs.ext4").arg("-q").arg(&image));
        assert!(made.status.success(), "mkfs.ext4 is needed, run tests/run: {}", made.stderr);
        let image = image.to_str().expect("UTF-8");
        Keeper::mount(scene, &["-o", "loop", image], &folder)
    }

    pub fn freeze(&self, scene: &Scene) {
        let frozen = scene.run(scene.command("fsfreeze").arg("-f").arg(&self.folder));
        assert!(frozen.status.success(), "cannot freeze here, run tests/run, as root: {}", frozen.stderr);
    }

    pub fn thaw(&self, scene: &Scene) {
        let thawed = scene.run(scene.command("fsfreeze").arg("-u").arg(&self.folder));
        assert!(thawed.status.success(), "{}", thawed.stderr);
    }

    /// Whether it could be unmounted: not so while anything is busy in it.
    pub fn unmount(&self) -> bool {
        Command::new("umount").arg(&self.folder).status().expect("umount").success()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.undo.stdin.take());
        let _ = self.undo.wait();
    }
}

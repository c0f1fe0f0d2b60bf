//! How lockrun is linked. Must never change what it does: without any of this it only starts more slowly.
//!
//! libgcc_s.so asks the processor what it can do each time it is loaded. A virtual machine answers that slowly, and every
//! library more is mapped, relocated and copied by both forks: a twentieth of a start (measured). The little that is used of
//! it, the unwinder behind a panic's message, is taken from the static library that lies beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=packaging/build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let native = variable("HOST") == variable("TARGET");
    let glibc = variable("CARGO_CFG_TARGET_OS") == "linux" && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    if !native || !glibc {
        return;
    }
    let (Some(unwinder), Some(helpers)) = (of_the_compiler("libgcc_eh.a"), of_the_compiler("libgcc.a")) else { return };
    let folder = PathBuf::from(variable("OUT_DIR"));
    // std asks for -lgcc_s by name, and finds this first.
    let script = format!("GROUP ( {} {} )\n", unwinder.display(), helpers.display());
    if fs::write(folder.join("libgcc_s.so"), script).is_ok() {
        println!("cargo:rustc-link-search=native={}", folder.display());
    }
}

fn of_the_compiler(library: &str) -> Option<PathBuf> {
    let output = Command::new("cc").arg(format!("-print-file-name={library}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    // A library that it does not know comes back as it was asked for.
    (path.is_absolute() && Path::is_file(&path)).then_some(path)
}

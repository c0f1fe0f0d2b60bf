//! Small programs that tests run as the command of lockrun, or around it: they show what a process inherited, write down
//! the signals that reach it, or leave descendants of every kind. Never part of the product.

mod bomb;
mod catch;
mod clock;
mod inherit;
mod odd;
mod roster;
mod tree;

use std::io::Write;
use std::path::Path;
use std::process::exit;
use std::time::Duration;

const USAGE: &str = "usage: probe [PART ARGS…]
  inherit [FILE]               what this process was given: masks, ids, descriptors, cwd, umask (also with no part at all)
  sigcatch FILE [LAST]         writes `ready`, then `SIGNAL CODE SENDER` per signal; signal LAST ends it with 0
  sigcatch-pair FILE FILE2     the same with a child in the same group
  odd PROGRAM…                 runs PROGRAM with odd dispositions, mask and descriptors
  only FDS PROGRAM…            runs PROGRAM with 0, 1, 2 and FDS (`9,12`, `-` for none) and nothing else open
  witness DIR PROGRAM…         runs PROGRAM with a lock in DIR that shows an overlap
  tree DIR [CODE]              starts descendants of every kind, writes DIR/pids and DIR/ready; exits with CODE or stays
  survivors DIR                which of them are alive: `none`, or their roles
  bomb N SECONDS READY         N chains: each link calls setsid, forks the next and exits
  hog SECONDS                  a busy loop
  step-clock SECONDS           sets the machine's wall clock off by SECONDS until its stdin ends";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] | ["inherit"] => inherit::report(None),
        ["inherit", file] => inherit::report(Some(Path::new(file))),
        ["sigcatch", file] => catch::run(Path::new(file), None),
        ["sigcatch", file, last] => catch::run(Path::new(file), Some(number(last))),
        ["sigcatch-pair", file, child] => catch::run_pair(Path::new(file), Path::new(child)),
        ["odd", program @ ..] => odd::run(program),
        ["only", keep, program @ ..] => odd::only(keep, program),
        ["witness", dir, program @ ..] => odd::witness(Path::new(dir), program),
        ["tree", dir] => tree::run(Path::new(dir), None),
        ["tree", dir, code] => tree::run(Path::new(dir), Some(number(code))),
        ["survivors", dir] => println!("{}", roster::describe(&roster::alive(Path::new(dir)))),
        ["bomb", chains, seconds, ready] => bomb::run(number(chains), Duration::from_secs(number(seconds)), Path::new(ready)),
        ["hog", seconds] => bomb::hog(Duration::from_secs(number(seconds))),
        ["step-clock", seconds] => clock::step(number(seconds)),
        _ => fail(64, USAGE),
    }
}

fn number<N: std::str::FromStr>(text: &str) -> N {
    text.parse().unwrap_or_else(|_| fail(64, &format!("probe: {text:?} is not a number\n{USAGE}")))
}

/// With stderr closed or full too.
fn fail(code: i32, text: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "{text}");
    exit(code)
}

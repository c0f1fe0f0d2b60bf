//! What the server does as one step. Must never read its clock, nor delete a record.

use std::sync::LazyLock;

use redis::Pipeline;

pub struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    fn new(text: &'static str) -> Script {
        Script { text, hash: redis::Script::new(text).get_hash().to_string() }
    }
}

/// A record is a hash; its `write` is the id that the swap is conditional on. The name is noted with each write, so that a
/// list that was lost is whole again after a beat, and first: an error of HSET leaves a name without a record, never a record
/// without its name. Who may not publish releases all the same.
///
/// KEYS record, names. ARGV write id expected ('' for no record), write id, record, name, channel to tell ('' for none).
pub static SWAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local found = redis.call('HMGET', KEYS[1], 'write', 'record')
if ARGV[1] == '' then
  if found[1] or found[2] then return 0 end
elseif found[1] ~= ARGV[1] then
  return 0
end
redis.call('SADD', KEYS[2], ARGV[4])
redis.call('HSET', KEYS[1], 'write', ARGV[2], 'record', ARGV[3])
if ARGV[5] ~= '' then redis.pcall('PUBLISH', ARGV[5], '') end
return 1
",
    )
});

/// The instant stays text: a number of Lua's has 53 bits.
///
/// KEYS sighting. ARGV version, instant, seconds that it is kept.
pub static SIGHTING: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local at, version = string.match(redis.call('GET', KEYS[1]) or '', '^(%-?%d+) (.*)$')
if version == ARGV[1] then return at end
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1], 'EX', ARGV[3])
return false
",
    )
});

/// The rights to write, asked for where a write does nothing: a key of the wrong type, which is gone after a second.
///
/// KEYS probe, names.
pub static PROBE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('SMEMBERS', KEYS[2])
redis.call('SET', KEYS[1], '', 'EX', 1)
redis.call('GET', KEYS[1])
for _, refused in ipairs({redis.pcall('HSET', KEYS[1], 'a', 'b'), redis.pcall('SADD', KEYS[1], 'a')}) do
  if not string.find(refused.err, 'WRONGTYPE') then return refused end
end
return 1
",
    )
});

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The server knows it from before.
    Hash,
    Text,
}

/// As the next command of `commands`.
pub fn add(commands: &mut Pipeline, script: &Script, by: By, keys: &[&str], arguments: &[&str]) {
    match by {
        By::Hash => commands.cmd("EVALSHA").arg(&script.hash),
        By::Text => commands.cmd("EVAL").arg(script.text),
    };
    commands.arg(keys.len()).arg(keys).arg(arguments);
}

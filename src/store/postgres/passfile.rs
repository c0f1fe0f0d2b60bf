//! libpq's password file: `host:port:database:user:password`, the first line that fits. Must never read one that others may
//! read too.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::address::{Host, Place};

/// Whom a password is looked up for.
pub struct Login<'a> {
    pub host: &'a Host,
    pub database: &'a str,
    pub user: &'a str,
}

/// `Err` says why the file is not read: that matters only if the server asks for a password.
pub fn password(file: &Path, login: &Login<'_>) -> Result<Option<String>, String> {
    let text = match std::fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error.to_string()),
        Ok(metadata) if !metadata.is_file() => Err("it is not a plain file".to_string()),
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => Err("others can read it; chmod 0600".to_string()),
        Ok(_) => std::fs::read(file).map_err(|error| error.to_string()),
    };
    let text = text.map_err(|why| format!("password file {}: {why}", file.display()))?;
    Ok(find(&String::from_utf8_lossy(&text), login))
}

fn find(text: &str, login: &Login<'_>) -> Option<String> {
    let port = login.host.port.to_string();
    let host = match &login.host.place {
        Place::Name { name, .. } => name.clone(),
        Place::Socket(folder) => folder.display().to_string(),
    };
    // libpq looks a default socket up under this name.
    let by_default = matches!(&login.host.place, Place::Socket(folder) if ["/var/run/postgresql", "/tmp"].iter().any(|default| folder == Path::new(default)));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((fields, password)) = fields(line) else { continue };
        let fits = |field: &Field, value: &str| field.any || field.text == value;
        let host_fits = fits(&fields[0], &host) || (by_default && fits(&fields[0], "localhost"));
        if host_fits && fits(&fields[1], &port) && fits(&fields[2], login.database) && fits(&fields[3], login.user) {
            return Some(password);
        }
    }
    None
}

#[derive(Default)]
struct Field {
    text: String,
    /// A bare `*`.
    any: bool,
}

/// The four fields before the password, and the password; `\` takes the next letter as it is.
fn fields(line: &str) -> Option<([Field; 4], String)> {
    let mut fields: [Field; 4] = Default::default();
    let mut rest = line;
    for field in &mut fields {
        let mut letters = rest.char_indices();
        let end = loop {
            match letters.next()? {
                (end, ':') => break end,
                (_, '\\') => field.text.push(letters.next()?.1),
                (_, letter) => field.text.push(letter),
            }
        };
        field.any = &rest[..end] == "*";
        rest = &rest[end + 1..];
    }
    let mut password = String::new();
    let mut letters = rest.chars();
    while let Some(letter) = letters.next() {
        password.push(if letter == '\\' { letters.next().unwrap_or('\\') } else { letter });
    }
    Some((fields, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str, database: &str) -> Option<String> {
        let place = if host.starts_with('/') { Place::Socket(host.into()) } else { Place::Name { name: host.into(), address: None } };
        find(text, &Login { host: &Host { place, port: 5432 }, database, user: "u:1" })
    }

    #[test]
    fn the_first_line_that_fits_counts_with_its_escapes() {
        let text = "# a:*:*:*:comment\nother:*:*:*:no\na:5432:d:u\\:1:p\\:w\\\\d:rest\n*:*:*:*:any\r\n";
        assert_eq!(found(text, "a", "d").as_deref(), Some("p:w\\d:rest"));
        assert_eq!(found(text, "a", "else").as_deref(), Some("any"));
        assert_eq!(found("a:5433:*:*:no", "a", "d"), None);
        assert_eq!(found("a:5432:d:u\nshort", "a", "d"), None);
    }

    #[test]
    fn a_star_is_any_only_when_it_stands_alone_and_bare() {
        assert_eq!(found("\\*:*:*:*:no\na*:*:*:*:no", "a", "d"), None);
        assert_eq!(found("*:*:*:*:", "a", "d").as_deref(), Some(""));
    }

    #[test]
    fn a_default_socket_is_localhost_too() {
        assert_eq!(found("localhost:*:*:*:yes", "/tmp", "d").as_deref(), Some("yes"));
        assert_eq!(found("localhost:*:*:*:no", "/elsewhere", "d"), None);
        assert_eq!(found("/elsewhere:*:*:*:yes", "/elsewhere", "d").as_deref(), Some("yes"));
    }
}

//! Every keyword that libpq knows, its variable, and what becomes of it here. Must never let one pass that would be
//! ignored although it changes whom lockrun talks to, or how safely.

use std::collections::BTreeMap;

use crate::store::server::Variable;

#[derive(Clone, Copy)]
enum Use {
    Taken,
    /// Makes no difference to what lockrun does over a connection.
    Harmless,
    /// One of these values says what is done anyway.
    Only(&'static [&'static str]),
    Refused,
}
use Use::{Harmless, Only, Refused, Taken};

/// libpq's manual, 34.1.2 and 34.15.
const KEYWORDS: &[(&str, &str, Use)] = &[
    ("host", "PGHOST", Taken),
    ("hostaddr", "PGHOSTADDR", Taken),
    ("port", "PGPORT", Taken),
    ("dbname", "PGDATABASE", Taken),
    ("user", "PGUSER", Taken),
    ("password", "PGPASSWORD", Taken),
    ("passfile", "PGPASSFILE", Taken),
    ("channel_binding", "PGCHANNELBINDING", Taken),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Taken),
    ("options", "PGOPTIONS", Taken),
    ("application_name", "PGAPPNAME", Taken),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Taken),
    ("sslmode", "PGSSLMODE", Taken),
    ("sslnegotiation", "PGSSLNEGOTIATION", Taken),
    ("sslcert", "PGSSLCERT", Taken),
    ("sslkey", "PGSSLKEY", Taken),
    ("sslrootcert", "PGSSLROOTCERT", Taken),
    ("client_encoding", "", Harmless),
    ("fallback_application_name", "", Harmless),
    ("keepalives", "", Harmless),
    ("keepalives_idle", "", Harmless),
    ("keepalives_interval", "", Harmless),
    ("keepalives_count", "", Harmless),
    ("tcp_user_timeout", "", Harmless),
    ("load_balance_hosts", "", Harmless),
    ("max_protocol_version", "", Harmless),
    ("sslcompression", "", Harmless),
    ("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"])),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Only(&["3.0"])),
    ("replication", "", Only(&["false", "off", "no", "0"])),
    ("sslcertmode", "PGSSLCERTMODE", Only(&["allow"])),
    ("sslsni", "PGSSLSNI", Only(&["1"])),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Only(&["TLSv1", "TLSv1.1", "TLSv1.2"])),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Only(&["TLSv1.3"])),
    ("gssdelegation", "PGGSSDELEGATION", Only(&["0"])),
    ("gsslib", "PGGSSLIB", Refused),
    ("krbsrvname", "PGKRBSRVNAME", Refused),
    ("oauth_issuer", "", Refused),
    ("oauth_client_id", "", Refused),
    ("oauth_client_secret", "", Refused),
    ("oauth_scope", "", Refused),
    ("require_auth", "PGREQUIREAUTH", Refused),
    ("requirepeer", "PGREQUIREPEER", Refused),
    ("requiressl", "PGREQUIRESSL", Refused),
    ("scram_client_key", "", Refused),
    ("scram_server_key", "", Refused),
    ("service", "PGSERVICE", Refused),
    ("servicefile", "", Refused),
    ("sslcrl", "PGSSLCRL", Refused),
    ("sslcrldir", "PGSSLCRLDIR", Refused),
    ("sslkeylogfile", "", Refused),
    ("sslpassword", "", Refused),
];

/// Given values by keyword, and where each came from.
#[derive(Default)]
pub struct Given(BTreeMap<&'static str, (String, &'static str)>);

impl Given {
    /// One `keyword=value` of the URL. A keyword that libpq does not have is not shown: it may be a piece of a password.
    pub fn put(&mut self, keyword: &str, value: String) -> Result<(), String> {
        // libpq takes JDBC's word for it.
        let (keyword, value) =
            if (keyword, value.as_str()) == ("ssl", "true") { ("sslmode", "require".to_string()) } else { (keyword, value) };
        let known = KEYWORDS.iter().find(|(name, _, _)| *name == keyword);
        let (name, _, usage) =
            known.ok_or("a parameter behind the ? is not one of libpq's; check its spelling, and write & in a password as %26")?;
        check(name, *usage, &value)?;
        self.0.insert(name, (value, name));
        Ok(())
    }

    /// Whatever the URL leaves out; an empty value is none.
    pub fn fill_up(&mut self, variable: Variable<'_>) -> Result<(), String> {
        self.0.retain(|_, (value, _)| !value.is_empty());
        for (name, source, usage) in KEYWORDS {
            if source.is_empty() || self.0.contains_key(name) {
                continue;
            }
            let Some(value) = variable(source) else { continue };
            let value = value.into_string().map_err(|_| format!("{source}: not UTF-8"))?;
            check(source, *usage, &value)?;
            self.0.insert(name, (value, source));
        }
        Ok(())
    }

    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(|(value, _)| value.as_str())
    }

    /// The value, read by `parse`; an error names where it came from.
    pub fn read<T>(&self, keyword: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
        let Some((value, source)) = self.0.get(keyword) else { return Ok(None) };
        parse(value).map(Some).map_err(|why| format!("{source}: {why}"))
    }
}

fn check(source: &str, usage: Use, value: &str) -> Result<(), String> {
    match usage {
        Taken | Harmless => Ok(()),
        Only(values) if value.is_empty() || values.contains(&value) => Ok(()),
        Only(values) => Err(format!("{source}: lockrun can only do {}; leave it out", values.join(" or "))),
        Refused => Err(format!("{source}: libpq knows it, lockrun does not; leave it out")),
    }
}

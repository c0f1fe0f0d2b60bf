//! What an error of the server or of the way to it means: only what will not heal by itself is refused. Must never call
//! "no" what may be over in a moment.

use std::error::Error as _;
use std::io;

use rustls::{AlertDescription, CertificateError};
use tokio_postgres::error::{DbError, SqlState};

use crate::store::StoreError;

pub const MAKES_TABLES: &str = "let a role that may create tables run lockrun once, or GRANT CREATE on the schema";

/// An answer of the server, or none.
pub fn store_error(error: &tokio_postgres::Error) -> StoreError {
    if let Some(error) = error.as_db_error() {
        return db_error(error);
    }
    if let Some(error) = rustls_error(error) {
        return tls_error(error);
    }
    if let Some(error) = io_error(error) {
        return StoreError::Unknown(format!("connection lost: {error}"));
    }
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    match error.to_string().split(':').next().unwrap_or_default() {
        "connection closed" => StoreError::Unknown("the server closed the connection".to_string()),
        "invalid configuration" if cause.contains("password") => StoreError::Refused(
            "the server asks for a password and none is given; put it into the URL, PGPASSWORD or ~/.pgpass".to_string(),
        ),
        "authentication error" => {
            StoreError::Refused(format!("cannot log in: {cause}; lockrun knows passwords (SCRAM, MD5), certificates and trust"))
        }
        // What is no sentence of PostgreSQL's protocol. A proxy in between may also have cut one short.
        what => StoreError::Unknown(format!("no answer of a PostgreSQL server: {what} {cause}").trim_end().to_string()),
    }
}

fn db_error(error: &DbError) -> StoreError {
    let said = error.message();
    let code = error.code();
    // pgbouncer has one code for all that it says, what passes among it.
    if *code == SqlState::PROTOCOL_VIOLATION {
        return match said {
            _ if said.contains("unsupported startup parameter") => StoreError::Refused(format!(
                "a pooler refuses: {said}; leave options (PGOPTIONS) out of the URL, or let the pooler ignore it (ignore_startup_parameters)"
            )),
            _ if ["no such user", "no such database", "authentication failed", "SSL required"].iter().any(|what| said.contains(what)) => {
                StoreError::Refused(format!("a pooler refuses: {said}; check user, password and database"))
            }
            _ => StoreError::Unknown(said.to_string()),
        };
    }
    let remedy = match *code {
        SqlState::INVALID_PASSWORD => "check user and password",
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => "check user and sslmode, and the server's pg_hba.conf",
        SqlState::INVALID_CATALOG_NAME => "name one that exists, or create it",
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "GRANT SELECT, INSERT, UPDATE on lockrun_lease and lockrun_sighting and SELECT on lockrun_meta to this role"
        }
        SqlState::INVALID_SCHEMA_NAME => "create the schema, or name another (options=-csearch_path=…)",
        SqlState::UNDEFINED_COLUMN | SqlState::WRONG_OBJECT_TYPE | SqlState::DATATYPE_MISMATCH => {
            "its lockrun tables are not as lockrun makes them; take another schema (options=-csearch_path=…)"
        }
        SqlState::SYNTAX_ERROR | SqlState::UNDEFINED_OBJECT | SqlState::INVALID_PARAMETER_VALUE | SqlState::CANT_CHANGE_RUNTIME_PARAM => {
            "check options (PGOPTIONS)"
        }
        _ => return StoreError::Unknown(said.to_string()),
    };
    StoreError::Refused(format!("{said}; {remedy}"))
}

fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

fn rustls_error(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    // io::Error's own source() leaves out what it wraps.
    io_error(error)?.get_ref()?.downcast_ref()
}

fn tls_error(error: &rustls::Error) -> StoreError {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    let text = match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server's certificate is signed by nobody who is trusted; name its CA with sslrootcert".to_string()
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "the server's certificate is for another name; connect by the name in it, or take sslmode=verify-ca".to_string()
        }
        InvalidCertificate(_) => format!("the server's certificate: {error}; renew it, or check sslrootcert"),
        AlertReceived(alert) if is_about_our_certificate(*alert) => {
            format!("the server does not take the client certificate ({alert:?}); check sslcert and sslkey")
        }
        AlertReceived(_) | rustls::Error::PeerIncompatible(_) => format!("no TLS that both sides know: {error}; check sslmode"),
        _ => return StoreError::Unknown(format!("TLS: {error}")),
    };
    StoreError::Refused(text)
}

fn is_about_our_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    let those = [
        Alert::BadCertificate,
        Alert::UnsupportedCertificate,
        Alert::CertificateRevoked,
        Alert::CertificateExpired,
        Alert::CertificateUnknown,
        Alert::CertificateRequired,
        Alert::UnknownCA,
        Alert::AccessDenied,
        Alert::DecryptError,
    ];
    those.contains(&alert)
}

/// The way in is closed for this kind of connection; another kind (with or without TLS) may be let in.
pub fn is_about_the_way(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

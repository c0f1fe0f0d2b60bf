//! Who is let in and how: passwords, rights, sockets, TLS with libpq's modes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{ENCODED, SECRET, assert_refused, assert_runs, lockrun, try_it, with_a_password};
use crate::common::Scene;
use crate::common::report::parse;
use crate::fixture::Server;
use crate::fixture::postgres::{Certificates, Postgres};

#[test]
fn a_password_is_taken_from_wherever_libpq_takes_it() {
    let (scene, server) = (Scene::new(), with_a_password());
    let port = server.port();
    assert_runs(&scene, &mut try_it(&scene, &format!("postgres://alice:{ENCODED}@127.0.0.1:{port}/postgres")));
    assert_runs(&scene, &mut try_it(&scene, &format!("postgresql://127.0.0.1:{port}/postgres?user=alice&password={ENCODED}")));
    let bare = format!("postgres://alice@127.0.0.1:{port}/postgres");
    assert_runs(&scene, try_it(&scene, &bare).env("PGPASSWORD", SECRET));
    let variables = [("PGHOST", "127.0.0.1"), ("PGUSER", "alice"), ("PGDATABASE", "postgres"), ("PGPASSWORD", SECRET)];
    assert_runs(&scene, try_it(&scene, "postgres://").envs(variables).env("PGPORT", port.to_string()));
    let line = format!("127.0.0.1:{port}:postgres:alice:p@ss\\:w/rd 100%\n");
    let closed = |name: &str| {
        fs::write(scene.path(name), &line).expect("written");
        fs::set_permissions(scene.path(name), fs::Permissions::from_mode(0o600)).expect("closed");
    };
    closed("elsewhere");
    assert_runs(&scene, try_it(&scene, &bare).env("PGPASSFILE", "elsewhere"));
    closed(".pgpass");
    assert_runs(&scene, &mut try_it(&scene, &bare));
    fs::write(scene.path("secret"), format!("postgres://alice:{ENCODED}@127.0.0.1:{port}/postgres\n")).expect("written");
    assert_runs(&scene, try_it(&scene, "").env("LOCKRUN_DB_FILE", scene.path("secret")));
}

#[test]
fn who_is_not_let_in_is_told_why_in_one_line() {
    let (scene, server) = (Scene::new(), with_a_password());
    let port = server.port();
    let url = |login: &str, database: &str| format!("postgres://{login}@127.0.0.1:{port}/{database}");
    assert_refused(&scene, &url("alice:wrong", "postgres"), &["password authentication failed", "check user and password"]);
    assert_refused(&scene, &url(&format!("nobody:{ENCODED}"), "postgres"), &["nobody", "check user and password"]);
    assert_refused(&scene, &url(&format!("alice:{ENCODED}"), "none"), &["database \"none\" does not exist"]);
    assert_refused(&scene, &url("alice", "postgres"), &["asks for a password", "~/.pgpass"]);
    fs::write(scene.path(".pgpass"), "*:*:*:*:x\n").expect("written");
    fs::set_permissions(scene.path(".pgpass"), fs::Permissions::from_mode(0o644)).expect("opened");
    assert_refused(&scene, &url("alice", "postgres"), &["asks for a password", ".pgpass", "chmod 0600"]);
    server.let_in("host all all 127.0.0.1/32 reject");
    assert_refused(&scene, &url(&format!("alice:{ENCODED}"), "postgres"), &["pg_hba"]);
}

#[test]
fn a_role_needs_the_tables_or_the_right_to_make_them() {
    let (scene, server) = (Scene::new(), Postgres::start());
    server.sql("CREATE ROLE bob LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let bob = server.url().replace("postgres@", "bob@");
    let finished = scene.run(&mut try_it(&scene, &bob));
    assert_eq!(finished.code(), 125, "{}", finished.stderr);
    assert!(finished.stderr.contains("not there yet") && finished.stderr.contains("GRANT CREATE"), "{}", finished.stderr);
    let checked = scene.run(&mut lockrun(&scene, &bob, &["check"]));
    assert_eq!((checked.code(), checked.stderr.contains("may not make them in schema public")), (125, true), "{}", checked.stderr);
    assert_runs(&scene, &mut try_it(&scene, &server.url()));
    assert_refused(&scene, &bob, &["permission denied", "GRANT SELECT, INSERT, UPDATE"]);
    server.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO bob");
    let checked = scene.run(&mut lockrun(&scene, &bob, &["check"]));
    assert_eq!((checked.code(), checked.stderr.contains("permission denied")), (125, true), "{}", checked.stderr);
    server.sql("GRANT INSERT, UPDATE ON lockrun_lease, lockrun_sighting TO bob");
    assert_runs(&scene, &mut try_it(&scene, &bob));
    let checked = scene.run(&mut lockrun(&scene, &bob, &["check"]));
    assert_eq!(checked.code(), 0, "{}", checked.stderr);
}

#[test]
fn a_schema_of_ones_own_is_named_by_options() {
    let (scene, server) = (Scene::new(), Postgres::start());
    let url = format!("{}?options=-csearch_path%3Djobs", server.url());
    assert_refused_to_run(&scene, &url, "create the schema");
    server.sql("CREATE SCHEMA jobs");
    assert_runs(&scene, &mut try_it(&scene, &url));
    assert_runs(&scene, try_it(&scene, &server.url()).env("PGOPTIONS", "-c search_path=jobs"));
    assert_eq!(server.sql("SELECT count(*) FROM jobs.lockrun_lease"), "1");
    assert_eq!(server.sql("SELECT to_regclass('public.lockrun_lease') IS NULL"), "t");
    assert_refused(&scene, &format!("{}?options=-cno.such", server.url()), &["options"]);
}

fn assert_refused_to_run(scene: &Scene, url: &str, says: &str) {
    let finished = scene.run(&mut try_it(scene, url));
    assert_eq!((finished.code(), finished.stderr.contains(says)), (125, true), "{}", finished.stderr);
}

#[test]
fn a_socket_is_named_by_its_folder() {
    let (scene, server) = (Scene::new(), Postgres::start());
    let folder = server.folder().display().to_string();
    let port = server.port();
    assert_runs(&scene, &mut try_it(&scene, &format!("postgres:///postgres?host={folder}&port={port}&user=postgres")));
    assert_runs(
        &scene,
        &mut try_it(&scene, &format!("postgres://postgres@{}:{port}/postgres?sslmode=verify-full", folder.replace('/', "%2F"))),
    );
    let status = scene.run(
        lockrun(&scene, "postgres:///postgres", &["status", "--json"])
            .envs([("PGUSER", "postgres"), ("PGHOST", &folder)])
            .env("PGPORT", port.to_string()),
    );
    assert_eq!(parse(&status.stdout)["locks"][0]["name"], "beat", "{}", status.stderr);
}

#[test]
fn what_is_no_postgresql_server_is_called_so() {
    let scene = Scene::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.read(&mut [0; 64]);
        }
    });
    assert_refused(&scene, &format!("postgres://u:{ENCODED}@127.0.0.1:{port}/d"), &["no PostgreSQL server", "check host and port"]);
}

#[test]
fn what_libpq_knows_and_lockrun_does_not_is_refused_by_name() {
    let scene = Scene::new();
    let base = format!("postgres://u:{ENCODED}@127.0.0.1:1/d");
    for (parameter, says) in [
        ("gssencmode=require", "gssencmode"),
        ("krbsrvname=x", "krbsrvname"),
        ("service=x", "service"),
        ("sslcrl=x", "sslcrl"),
        ("sslpassword=x", "sslpassword"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("target_session_attrs=standby", "a lease has to be written"),
        ("sslmode=full", "verify-full"),
        ("sslrootcert=system&sslmode=require", "system needs sslmode=verify-full"),
        ("sslnegotiation=direct", "direct needs sslmode=require"),
        ("sslmod=require", "not one of libpq's"),
        ("connect_timeout=soon", "connect_timeout"),
        ("sslcert=x.crt", "sslkey"),
        ("port=99999", "port"),
        ("host=a,b&port=1,2,3", "different number"),
    ] {
        assert_refused(&scene, &format!("{base}?{parameter}"), &[says]);
    }
    for (variable, value) in
        [("PGSERVICE", "x"), ("PGREQUIREPEER", "x"), ("PGSSLCRL", "x"), ("PGTARGETSESSIONATTRS", "standby"), ("PGGSSENCMODE", "require")]
    {
        let finished = scene.run(try_it(&scene, &base).env(variable, value));
        assert_eq!((finished.code(), finished.stderr.contains(variable)), (125, true), "{}", finished.stderr);
    }
}

/// TLS for localhost, which is where 127.0.0.1 is.
fn with_tls(certificates: &Certificates, name: &str) -> Postgres {
    let mut server = Postgres::start();
    server.file("server.crt", &certificates.read(&format!("{name}.crt")));
    server.file("server.key", &certificates.read(&format!("{name}.key")));
    server.file("ca.crt", &certificates.read("ca.crt"));
    server.stop();
    for (setting, file) in [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "ca.crt")] {
        let path = server.folder().join(file);
        server.set(&format!("{setting}={}", path.display()));
    }
    server.set("ssl=on");
    server.start_again();
    server.let_in("hostssl all all 127.0.0.1/32 trust");
    server
}

#[test]
fn sslmode_means_what_it_means_to_libpq() {
    let (scene, certificates) = (Scene::new(), Certificates::new());
    let server = with_tls(&certificates, "server");
    let file = |name: &str| format!("sslrootcert={}", certificates.path(name).display());
    let (ca, other) = (file("ca.crt"), file("other.crt"));
    let url = |host: &str, parameters: &str| format!("postgres://postgres@{host}:{}/postgres?{parameters}", server.port());
    for good in ["", "sslmode=prefer", "sslmode=allow", "sslmode=require", "ssl=true"] {
        assert_runs(&scene, &mut try_it(&scene, &url("127.0.0.1", good)));
    }
    assert_runs(&scene, &mut try_it(&scene, &url("localhost", &format!("sslmode=verify-full&{ca}"))));
    assert_runs(&scene, &mut try_it(&scene, &url("localhost", &format!("sslmode=verify-full&{ca}&hostaddr=127.0.0.1"))));
    assert_runs(&scene, &mut try_it(&scene, &url("127.0.0.1", &format!("sslmode=verify-ca&{ca}"))));
    assert_runs(
        &scene,
        try_it(&scene, &url("localhost", "")).env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", certificates.path("ca.crt")),
    );
    fs::create_dir(scene.path(".postgresql")).expect("a folder");
    fs::copy(certificates.path("ca.crt"), scene.path(".postgresql/root.crt")).expect("copied");
    assert_runs(&scene, &mut try_it(&scene, &url("localhost", "sslmode=verify-full")));
    fs::remove_file(scene.path(".postgresql/root.crt")).expect("removed");
    assert_refused(&scene, &url("127.0.0.1", "sslmode=disable"), &["no encryption", "sslmode"]);
    assert_refused(&scene, &url("127.0.0.1", &format!("sslmode=verify-full&{ca}")), &["another name", "verify-ca"]);
    assert_refused(&scene, &url("localhost", &format!("sslmode=verify-full&{other}")), &["nobody who is trusted", "sslrootcert"]);
    assert_refused(&scene, &url("localhost", &format!("sslmode=require&{other}")), &["nobody who is trusted"]);
    assert_refused(&scene, &url("localhost", "sslrootcert=system"), &["certificate"]);
    assert_refused(&scene, &url("localhost", "sslmode=verify-ca&sslrootcert=/none"), &["sslrootcert /none"]);
    let plain = Postgres::start();
    assert_refused(&scene, &format!("{}?sslmode=require", plain.url()), &["no TLS", "sslmode"]);
}

#[test]
fn a_certificate_that_has_run_out_is_refused_and_one_as_in_the_manual_taken() {
    let (scene, certificates) = (Scene::new(), Certificates::new());
    certificates.signed("old", "localhost", "subjectAltName=DNS:localhost", -1);
    certificates.own_authority("manual", "localhost");
    let url = |server: &Postgres, host: &str, roots: &str| {
        let roots = certificates.path(roots);
        format!("postgres://postgres@{host}:{}/postgres?sslmode=verify-full&sslrootcert={}", server.port(), roots.display())
    };
    let old = with_tls(&certificates, "old");
    assert_refused(&scene, &url(&old, "localhost", "ca.crt"), &["certificate", "renew it"]);
    drop(old);
    let manual = with_tls(&certificates, "manual");
    assert_runs(&scene, &mut try_it(&scene, &url(&manual, "localhost", "manual.crt")));
    assert_refused(&scene, &url(&manual, "127.0.0.1", "manual.crt"), &["another name"]);
    assert_refused(&scene, &url(&manual, "localhost", "ca.crt"), &["certificate"]);
}

#[test]
fn a_client_certificate_is_who_one_is() {
    let (scene, certificates) = (Scene::new(), Certificates::new());
    let server = with_tls(&certificates, "server");
    server.sql("CREATE ROLE alice LOGIN; GRANT ALL ON SCHEMA public TO alice");
    server.let_in("hostssl all all 127.0.0.1/32 cert");
    let url = |certificate: &str, key: &str| {
        let (certificate, key) = (certificates.path(certificate), certificates.path(key));
        format!("postgres://alice@localhost:{}/postgres?sslcert={}&sslkey={}", server.port(), certificate.display(), key.display())
    };
    assert_runs(&scene, &mut try_it(&scene, &url("client.crt", "client.key")));
    assert_refused(&scene, &format!("postgres://alice@localhost:{}/postgres", server.port()), &["certificate"]);
    assert_refused(&scene, &format!("{}&sslmode=require", url("other.crt", "other.key")), &["certificate"]);
    assert_refused(&scene, &url("client.crt", "other.key"), &["sslcert", "do not fit"]);
    assert_refused(&scene, &url("client.crt", "none.key"), &["sslkey"]);
    fs::set_permissions(certificates.path("client.key"), fs::Permissions::from_mode(0o644)).expect("opened");
    assert_refused(&scene, &url("client.crt", "client.key"), &["sslkey", "chmod 0600"]);
}

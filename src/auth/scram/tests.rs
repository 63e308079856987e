use std::num::NonZeroU32;
use std::sync::Arc;

use super::*;
use crate::auth::secret::{Password, Verifier};
use crate::auth::{AuthError, LoginError};

// RFC 7677 section 3
const FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST: &[u8] = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const FINAL_HEAD: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const PROOF: &str = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn rfc_keys() -> ScramKeys {
    let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    ScramKeys::derive(b"pencil", salt, NonZeroU32::new(4096).unwrap())
}

fn rfc_server() -> ServerExchange {
    let nonce = Nonce(b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_vec());
    ServerExchange::new(Arc::new(rfc_keys().verifier()), nonce, None, false)
}

fn cheap_verifier() -> Arc<Verifier> {
    Arc::new(Verifier::build(b"secret", vec![9; 16], NonZeroU32::MIN))
}

fn server(end_point: Option<&[u8]>, plus: bool) -> ServerExchange {
    ServerExchange::new(cheap_verifier(), Nonce::new([1; 18]), end_point.map(<[u8]>::to_vec), plus)
}

fn client(password: &str, binding: ClientBinding) -> ClientExchange {
    ClientExchange::new(Some(Password::new(password)), None, Nonce::new([2; 18]), binding)
}

fn go_on(step: Result<ServerStep, AuthError>) -> Vec<u8> {
    match step {
        Ok(ServerStep::Continue(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// Runs both sides against each other; gives the client and the keys the server learned.
fn meet(client: &mut ClientExchange, server: &mut ServerExchange) -> Result<ScramKeys, AuthError> {
    let reply = go_on(server.step(&client.first()));
    match server.step(&client.step(&reply).unwrap())? {
        ServerStep::Done { message, keys } => {
            client.finish(&message).unwrap();
            Ok(keys)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn server_speaks_the_rfc_example() {
    let mut exchange = rfc_server();
    assert_eq!(go_on(exchange.step(FIRST)), SERVER_FIRST);
    match exchange.step(format!("{FINAL_HEAD},p={PROOF}").as_bytes()) {
        Ok(ServerStep::Done { message, keys }) => {
            assert_eq!(message, SERVER_FINAL);
            assert_eq!(keys, rfc_keys());
        }
        other => panic!("{other:?}"),
    }
    assert!(exchange.step(FIRST).is_err(), "an exchange ends");
}

#[test]
fn proof_of_the_rfc_example() {
    let signed = auth_message(&FIRST[3..], SERVER_FIRST, FINAL_HEAD.as_bytes());
    assert_eq!(BASE64.encode(rfc_keys().proof(&signed)), PROOF);
}

#[test]
fn sides_meet_with_and_without_binding() {
    for (end_point, plus, binding) in [
        (None, false, ClientBinding::Unable),
        (None, false, ClientBinding::NotOffered),
        (Some(&b"hash"[..]), false, ClientBinding::Unable),
        (Some(b"hash"), true, ClientBinding::EndPoint(b"hash".to_vec())),
    ] {
        let mut client = client("secret", binding.clone());
        assert!(client.keys().is_none());
        let keys = meet(&mut client, &mut server(end_point, plus)).unwrap();
        assert!(client.is_done());
        assert_eq!(client.keys(), Some(&keys), "{binding:?}");
    }
}

#[test]
fn learned_keys_log_in_without_the_password() {
    let keys = meet(&mut client("secret", ClientBinding::Unable), &mut server(None, false)).unwrap();
    let mut passthrough = ClientExchange::new(None, Some(keys), Nonce::new([3; 18]), ClientBinding::Unable);
    assert!(meet(&mut passthrough, &mut server(None, false)).is_ok());
}

#[test]
fn keys_that_do_not_fit_are_said_to_unless_a_password_is_there() {
    let keys = ScramKeys::derive(b"secret", vec![8; 16], NonZeroU32::MIN);
    let reply = go_on(server(None, false).step(&client("", ClientBinding::Unable).first()));
    let nonce = || Nonce::new([2; 18]);
    let mut alone = ClientExchange::new(None, Some(keys.clone()), nonce(), ClientBinding::Unable);
    assert!(matches!(alone.step(&reply), Err(LoginError::Credentials(_))));
    let password = Some(Password::new("secret"));
    let mut both = ClientExchange::new(password, Some(keys), nonce(), ClientBinding::Unable);
    assert!(meet(&mut both, &mut server(None, false)).is_ok());
}

#[test]
fn wrong_password_and_unknown_user_fail_alike_at_the_end() {
    let wrong = meet(&mut client("Secret", ClientBinding::Unable), &mut server(None, false)).unwrap_err();
    let mut mock = ServerExchange::mock("nobody", &[5; 32], Nonce::new([1; 18]), None, false);
    let unknown = meet(&mut client("secret", ClientBinding::Unable), &mut mock).unwrap_err();
    assert_eq!((wrong, unknown), (AuthError::Password, AuthError::Password));
}

#[test]
fn a_mock_shows_a_steady_salt_for_each_user() {
    let first = |user: &str, mock: [u8; 32]| {
        let mut exchange = ServerExchange::mock(user, &mock, Nonce::new([1; 18]), None, false);
        String::from_utf8(go_on(exchange.step(b"n,,n=,r=x"))).unwrap()
    };
    assert_eq!(first("a", [5; 32]), first("a", [5; 32]));
    assert_ne!(first("a", [5; 32]), first("b", [5; 32]));
    assert_ne!(first("a", [5; 32]), first("a", [6; 32]));
    assert!(first("a", [5; 32]).ends_with("==,i=4096"));
}

#[test]
fn first_messages_are_refused_as_postgres_refuses_them() {
    let cases: [(&[u8], bool, bool, &str); 20] = [
        (b"", false, false, "08P01"),
        (b"n,,n=,r=a\0", false, false, "08P01"),
        (b"x,,n=,r=a", false, false, "08P01"),
        (b"n", false, false, "08P01"),
        (b"n,", false, false, "08P01"),
        (b"n,a=other,n=,r=a", false, false, "0A000"),
        (b"n,x,n=,r=a", false, false, "08P01"),
        (b"n,,m=ext,n=,r=a", false, false, "0A000"),
        (b"n,,r=a", false, false, "08P01"),
        (b"n,,n=,n=", false, false, "08P01"),
        (b"n,,n=", false, false, "08P01"),
        (b"n,,n=,r", false, false, "08P01"),
        (b"n,,n=,r=a b", false, false, "08P01"),
        (b"n,,n=,r=\xff", false, false, "08P01"),
        (b"n,,n=,r=a,5=x", false, false, "08P01"),
        (b"p=tls-server-end-point,,n=,r=a", false, false, "08P01"),
        (b"p=tls-server-end-point,,n=,r=a", true, false, "08P01"),
        (b"p=tls-unique,,n=,r=a", true, true, "08P01"),
        (b"n,,n=,r=a", true, true, "08P01"),
        (b"y,,n=,r=a", true, false, "28000"),
    ];
    for (message, tls, plus, sqlstate) in cases {
        let error = server(tls.then_some(b"hash"), plus).step(message).unwrap_err();
        assert_eq!(error.sqlstate(), sqlstate, "{} {error}", message.escape_ascii());
    }
    for message in [&b"n,,n=,r="[..], b"n,,n=,r=a,x=y", b"n,,n=,r=a,"] {
        assert!(server(None, false).step(message).is_ok(), "{}", message.escape_ascii());
    }
}

#[test]
fn final_messages_are_refused_as_postgres_refuses_them() {
    let ok = format!("{FINAL_HEAD},p={PROOF}");
    let cases = [
        (String::new(), "08P01"),
        ("c=biws".into(), "08P01"),
        (FINAL_HEAD.into(), "08P01"),
        (ok.replace("biws", "eSws"), "08P01"),
        (ok.replace("k0", "k1"), "08P01"),
        (ok.replace("VQ=", "VQ"), "08P01"),
        (ok.replace(PROOF, "AAAA"), "08P01"),
        (format!("{ok},x=1"), "08P01"),
        (ok.replace("dH", "dI"), "28P01"),
        (ok.replace(",p=", ",x=1,p="), "28P01"),
    ];
    for (message, sqlstate) in cases {
        let mut exchange = rfc_server();
        go_on(exchange.step(FIRST));
        let error = exchange.step(message.as_bytes()).unwrap_err();
        assert_eq!(error.sqlstate(), sqlstate, "{message}: {error}");
    }
}

#[test]
fn binding_to_another_certificate_fails() {
    let mut client = client("secret", ClientBinding::EndPoint(b"other".to_vec()));
    let error = meet(&mut client, &mut server(Some(b"hash"), true)).unwrap_err();
    assert_eq!(error.sqlstate(), "28000");
}

#[test]
fn client_refuses_bad_servers() {
    let mine = BASE64.encode([2; 18]);
    for (message, why) in [
        (String::new(), "empty"),
        (format!("r=x{mine}1,s=AAAA,i=1"), "another nonce"),
        (format!("r={mine}1,s=A,i=1"), "salt"),
        (format!("r={mine}1,s=AAAA,i=0"), "no rounds"),
        (format!("r={mine}1,s=AAAA,i=1x"), "not a number"),
        (format!("r={mine}1,s=AAAA,i=1000001"), "endless rounds"),
        (format!("r={mine}1,s=AAAA,i=1,x=1"), "more"),
        (format!("m=x,r={mine}1,s=AAAA,i=1"), "extension"),
    ] {
        let mut exchange = client("secret", ClientBinding::Unable);
        assert!(exchange.step(message.as_bytes()).is_err(), "{why}");
        assert!(exchange.finish(SERVER_FINAL).is_err(), "{why}: goes on");
    }
}

#[test]
fn client_demands_the_servers_proof() {
    for message in [&b""[..], b"e=other-error", SERVER_FINAL, b"v=", b"v=!", b"x=1"] {
        let mut exchange = client("secret", ClientBinding::Unable);
        let reply = go_on(server(None, false).step(&exchange.first()));
        exchange.step(&reply).unwrap();
        let error = exchange.finish(message).unwrap_err();
        assert_eq!(message == b"e=other-error", error == LoginError::Server("other-error".into()));
        assert!(!exchange.is_done());
    }
}

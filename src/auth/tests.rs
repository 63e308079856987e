use std::num::NonZeroU32;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const USER: &str = "alice";

fn entropy() -> Entropy {
    Entropy { nonce: Nonce::new([1; 18]), md5_salt: [1, 2, 3, 4] }
}

fn secret(text: &str) -> Option<Arc<Secret>> {
    Some(Arc::new(Secret::parse(text).unwrap()))
}

fn verifier(password: &str) -> Verifier {
    Verifier::build(password.as_bytes(), vec![9; 16], NonZeroU32::MIN)
}

/// All methods for a user whose password is `secret`.
fn methods() -> Vec<Method> {
    vec![
        Method::Cleartext(secret("secret")),
        Method::Cleartext(Some(Arc::new(Secret::Md5(Md5Hash::of(b"secret", USER))))),
        Method::Cleartext(Some(Arc::new(Secret::Scram(verifier("secret"))))),
        Method::Md5(secret("secret")),
        Method::Md5(Some(Arc::new(Secret::Md5(Md5Hash::of(b"secret", USER))))),
        Method::Scram(Some(Arc::new(verifier("secret")))),
    ]
}

fn login(method: Method, end_points: [Option<&[u8]>; 2], with: Credentials) -> Result<Credentials, AuthError> {
    let [at_server, at_client] = end_points.map(|data| data.map(<[u8]>::to_vec));
    let mut server = ServerAuth::new(USER, method, entropy(), at_server, [0; 32]);
    let mut client = ClientAuth::new(USER, with, None, Nonce::new([2; 18]), at_client);
    let mut step = server.start();
    loop {
        match step {
            Step::Continue(body) => match client.step(&body) {
                Reply::Send(answer) => step = server.step(&answer),
                other => panic!("{other:?}"),
            },
            Step::Done { final_body, credentials } => {
                if let Some(body) = final_body {
                    assert!(matches!(client.step(&body), Reply::Wait));
                    assert!(client.keys().is_some());
                }
                assert!(matches!(client.step(&AUTHENTICATION_OK), Reply::Done));
                return Ok(credentials);
            }
            Step::Fail(error) => return Err(error),
        }
    }
}

fn plain(password: &str) -> Credentials {
    Credentials::Plain(Password::new(password))
}

#[test]
fn every_method_takes_the_right_password_alone() {
    for method in methods() {
        let learned = login(method.clone(), [None, None], plain("secret")).unwrap();
        assert!(login(method.clone(), [None, None], learned).is_ok(), "{method:?}: what was learned logs in again");
        for wrong in ["Secret", "secret ", "s"] {
            assert_eq!(
                login(method.clone(), [None, None], plain(wrong)).unwrap_err(),
                AuthError::Password,
                "{method:?}"
            );
        }
    }
}

#[test]
fn unknown_users_fail_at_the_end() {
    for method in [Method::Cleartext(None), Method::Md5(None), Method::Scram(None)] {
        assert_eq!(login(method, [None, None], plain("secret")).unwrap_err(), AuthError::Password);
    }
}

#[test]
fn trust_and_passthrough_do_not_check() {
    assert!(matches!(login(Method::Trust, [None, None], Credentials::None), Ok(Credentials::None)));
    match login(Method::Passthrough, [None, None], plain("anything")) {
        Ok(Credentials::Plain(password)) => assert_eq!(password.as_bytes(), b"anything"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn channel_binding_is_used_where_both_can() {
    let scram = || Method::Scram(Some(Arc::new(verifier("secret"))));
    assert!(login(scram(), [Some(b"x"), Some(b"x")], plain("secret")).is_ok());
    assert!(login(scram(), [Some(b"x"), None], plain("secret")).is_ok());
    assert!(login(scram(), [None, Some(b"x")], plain("secret")).is_ok());
    let caught = login(scram(), [Some(b"x"), Some(b"y")], plain("secret")).unwrap_err();
    assert_eq!(caught.sqlstate(), "28000");
}

#[test]
fn a_stripped_offer_of_binding_is_noticed() {
    let mut server =
        ServerAuth::new(USER, Method::Scram(Some(Arc::new(verifier("secret")))), entropy(), Some(vec![1]), [0; 32]);
    let mut client = ClientAuth::new(USER, plain("secret"), None, Nonce::new([2; 18]), Some(vec![1]));
    assert!(
        matches!(server.start(), Step::Continue(body) if body == body::mechanisms(&[SCRAM_SHA_256_PLUS, SCRAM_SHA_256]))
    );
    let Reply::Send(answer) = client.step(&body::mechanisms(&[SCRAM_SHA_256])) else { panic!() };
    assert!(matches!(server.step(&answer), Step::Fail(AuthError::ChannelBinding { .. })));
}

#[test]
fn scram_without_initial_data_starts_with_an_empty_challenge() {
    let mut server = ServerAuth::new(USER, Method::Scram(None), entropy(), None, [0; 32]);
    let initial = [&b"SCRAM-SHA-256\0"[..], &[0xff; 4]].concat();
    assert!(matches!(server.step(&initial), Step::Continue(body) if body == [0, 0, 0, 11]));
    assert!(matches!(server.step(b"n,,n=,r=x"), Step::Continue(_)));
}

#[test]
fn malformed_answers_are_protocol_violations() {
    let scram = Method::Scram(None);
    let cases: [(Method, &[u8], &str); 11] = [
        (Method::Passthrough, b"", "08P01"),
        (Method::Passthrough, b"\0", "28P01"),
        (Method::Passthrough, b"no nul", "08P01"),
        (Method::Passthrough, b"two\0nuls\0", "08P01"),
        (Method::Trust, b"x\0", "08P01"),
        (scram.clone(), b"SCRAM-SHA-256", "08P01"),
        (scram.clone(), b"SCRAM-SHA-256\0\0\0\0", "08P01"),
        (scram.clone(), b"SCRAM-SHA-256\0\0\0\0\x05abcd", "08P01"),
        (scram.clone(), b"SCRAM-SHA-256\0\0\0\0\x01abcd", "08P01"),
        (scram.clone(), b"SCRAM-SHA-256\0\xff\xff\xff\xfeabcd", "08P01"),
        (scram, b"SCRAM-SHA-256-PLUS\0\xff\xff\xff\xff", "08P01"),
    ];
    for (method, answer, sqlstate) in cases {
        match ServerAuth::new(USER, method, entropy(), None, [0; 32]).step(answer) {
            Step::Fail(error) => {
                assert_eq!(error.sqlstate(), sqlstate, "{}", answer.escape_ascii())
            }
            other => panic!("{other:?}"),
        }
    }
    let long = [vec![b'a'; MAX_PASSWORD_LEN], vec![0]].concat();
    let mut server = ServerAuth::new(USER, Method::Passthrough, entropy(), None, [0; 32]);
    assert!(matches!(server.step(&long), Step::Fail(AuthError::Protocol { .. })));
}

#[test]
fn a_failed_login_cannot_be_tried_again() {
    let mut server = ServerAuth::new(USER, Method::Cleartext(secret("secret")), entropy(), None, [0; 32]);
    assert!(matches!(server.step(b"wrong\0"), Step::Fail(AuthError::Password)));
    assert!(matches!(server.step(b"secret\0"), Step::Fail(AuthError::Protocol { .. })));
}

#[test]
fn a_server_may_not_skip_its_proof() {
    let mut client = ClientAuth::new(USER, plain("secret"), None, Nonce::new([2; 18]), None);
    assert!(matches!(client.step(&body::mechanisms(&[SCRAM_SHA_256])), Reply::Send(_)));
    assert!(matches!(client.step(&AUTHENTICATION_OK), Reply::Fail(LoginError::ServerSignature)));
}

#[test]
fn a_hash_is_not_enough_for_every_method() {
    let keys = Credentials::Scram(ScramKeys::derive(b"secret", vec![9; 16], NonZeroU32::MIN));
    let md5 = Credentials::Md5(Md5Hash::of(b"secret", USER));
    let [cleartext, md5_request] = [body::request(body::CLEARTEXT, &[]), body::request(body::MD5, &[0; 4])];
    let scram = body::mechanisms(&[SCRAM_SHA_256]);
    for (credentials, request) in [
        (&keys, &cleartext),
        (&md5, &cleartext),
        (&keys, &md5_request),
        (&md5, &scram),
        (&Credentials::None, &cleartext),
        (&Credentials::None, &md5_request),
        (&Credentials::None, &scram),
    ] {
        let mut client = ClientAuth::new(USER, credentials.clone(), None, Nonce::new([2; 18]), None);
        assert!(matches!(client.step(request), Reply::Fail(LoginError::Credentials(_))), "{credentials:?}");
    }
}

#[test]
fn unknown_methods_are_named() {
    let fail = |body: &[u8]| match ClientAuth::new(USER, plain("x"), None, Nonce::new([2; 18]), None).step(body) {
        Reply::Fail(error) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(fail(&body::request(7, &[])), LoginError::Method(7));
    assert_eq!(fail(&body::mechanisms(&["A", "B"])), LoginError::Mechanisms("A, B".into()));
    assert_eq!(fail(b"\0\0"), LoginError::Malformed("no authentication code"));
    assert_eq!(fail(&body::request(body::SASL_CONTINUE, b"r=")), LoginError::Malformed("SASL message out of order"));
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    // arbitrary bytes, and bytes that get further into the readers
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "[nyp],[am]?,?n=[a-z]{0,3},r=[!-~]{0,30}(,[a-z]=[a-z]?){0,2}".prop_map(String::into_bytes),
        "c=(biws|eSws),r=[A-Za-z0-9+/]{0,50},p=[A-Za-z0-9+/=]{0,50}".prop_map(String::into_bytes),
        "r=[A-Za-z0-9+/]{0,50},s=[A-Za-z0-9+/=]{0,30},i=[0-9]{0,4}".prop_map(String::into_bytes),
        "[ve]=[A-Za-z0-9+/=]{0,50}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn no_bytes_of_a_client_panic_or_log_in(
        method in prop::sample::select(methods()),
        tls in any::<bool>(),
        raw in any::<bool>(),
        messages in prop::collection::vec(bytes(), 1..4),
    ) {
        let mut server = ServerAuth::new(USER, method, entropy(), tls.then(|| vec![1]), [0; 32]);
        for (index, message) in messages.iter().enumerate() {
            let mut body = message.clone();
            if index == 0 && !raw {
                let len = (message.len() as i32).to_be_bytes();
                body = [&b"SCRAM-SHA-256\0"[..], &len, message].concat();
            }
            let step = server.step(&body);
            let done = matches!(step, Step::Done { .. });
            prop_assert!(!done);
        }
    }

    #[test]
    fn no_bytes_of_a_server_panic_or_prove_it(
        codes in prop::collection::vec(0i32..14, 1..5),
        data in prop::collection::vec(bytes(), 5),
        raw in any::<bool>(),
    ) {
        let mut client = ClientAuth::new(USER, plain("secret"), None, Nonce::new([2; 18]), Some(vec![1]));
        prop_assert!(matches!(client.step(&body::mechanisms(&[SCRAM_SHA_256_PLUS])), Reply::Send(_)));
        for (code, data) in codes.iter().zip(&data) {
            let body = if raw { data.clone() } else { body::request(*code, data) };
            prop_assert!(!matches!(client.step(&body), Reply::Done));
        }
    }

    #[test]
    fn secrets_never_panic(text in ".*") {
        let _ = Secret::parse(&text);
        let _ = Secret::parse(&format!("SCRAM-SHA-256${text}"));
    }
}

//! Who is let in, and that a server that fails goes on trying.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use axum::http::{Method, header};
use common::{Memory, Scratch, Server, status, until};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};
use xdp_lb_api::{
    client::{Client, ClientError},
    server::{Settings, Tls, serve},
};

const READ: &str = "read-0123456789abcdef";
const WRITE: &str = "write-0123456789abcdef";

/// A port on loopback that nobody has at the moment.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn listening(address: SocketAddr) {
    until(|| std::net::TcpStream::connect(address).is_ok()).await;
}

fn http(address: SocketAddr, token: Option<&str>) -> Client {
    Client::tcp(&format!("http://{address}"), token.map(str::to_owned), None).unwrap()
}

async fn code(client: &Client, method: Method) -> u16 {
    let body = (method == Method::PUT).then(|| json!({"frontends": []}));
    status(&client.send(method, "/services/a", body.as_ref(), &[]).await)
}

fn with_tokens(settings: &mut Settings, scratch: &Scratch, listen: SocketAddr) {
    settings.listen = Some(listen);
    settings.read_tokens = Some(scratch.file("read", &format!("{READ}\n")));
    settings.write_tokens = Some(scratch.file("write", &format!("{WRITE}\n")));
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_group() {
    let server = Server::start(|_, _| {}).await;
    let mode = fs::metadata(server.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[tokio::test]
async fn a_socket_that_a_killed_process_left_is_replaced_and_a_live_one_is_not() {
    let server = Server::start(|settings, _| {
        let path = settings.socket.clone().unwrap();
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    })
    .await;
    let client = server.client();
    let mut answered = false;
    for _ in 0..500 {
        answered = client.send(Method::GET, "/health", None, &[]).await.is_ok();
        if answered {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(answered);
    // Another server on the same path leaves it alone.
    let other = tokio::spawn(serve(server.settings.subscribe(), Memory::new()));
    sleep(Duration::from_millis(200)).await;
    other.abort();
    let _ = other.await;
    assert!(server.client().send(Method::GET, "/health", None, &[]).await.is_ok());
}

#[tokio::test]
async fn tokens_say_who_may_read_and_who_may_write() {
    let listen = free();
    let server = Server::start(|settings, scratch| with_tokens(settings, scratch, listen)).await;
    listening(listen).await;
    for (token, get, put) in [
        (None, 401, 401),
        (Some("wrong-0123456789abcdef"), 401, 401),
        (Some(&READ[..READ.len() - 1]), 401, 401),
        (Some(READ), 404, 403),
        (Some(WRITE), 404, 201),
    ] {
        let client = http(listen, token);
        assert_eq!(code(&client, Method::GET).await, get, "{token:?}");
        assert_eq!(code(&client, Method::PUT).await, put, "{token:?}");
    }
    // What packets hold is more than what the instance knows.
    for (token, status) in [(READ, 403), (WRITE, 200)] {
        let client = http(listen, Some(token));
        let is = match client.events("/monitor").await {
            Ok(_) => 200,
            Err(ClientError::Refused(problem)) => problem.status,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(is, status, "{token}");
    }
    // The socket needs none.
    assert_eq!(code(&server.client(), Method::GET).await, 200);
    // Another token is another right, without a restart.
    server.scratch.file("write", "another-0123456789abcdef\n");
    let (old, new) = (http(listen, Some(WRITE)), http(listen, Some("another-0123456789abcdef")));
    for _ in 0..1000 {
        if code(&new, Method::GET).await == 200 {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code(&new, Method::PUT).await, 200);
    assert_eq!(code(&old, Method::PUT).await, 401);
    // A file without a token changes nothing.
    server.scratch.file("write", "short\n");
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(code(&new, Method::PUT).await, 200);
}

#[tokio::test]
async fn on_loopback_without_tokens_web_pages_are_kept_out() {
    let listen = free();
    let _server = Server::start(|settings, _| settings.listen = Some(listen)).await;
    listening(listen).await;
    let client = http(listen, None);
    assert_eq!(code(&client, Method::PUT).await, 201);
    let monitor = client.send(Method::GET, "/monitor", None, &[]).await;
    assert_eq!(status(&monitor), 403, "any user of the host could see its packets");
    let host = listen.to_string();
    let same = format!("http://{host}");
    for (name, value, wanted) in [
        (header::ORIGIN, "https://example.com", 403),
        (header::ORIGIN, "null", 403),
        (header::ORIGIN, &same, 200),
    ] {
        let answer = client.send(Method::GET, "/health", None, &[(name, value)]).await;
        assert_eq!(status(&answer), wanted, "{value}");
    }
    let mut stream = tokio::net::TcpStream::connect(listen).await.unwrap();
    let request = "GET /api/v1/health HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn where_the_socket_is_forwarded_pages_of_other_sites_are_kept_out() {
    let server = Server::start(|_, _| {}).await;
    for (host, origin, wanted) in [
        ("localhost:9870", "http://localhost:9870", "200"),
        ("localhost:9870", "https://example.com", "403"),
        ("localhost:9870", "null", "403"),
        ("example.com", "http://example.com", "403"),
    ] {
        let mut stream = tokio::net::UnixStream::connect(server.socket()).await.unwrap();
        let request = format!(
            "GET /api/v1/health HTTP/1.1\r\nhost: {host}\r\norigin: {origin}\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(&answer[9..12], wanted, "{host} {origin}");
    }
}

#[tokio::test]
async fn an_address_may_send_so_many_requests_and_no_more() {
    let listen = free();
    let _server = Server::start(|settings, _| settings.listen = Some(listen)).await;
    listening(listen).await;
    let client = http(listen, None);
    let mut codes = Vec::new();
    // A slow machine takes more of them to be faster than what is let through.
    let end = Instant::now() + Duration::from_secs(60);
    while !codes.contains(&429) && Instant::now() < end {
        let many = (0..20).map(|_| client.send(Method::GET, "/health", None, &[]));
        codes.extend(futures_util::future::join_all(many).await.iter().map(status));
    }
    assert!(codes.iter().take(100).all(|code| *code == 200), "a burst is let through");
    assert!(codes.contains(&429), "{} at once are too many", codes.len());
}

#[tokio::test]
async fn off_loopback_nothing_is_served_without_token_and_tls() {
    let listen = SocketAddr::from(([0, 0, 0, 0], free().port()));
    let local = SocketAddr::from(([127, 0, 0, 1], listen.port()));
    let server = Server::start(|settings, _| settings.listen = Some(listen)).await;
    // The socket is served at the same time, so the listener had its chance.
    assert_eq!(code(&server.client(), Method::GET).await, 404);
    sleep(Duration::from_millis(200)).await;
    assert!(std::net::TcpStream::connect(local).is_err());
    server.settings.send_modify(|settings| with_tokens(settings, &server.scratch, listen));
    sleep(Duration::from_millis(200)).await;
    assert!(std::net::TcpStream::connect(local).is_err());
}

#[tokio::test]
async fn a_port_that_is_taken_keeps_nobody_from_the_socket_and_is_tried_again() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let server = Server::start(|settings, _| settings.listen = Some(listen)).await;
    assert_eq!(code(&server.client(), Method::GET).await, 404);
    drop(taken);
    listening(listen).await;
    assert_eq!(code(&http(listen, None), Method::GET).await, 404);
}

#[tokio::test]
async fn settings_take_effect_without_a_restart() {
    let server = Server::start(|_, _| {}).await;
    let listen = free();
    server.settings.send_modify(|settings| settings.listen = Some(listen));
    listening(listen).await;
    server.settings.send_modify(|settings| settings.listen = None);
    until(|| std::net::TcpStream::connect(listen).is_err()).await;
    assert_eq!(code(&server.client(), Method::GET).await, 404);
}

/// Writes a certificate for 127.0.0.1 and its key.
fn certificate(scratch: &Scratch) -> Tls {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    // The key first: whoever sees the new certificate sees the new key too.
    let key = scratch.file("tls.key", &made.signing_key.serialize_pem());
    Tls { certificate: scratch.file("tls.crt", &made.cert.pem()), key }
}

#[tokio::test]
async fn tls_is_spoken_and_certificates_are_renewed() {
    let listen = free();
    let server = Server::start(|settings, scratch| {
        with_tokens(settings, scratch, listen);
        settings.tls = Some(certificate(scratch));
    })
    .await;
    listening(listen).await;
    let authority = server.scratch.0.join("tls.crt");
    let url = format!("https://{listen}");
    let client = || Client::tcp(&url, Some(WRITE.to_owned()), Some(&authority)).unwrap();
    let old = client();
    assert_eq!(code(&old, Method::PUT).await, 201);
    let plain = http(listen, Some(WRITE)).send(Method::GET, "/health", None, &[]).await;
    assert!(matches!(plain, Err(ClientError::Broken(_))), "{plain:?}");
    certificate(&server.scratch);
    let new = client();
    let mut answered = false;
    for _ in 0..500 {
        answered = new.send(Method::GET, "/health", None, &[]).await.is_ok();
        if answered {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert!(answered, "the new certificate is served");
    let result = old.send(Method::GET, "/health", None, &[]).await;
    assert!(matches!(result, Err(ClientError::Connect { .. })), "{result:?}");
}

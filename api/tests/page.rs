//! The page's files: what they are served with, and what they hold.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::collections::BTreeSet;

use common::Server;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use xdp_lb_abi::Reason;
use xdp_lb_api::{
    ASSETS,
    view::{BackendState, EventKind},
};

/// Most bytes of all files together.
const BUDGET: usize = 100_000;

fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n")
}

/// The head and the body of an answer.
async fn ask(server: &Server, method: &str, path: &str, more: &str) -> (String, String) {
    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
    stream.write_all(request(method, path, more).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(one, _)| *one == name)
        .map(|one| one.1)
}

#[tokio::test]
async fn every_file_comes_with_its_type_and_a_policy_that_lets_in_nothing_foreign() {
    let server = Server::start(|_, _| {}).await;
    for asset in ASSETS {
        let (head, body) = ask(&server, "GET", asset.path, "").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{}: {head}", asset.path);
        assert_eq!(body, asset.text);
        assert_eq!(header(&head, "content-type"), Some(asset.kind));
        assert_eq!(header(&head, "cache-control"), Some("no-cache"));
        assert_eq!(header(&head, "x-content-type-options"), Some("nosniff"));
        assert_eq!(header(&head, "referrer-policy"), Some("no-referrer"));
        let policy = header(&head, "content-security-policy").unwrap();
        for rule in policy.split("; ") {
            let (name, value) = rule.split_once(' ').unwrap();
            assert!(["'none'", "'self'", "'script'"].contains(&value), "{name} {value}");
        }
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    }
}

#[tokio::test]
async fn a_browser_that_has_a_file_does_not_get_it_again() {
    let server = Server::start(|_, _| {}).await;
    let mut tags = BTreeSet::new();
    for asset in ASSETS {
        let (head, _) = ask(&server, "GET", asset.path, "").await;
        let tag = header(&head, "etag").unwrap().to_owned();
        for known in [&*tag, &format!("\"other\", {tag}"), &format!("W/{tag}"), "*"] {
            let more = format!("if-none-match: {known}\r\n");
            let (head, body) = ask(&server, "GET", asset.path, &more).await;
            assert!(head.starts_with("HTTP/1.1 304 "), "{head}");
            assert_eq!((header(&head, "etag"), &*body), (Some(&*tag), ""));
            assert!(header(&head, "content-security-policy").is_some());
        }
        for other in ["\"other\"", "nonsense"] {
            let more = format!("if-none-match: {other}\r\n");
            let (head, body) = ask(&server, "GET", asset.path, &more).await;
            assert!(head.starts_with("HTTP/1.1 200 ") && body == asset.text, "{other}: {head}");
        }
        let (head, body) = ask(&server, "HEAD", asset.path, "").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = asset.text.len().to_string();
        assert_eq!((header(&head, "content-length"), &*body), (Some(&*length), ""));
        tags.insert(tag);
    }
    assert_eq!(tags.len(), ASSETS.len(), "other files have other tags");
}

#[tokio::test]
async fn what_is_no_file_of_the_page_is_a_problem() {
    let server = Server::start(|_, _| {}).await;
    for path in [
        "/page",
        "/page/",
        "/page/none.js",
        "/page/..%2f..%2fetc%2fpasswd",
        "/index.html",
        "/favicon.ico",
    ] {
        let (head, body) = ask(&server, "GET", path, "").await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{path}: {head}");
        assert!(body.contains("#route"), "{body}");
    }
    for path in ["/", "/page/main.js"] {
        let (head, body) = ask(&server, "POST", path, "content-length: 0\r\n").await;
        assert!(head.starts_with("HTTP/1.1 405 ") && body.contains("#method"), "{head} {body}");
    }
    let (head, _) = ask(&server, "GET", "/api/v1/health", "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

#[tokio::test]
async fn the_files_need_no_token_and_nothing_else_is_open() {
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _server = Server::start(|settings, scratch| {
        settings.listen = Some(listen);
        settings.read_tokens = Some(scratch.file("read", "read-0123456789abcdef\n"));
    })
    .await;
    common::until(|| std::net::TcpStream::connect(listen).is_ok()).await;
    let code = async |method: &str, path: &str| {
        let mut stream = TcpStream::connect(listen).await.unwrap();
        stream.write_all(request(method, path, "").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer[9..12].to_owned()
    };
    for asset in ASSETS {
        assert_eq!(code("GET", asset.path).await, "200");
        assert_eq!(code("HEAD", asset.path).await, "200");
        assert_eq!(code("POST", asset.path).await, "401");
    }
    for path in ["/page/none", "/page/../api/v1/health", "/page//api/v1/health"] {
        assert_eq!(code("GET", path).await, "404", "{path}");
    }
    for path in
        ["/api/v1/health", "//", "/pages", "/api/v1/openapi.json", "/metrics", "//api/v1/health"]
    {
        assert_eq!(code("GET", path).await, "401", "{path}");
    }
}

/// What a quoted attribute or import names, in any file.
fn named(text: &str) -> Vec<&str> {
    let starts = ["src=\"", "href=\"", "from \"", "import \"", "import(", "url(", "@import"];
    let found = starts
        .iter()
        .flat_map(|start| text.match_indices(start).map(|(at, _)| &text[at + start.len()..]));
    found.map(|rest| rest.split(['"', ')', '\'']).next().unwrap()).collect()
}

#[test]
fn the_files_name_nothing_outside_and_everything_that_they_name_is_there() {
    let paths: BTreeSet<&str> = ASSETS.iter().map(|asset| asset.path).collect();
    let mut used = BTreeSet::from(["/"]);
    for asset in ASSETS {
        // The one address in them is the name of SVG's vocabulary, which nobody loads.
        let text = asset.text.replace("http://www.w3.org/2000/svg", "");
        for foreign in
            ["//", "data:", "blob:", "wss:", "eval(", "innerHTML", "document.write", "<style"]
        {
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in lines {
                let code = line.split(" // ").next().unwrap().replace("`data:", "");
                let harmless = foreign == "data:" && code.contains("startsWith(\"data:\")");
                assert!(harmless || !code.contains(foreign), "{}: {foreign} in {line}", asset.path);
            }
        }
        for name in named(&text) {
            let Some(path) = (match name.strip_prefix("./") {
                Some(file) => paths.get(&*format!("/page/{file}")),
                None if name.starts_with('#') => continue,
                None => paths.get(name),
            }) else {
                panic!("{} names {name}, which is no file of the page", asset.path);
            };
            used.insert(path);
        }
    }
    assert_eq!(used, paths, "each file is used");
}

#[test]
fn the_page_has_words_for_every_kind_of_event_and_every_state_of_a_backend() {
    let text = |file: &str| ASSETS.iter().find(|asset| asset.path.ends_with(file)).unwrap().text;
    for kind in EventKind::ALL {
        assert!(text("/events.js").contains(&format!("  {}: [", kind.as_str())), "{kind:?}");
    }
    use BackendState::{Active, Down, Drained, Draining, Terminating, Unreachable};
    for state in [Active, Draining, Terminating, Drained, Down, Unreachable] {
        assert!(text("/backends.js").contains(&format!(" {state}: \"")), "{state}");
    }
}

#[test]
fn the_files_are_small() {
    let size: usize = ASSETS.iter().map(|asset| asset.text.len()).sum();
    assert!(size <= BUDGET, "{size} bytes are more than {BUDGET}");
}

#[test]
fn the_page_knows_every_reason_in_the_words_of_the_documentation() {
    let script = ASSETS.iter().find(|asset| asset.path.ends_with("reasons.js")).unwrap().text;
    let lines: Vec<&str> = script.lines().filter(|line| line.starts_with("  [\"")).collect();
    assert_eq!(lines.len(), Reason::COUNT);
    let documentation = include_str!("../../docs/operations.md");
    for (reason, line) in Reason::ALL.iter().zip(lines) {
        let (name, then) = (reason.as_str(), reason.disposition().as_str());
        let row = format!("| `{name}` | {then} | ");
        let row = documentation.lines().find_map(|line| line.strip_prefix(&row));
        let meaning = row.and_then(|row| row.strip_suffix(" |")).unwrap().replace('`', "");
        assert_eq!(line, format!("  [\"{name}\", [\"{then}\", \"{meaning}\"]],"));
    }
}

//! Every route over a real connection, and that the document tells the truth about it.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::collections::BTreeSet;

use axum::http::{Method, header};
use common::{FRONTEND, Server, status};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use xdp_lb_api::{
    Problem,
    client::{Client, ClientError, escape},
    monitor::PacketView,
    view::ServiceView,
};

fn service() -> Value {
    json!({"frontends": [{"address": "203.0.113.20", "port": 80}], "backends": []})
}

async fn send(client: &Client, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let result = client.send(method, path, body.as_ref(), &[]).await;
    match &result {
        Err(ClientError::Refused(problem)) => (problem.status, json!(problem)),
        Ok(response) => {
            let body = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
            (response.status.as_u16(), body)
        }
        Err(error) => panic!("{error}"),
    }
}

fn names(page: &Value, key: &str) -> Vec<String> {
    let items = page["items"].as_array().unwrap_or_else(|| page.as_array().unwrap());
    items.iter().map(|one| one[key].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_service_comes_changes_and_goes() {
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    let path = format!("/services/{}", escape("ns/web"));
    let put = || client.send(Method::PUT, &path, None, &[]);
    assert_eq!(status(&put().await), 415, "without a body there is no type");

    let (code, view) = send(&client, Method::PUT, &path, Some(service())).await;
    assert_eq!((code, &view["owner"], &view["name"]), (201, &json!("api"), &json!("ns/web")));
    let (code, _) = send(&client, Method::PUT, &path, Some(service())).await;
    assert_eq!(code, 200, "the same again is no other service");

    let first = client.send(Method::GET, &path, None, &[]).await.unwrap();
    let tag = first.etag.unwrap();
    let known = client.send(Method::GET, &path, None, &[(header::IF_NONE_MATCH, &tag)]).await;
    assert_eq!(status(&known), 304);

    let patch = json!({"mode": "ipip"});
    let with = [(header::IF_MATCH, &*tag)];
    let patched = client.send(Method::PATCH, &path, Some(&patch), &with).await.unwrap();
    let view: ServiceView = serde_json::from_slice(&patched.body).unwrap();
    assert_eq!((&view.service["mode"], &view.service["backends"]), (&json!("ipip"), &json!([])));
    assert_ne!(patched.etag.as_ref(), Some(&tag));
    let late = client.send(Method::PUT, &path, Some(&service()), &with).await;
    assert_eq!(status(&late), 412, "the second of two writers who read the same");
    let create = [(header::IF_NONE_MATCH, "*")];
    let again = client.send(Method::PUT, &path, Some(&service()), &create).await;
    assert_eq!(status(&again), 412);

    let dry = format!("{path}?dryRun=true");
    assert_eq!(send(&client, Method::DELETE, &dry, None).await.0, 204);
    assert_eq!(send(&client, Method::GET, &path, None).await.0, 200, "it was a dry run");
    assert_eq!(send(&client, Method::DELETE, &path, None).await.0, 204);
    assert_eq!(send(&client, Method::GET, &path, None).await.0, 404);
    assert_eq!(send(&client, Method::DELETE, &path, None).await.0, 404);
    assert_eq!(send(&client, Method::PATCH, &path, Some(patch)).await.0, 404);
}

#[tokio::test]
async fn problems_name_the_field_the_reason_and_the_owner() {
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    let (code, problem) = send(&client, Method::PUT, "/services/a", Some(json!({"x": 1}))).await;
    let problem: Problem = serde_json::from_value(problem).unwrap();
    assert_eq!((code, problem.status), (422, 422));
    assert_eq!(problem.errors[0].pointer, "/frontends");
    assert!(problem.kind.ends_with("docs/api.md#invalid"), "{}", problem.kind);
    let (code, problem) = send(&client, Method::DELETE, "/services/file", None).await;
    assert_eq!((code, &problem["owner"]), (409, &json!("file")));
    assert!(problem["detail"].as_str().unwrap().contains("configuration file"), "{problem}");
    for (path, what) in [
        ("/services?limit=0", "limit"),
        ("/services?limit=x", "limit"),
        ("/services?unknown=1", "unknown"),
        ("/services?owner=me", "owner"),
        ("/services?continue=zz", "continue"),
        ("/backends?address=1.2.3", "address"),
        ("/stream?counters=0", "counters"),
    ] {
        let (code, problem) = send(&client, Method::GET, path, None).await;
        assert_eq!(code, 400, "{path}");
        assert!(problem["detail"].as_str().unwrap().contains(what), "{path}: {problem}");
    }
    for tag in ["x", "\"a", "\"a\" \"b"] {
        let with = [(header::IF_MATCH, tag)];
        assert_eq!(status(&client.send(Method::DELETE, "/services/a", None, &with).await), 400);
    }
    *server.memory.broken.lock().unwrap() = true;
    assert_eq!(send(&client, Method::PUT, "/services/a", Some(service())).await.0, 503);
}

#[tokio::test]
async fn a_packet_is_traced_or_refused_by_its_key() {
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    let trace = async |body: Value| send(&client, Method::POST, "/trace", Some(body)).await;
    let (code, view) = trace(json!({"from": "198.51.100.7:1", "to": "203.0.113.10:80"})).await;
    assert_eq!((code, &view["outcome"], &view["device"]), (200, &json!("dropped"), &json!("eth0")));
    let (code, problem) = trace(json!({"to": "203.0.113.10:80"})).await;
    assert_eq!((code, &problem["errors"][0]["pointer"]), (422, &json!("/from")));
    assert!(problem["type"].as_str().unwrap().ends_with("docs/api.md#packet"));
    let (code, problem) = trace(json!({"form": "198.51.100.7:1"})).await;
    assert_eq!(code, 422);
    assert!(problem["detail"].as_str().unwrap().contains("form"), "{problem}");
    assert_eq!(trace(json!([])).await.0, 422);
}

/// The answer to raw bytes, until the other end closes or falls silent.
async fn raw(server: &Server, request: &str) -> String {
    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn bodies_that_are_none_are_refused() {
    let server = Server::start(|_, _| {}).await;
    let put = |kind: &str, length: usize, body: &str| {
        format!(
            "PUT /api/v1/services/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    for (request, code) in [
        (put("application/json", 1, "{"), "400"),
        (put("text/plain", 2, "{}"), "415"),
        (put("application/merge-patch+json", 2, "{}"), "415"),
        (put("application/json; charset=utf-8", 2, "{}"), "422"),
        (put("application/json", xdp_lb_api::MAX_BODY + 1, ""), "413"),
    ] {
        let answer = raw(&server, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{request}\n{answer}");
        assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    }
}

#[tokio::test]
async fn what_there_is_can_be_listed_and_filtered() {
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    for name in ["a", "b", "c"] {
        send(&client, Method::PUT, &format!("/services/{name}"), Some(service())).await;
    }
    let get = async |path: &str| {
        let (code, body) = send(&client, Method::GET, path, None).await;
        assert_eq!(code, 200, "{path}: {body}");
        body
    };
    assert_eq!(names(&get("/services").await, "name"), ["a", "b", "c", "file"]);
    assert_eq!(names(&get("/services?owner=file").await, "name"), ["file"]);
    assert_eq!(names(&get("/services?name=b").await, "name"), ["b"]);
    let page = get("/services?limit=3").await;
    assert_eq!((names(&page, "name").len(), &page["total"]), (3, &json!(4)));
    let next = page["continue"].as_str().unwrap();
    let page = get(&format!("/services?limit=3&continue={next}")).await;
    assert_eq!((names(&page, "name"), page.get("continue")), (vec!["file".to_owned()], None));

    assert_eq!(names(&get("/frontends").await, "frontend").len(), 2);
    assert_eq!(names(&get("/frontends?state=served").await, "frontend"), [FRONTEND]);
    assert_eq!(get("/frontends?service=a").await["total"], 0);
    assert_eq!(get(&format!("/frontends/{}", escape(FRONTEND))).await["state"], "served");
    assert_eq!(names(&get("/backends").await, "backend"), ["10.0.0.1", "10.0.0.2:80"]);
    assert_eq!(names(&get("/backends?address=10.0.0.2").await, "backend"), ["10.0.0.2:80"]);
    assert_eq!(get("/backends?state=draining").await["total"], 0);
    assert_eq!(get("/services/file/backends").await["total"], 2);
    assert_eq!(get("/services/a/backends").await["total"], 0);
    assert_eq!(get("/services/file/backends/10.0.0.2:80").await["weight"], 1);
    assert_eq!(names(&get("/devices").await, "name"), ["eth0"]);
    assert_eq!(get("/peers").await, json!([]));
    assert_eq!(names(&get("/events").await, "kind"), ["started"]);
    assert_eq!(get("/events?after=1").await, json!([]));
    assert_eq!(get("/events?kind=repaired").await, json!([]));
    assert_eq!(get("/health").await["state"], "ok");
    let status = get("/status").await;
    assert_eq!((&status["services"], &status["refused"]), (&json!(4), &json!(1)));
    assert_eq!((&status["arenaUsed"], &status["arenaSize"]), (&json!(6), &json!(10)));
    assert_eq!(get("/config").await["handover"], "300s");
    assert_eq!(get("/kubernetes").await["node"], "n1");
    assert_eq!(get("/counters").await["frontends"][0]["packets"], 7);
    assert_eq!(get("/flows/count").await["flows"], 30);
    assert_eq!(get("/flows/count?client=198.51.100.3").await["flows"], 3);
    assert_eq!(get(&format!("/flows/count?frontend={}", escape(FRONTEND))).await["flows"], 30);
    let page = get("/flows?backend=10.0.0.7:80").await;
    assert_eq!(names(&page, "client"), ["198.51.100.7:4000"]);
    assert_eq!(get("/flows?limit=7").await["items"].as_array().unwrap().len(), 7);
    let digest = get("/maglev").await[0]["digest"].clone();
    let table = get(&format!("/maglev/{}", escape(FRONTEND))).await;
    assert_eq!((&table["digest"], &table["slots"]), (&digest, &json!([0])));

    let drain = "/services/file/backends/10.0.0.1/drain";
    let (code, view) = send(&client, Method::POST, drain, None).await;
    assert_eq!((code, &view["drained"]), (200, &json!(["10.0.0.1"])));
    let (code, view) =
        send(&client, Method::POST, &drain.replace("/drain", "/undrain"), None).await;
    assert_eq!((code, &view["drained"]), (200, &json!([])));
}

#[tokio::test]
async fn the_stream_tells_of_changes_events_and_counters() {
    let server = Server::start(|_, _| {}).await;
    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
    let request = "GET /api/v1/stream?counters=1 HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut wait = async |what: &str| {
        while !seen.contains(what) {
            let mut more = [0; 4096];
            let read =
                tokio::time::timeout(std::time::Duration::from_secs(10), stream.read(&mut more));
            let count = read.await.unwrap_or_else(|_| panic!("no {what:?} in {seen}")).unwrap();
            assert_ne!(count, 0, "it ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&more[..count]));
        }
    };
    wait("event: service\ndata: {\"name\":\"file\"").await;
    let client = server.client();
    send(&client, Method::PUT, "/services/new", Some(service())).await;
    wait("event: service\ndata: {\"name\":\"new\"").await;
    send(&client, Method::DELETE, "/services/new", None).await;
    wait("event: removed\ndata: \"new\"").await;
    server.memory.happen("a thing");
    wait("\"message\":\"a thing\"").await;
    server.memory.move_on();
    wait("event: state\ndata: {").await;
    wait("event: counters\ndata: {").await;
}

#[tokio::test]
async fn packets_are_told_one_by_one_as_they_were_asked_for() {
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    let path = "/monitor?after=true&host=2001%3Adb8%3A%3A7&frontend=f&capture=64&sample=10";
    let mut events = client.events(path).await.unwrap();
    let packet = events.next().await.unwrap().unwrap();
    let view: PacketView = serde_json::from_str(&packet.data).unwrap();
    assert_eq!((packet.name.as_str(), view.frontend.as_deref()), ("packet", Some("f")));
    assert!(view.after && view.headers.contains("2001:db8::7"), "{view:?}");
    let lost = events.next().await.unwrap().unwrap();
    assert_eq!((lost.name.as_str(), lost.data.as_str()), ("lost", "1"));
    assert_eq!(events.next().await.unwrap(), None);
    for (query, code) in [
        ("capture=63", 400),
        ("capture=1537", 400),
        ("sample=0", 400),
        ("port=0", 400),
        ("port=65536", 400),
        ("host=x", 400),
        ("all=perhaps", 400),
        ("unknown=1", 400),
        ("backend=10.0.0.1%3A80", 404),
    ] {
        let (is, problem) = send(&client, Method::GET, &format!("/monitor?{query}"), None).await;
        assert_eq!((is, problem["status"].as_u64()), (code, Some(code.into())), "{query}");
    }
}

/// A path of the document with names put in.
fn example(path: &str) -> String {
    let path = path.strip_prefix("/api/v1").unwrap();
    path.replace("{name}", "web")
        .replace("{service}", "file")
        .replace("{backend}", "10.0.0.1")
        .replace("{frontend}", &escape(FRONTEND))
        .replace("{id}", "1")
}

#[tokio::test]
async fn one_benchmark_runs_at_a_time_until_it_is_ended() {
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    let post = |body| send(&client, Method::POST, "/benchmarks", body);
    for (body, code) in [
        (json!({"scale": "huge"}), 400),
        (json!({"filter": "x".repeat(101)}), 400),
        (json!({"loads": 1000}), 400),
        (json!([]), 400),
    ] {
        assert_eq!(post(Some(body.clone())).await.0, code, "{body}");
    }
    let wanted = json!({"scale": "full", "filter": "ipip"});
    let (code, run) = post(Some(wanted.clone())).await;
    assert_eq!((code, &run["id"], &run["request"]), (202, &json!("1"), &wanted));
    let (code, problem) = post(None).await;
    assert_eq!(code, 409);
    assert!(problem["type"].as_str().unwrap().ends_with("docs/api.md#busy"), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("benchmark 1 runs") && detail.contains("/benchmarks/1/cancel"),
        "{detail}"
    );
    let (code, run) = send(&client, Method::POST, "/benchmarks/1/cancel", None).await;
    assert_eq!((code, &run["state"]), (200, &json!("cancelled")));
    // Without a body it is the usual one.
    let (code, run) = post(None).await;
    assert_eq!((code, &run["request"]), (202, &json!({"scale": "quick", "filter": ""})));
    let (_, page) = send(&client, Method::GET, "/benchmarks", None).await;
    assert_eq!(names(&page, "id"), ["1", "2"]);
    for (method, path) in [(Method::GET, "/benchmarks/3"), (Method::POST, "/benchmarks/3/cancel")] {
        assert_eq!(send(&client, method, path, None).await.0, 404);
    }
}

#[tokio::test]
async fn routes_answer_as_the_document_says() {
    let document = xdp_lb_api::document();
    let text = serde_json::to_value(&document).unwrap();
    assert_eq!(text["openapi"], "3.1.0");
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    assert_eq!(send(&client, Method::GET, "/openapi.json", None).await.1, text);
    let all = ["GET", "PUT", "POST", "PATCH", "DELETE"];
    // So that what is changed and removed is there, whatever the order.
    let paths = text["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 29, "a route came or went: test it above, and count it here");
    // Metrics have a test of their own.
    for (path, item) in paths.iter().filter(|(path, _)| path.starts_with("/api/v1")) {
        let documented: BTreeSet<String> =
            item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        for method in all {
            let body = match method {
                "PUT" | "PATCH" => Some(service()),
                "POST" if path.ends_with("/trace") => Some(json!({"from": "198.51.100.7"})),
                _ => None,
            };
            if ["/api/v1/stream", "/api/v1/monitor"].contains(&path.as_str()) && method == "GET" {
                continue; // no JSON; tested above
            }
            if method != "PUT" && path.ends_with("/services/{name}") {
                send(&client, Method::PUT, "/services/web", Some(service())).await;
            }
            let verb = Method::from_bytes(method.as_bytes()).unwrap();
            let (code, body) = send(&client, verb, &example(path), body).await;
            if documented.contains(method) {
                let answers = &item[method.to_lowercase()]["responses"];
                assert!((200..300).contains(&code), "{method} {path}: {code} {body}");
                assert!(answers.get(code.to_string()).is_some(), "{method} {path}: {code}");
            } else {
                assert_eq!(code, 405, "{method} {path}: {body}");
                assert!(body["type"].as_str().unwrap().ends_with("#method"), "{body}");
            }
        }
    }
    for path in ["/nothing", "/services/a/b/c", "/flows/count/x"] {
        let (code, body) = send(&client, Method::GET, path, None).await;
        assert_eq!(code, 404);
        assert!(body["type"].as_str().unwrap().ends_with("#route"), "{body}");
    }
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for_and_count_requests() {
    let server = Server::start(|_, _| {}).await;
    let client = server.client();
    send(&client, Method::GET, "/services/none", None).await;
    send(&client, Method::GET, "/nothing", None).await;
    for (accept, kind, counter, end) in [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", "some_total", false),
        (
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "some",
            true,
        ),
    ] {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: {accept}\r\n\r\n"
        );
        let answer = raw(&server, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{answer}");
        assert!(answer.contains(&format!("# TYPE {counter} counter\nsome_total 7\n")), "{answer}");
        assert_eq!(answer.contains("# EOF"), end, "{answer}");
        for sample in [
            "{method=\"GET\",route=\"/api/v1/services/{name}\",code=\"404\"} 1\n",
            "{method=\"GET\",route=\"none\",code=\"404\"} 1\n",
        ] {
            let line = format!("xdp_lb_api_requests_total{sample}");
            assert!(answer.contains(&line), "{line} in {answer}");
        }
        assert!(answer.contains("xdp_lb_api_connections{listener=\"unix\"} "), "{answer}");
    }
}

#[tokio::test]
async fn no_update_of_many_writers_is_lost() {
    let server = Server::start(|_, _| {}).await;
    let start = json!({"frontends": [], "count": 0});
    send(&server.client(), Method::PUT, "/services/counter", Some(start)).await;
    let writer = |client: Client| async move {
        for _ in 0..10 {
            loop {
                let read = client.send(Method::GET, "/services/counter", None, &[]).await.unwrap();
                let view: ServiceView = serde_json::from_slice(&read.body).unwrap();
                let patch = json!({"count": view.service["count"].as_u64().unwrap() + 1});
                let tag = read.etag.unwrap();
                let with = [(header::IF_MATCH, &*tag)];
                let result =
                    client.send(Method::PATCH, "/services/counter", Some(&patch), &with).await;
                match status(&result) {
                    200 => break,
                    code => assert_eq!(code, 412),
                }
            }
        }
    };
    let writers: Vec<_> = (0..10).map(|_| tokio::spawn(writer(server.client()))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let (_, view) = send(&server.client(), Method::GET, "/services/counter", None).await;
    assert_eq!(view["service"]["count"], 100);
}

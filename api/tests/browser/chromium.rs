//! A headless Chromium, driven by the DevTools protocol over a pipe.

use std::{io::Write as _, path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

use crate::common::Scratch;

/// How long the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one tab.
pub(crate) struct Chromium {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
    /// What went wrong in the page: exceptions, and what its policy forbade
    pub(crate) complaints: Vec<String>,
    scratch: Scratch,
}

impl Drop for Chromium {
    /// Waits for its end, so that nobody writes into its directory any more.
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        for _ in 0..100 {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let profile = self.scratch.0.join("profile");
        for _ in 0..100 {
            if std::fs::remove_dir_all(&profile).is_ok() || !profile.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The browser's program, where there is one.
fn program() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|place| names.map(|name| place.join(name)))
        .find(|file| file.is_file())
}

impl Chromium {
    /// Starts one; nothing where this machine has none, which is said.
    pub(crate) async fn start() -> Option<Self> {
        let Some(program) = program() else {
            // Past the harness, which keeps what passing tests print to itself.
            let why = "skipped: no chromium is installed (.ci/setup test installs it)";
            let _ = writeln!(std::io::stderr(), "{why}");
            return None;
        };
        let scratch = Scratch::new();
        // The protocol is spoken on descriptors 3 and 4, one JSON text after another, each with a
        // zero byte behind it.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let profile = format!("--user-data-dir={}", scratch.0.join("profile").display());
        let mut process = Command::new("sh")
            .args(["-c", script])
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args(["--no-first-run", "--disable-extensions", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--no-proxy-server", "--disable-sync"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .args([&profile, "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut browser = Self {
            process,
            input,
            output: BufReader::new(output),
            session: None,
            number: 0,
            complaints: vec![],
            scratch,
        };
        let tab = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": tab["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        // Only a window that has the focus shows it, and whether this one has it would be chance.
        browser.call("Emulation.setFocusEmulationEnabled", json!({"enabled": true})).await;
        Some(browser)
    }

    /// Calls a method of the protocol, and gives its result.
    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut text = message.to_string().into_bytes();
        text.push(0);
        self.input.write_all(&text).await.unwrap();
        let answer = timeout(PATIENCE, self.answer()).await;
        let answer = answer.unwrap_or_else(|_| panic!("the browser does not answer {method}"));
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    async fn answer(&mut self) -> Value {
        loop {
            let mut text = Vec::new();
            self.output.read_until(0, &mut text).await.unwrap();
            assert_eq!(text.pop(), Some(0), "the browser ended");
            let message: Value = serde_json::from_slice(&text).unwrap();
            if message["id"] == self.number {
                return message;
            }
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.complaints.push(message["params"]["exceptionDetails"].to_string());
                }
                // Answers that are no success are reported as `network`: these are tested apart.
                Some("Log.entryAdded") if message["params"]["entry"]["source"] != "network" => {
                    self.complaints.push(message["params"]["entry"].to_string());
                }
                _ => {}
            }
        }
    }

    /// The width and height of the window, in CSS pixels.
    pub(crate) async fn size(&mut self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// What the user prefers: `light` or `dark`.
    pub(crate) async fn scheme(&mut self, scheme: &str) {
        let features = json!([
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    pub(crate) async fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
    }

    /// The value of an expression of JavaScript in the page.
    pub(crate) async fn eval(&mut self, script: &str) -> Value {
        let params = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", params).await;
        assert!(result["exceptionDetails"].is_null(), "{script}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) async fn wait(&mut self, script: &str) {
        let start = Instant::now();
        while self.eval(&format!("Boolean(document.body && ({script}))")).await != true {
            if start.elapsed() > PATIENCE {
                let text = self.eval("document.body.innerText").await;
                panic!("in vain waited for {script}; the page says {text}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the page shows a text.
    pub(crate) async fn sees(&mut self, text: &str) {
        self.wait(&format!("document.body.innerText.includes({})", json!(text))).await;
    }

    /// Whether the page shows a text now.
    pub(crate) async fn shows(&mut self, text: &str) -> bool {
        self.eval(&format!("document.body.innerText.includes({})", json!(text))).await == true
    }

    /// Presses and releases a key, by its name (`Tab`, `Enter`) or as a character.
    pub(crate) async fn key(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            " " => 32,
            _ => 0,
        };
        let text = match key {
            "Enter" => Some("\r"),
            _ if code == 0 || key == " " => Some(key),
            _ => None,
        };
        let mut event = json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code});
        if let Some(text) = text {
            event["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", event).await;
        let up = json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code});
        self.call("Input.dispatchKeyEvent", up).await;
    }

    /// Types a text where the focus is.
    pub(crate) async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Presses Tab until what has the focus is described by an expression.
    pub(crate) async fn tab_to(&mut self, is: &str) {
        for _ in 0..100 {
            self.key("Tab").await;
            if self.eval(&format!("Boolean((({is}))(document.activeElement))")).await == true {
                return;
            }
        }
        panic!("Tab does not lead to {is}");
    }

    /// Keeps a picture in `XDP_LB_SCREENSHOTS`, where that is set.
    pub(crate) async fn picture(&mut self, name: &str) {
        let Some(place) = std::env::var_os("XDP_LB_SCREENSHOTS") else { return };
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let file = Path::new(&place).join(format!("{name}.png"));
        let coded = self.scratch.file("picture", shot["data"].as_str().unwrap());
        let png = std::process::Command::new("base64").arg("-d").arg(coded).output().unwrap();
        std::fs::write(file, png.stdout).unwrap();
    }
}

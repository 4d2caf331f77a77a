//! The page that browsers show: files of this binary, which hold nothing of the instance.
//!
//! What it shows comes over the API, with the rights of whoever looks at it.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};

use crate::{Precondition, etag};

/// Where the files beside the page itself are.
const FILES: &str = "/page/";

/// Scripts and styles of this origin alone, nothing in line; no text ever becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// A file of the page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asset {
    /// Path that it is served at
    pub path: &'static str,
    /// Media type
    pub kind: &'static str,
    /// What is in it
    pub text: &'static str,
}

macro_rules! assets {
    ($($path:literal, $file:literal, $kind:expr;)*) => {
        /// All files of the page, the page itself first.
        pub const ASSETS: &[Asset] =
            &[$(Asset { path: $path, kind: $kind, text: include_str!($file) },)*];
    };
}

assets! {
    "/", "index.html", HTML;
    "/page/page.css", "page.css", STYLE;
    "/page/icon.svg", "icon.svg", "image/svg+xml";
    "/page/main.js", "main.js", SCRIPT;
    "/page/backends.js", "backends.js", SCRIPT;
    "/page/counters.js", "counters.js", SCRIPT;
    "/page/dom.js", "dom.js", SCRIPT;
    "/page/drain.js", "drain.js", SCRIPT;
    "/page/events.js", "events.js", SCRIPT;
    "/page/format.js", "format.js", SCRIPT;
    "/page/instance.js", "instance.js", SCRIPT;
    "/page/link.js", "link.js", SCRIPT;
    "/page/model.js", "model.js", SCRIPT;
    "/page/reasons.js", "reasons.js", SCRIPT;
    "/page/service.js", "service.js", SCRIPT;
    "/page/services.js", "services.js", SCRIPT;
    "/page/table.js", "table.js", SCRIPT;
    "/page/trace.js", "trace.js", SCRIPT;
}

/// Whether a path is for everybody who may connect.
pub(crate) fn is_open(path: &str) -> bool {
    path == "/" || path.starts_with(FILES)
}

/// Adds the page's routes.
pub(crate) fn add<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    ASSETS.iter().fold(router, |router, asset| {
        let tag = etag(&asset.text);
        router.route(asset.path, get(serve).with_state::<S>((*asset, tag.into())))
    })
}

/// Answers with a file, unless the browser has it already.
async fn serve(
    State((asset, tag)): State<(Asset, std::sync::Arc<str>)>,
    headers: HeaderMap,
) -> Response {
    // What is no list of tags knows none.
    let known = Precondition::read(&headers).is_ok_and(|one| one.is_known(&tag));
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, asset.kind)], asset.text).into_response()
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    for (name, value) in [
        // Asked for each time: another version of the binary has other files.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (
            header::HeaderName::from_static("permissions-policy"),
            "camera=(), geolocation=(), microphone=()",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

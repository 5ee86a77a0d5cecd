//! Builds answers as JSON or text, and reads request bodies up to a limit.

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use isthmus_model::admin::Failure;
use serde::Serialize;

/// How much of a body that is too large is still read, so that its sender receives the answer.
const DISCARDED: usize = 1 << 20;

/// A response.
pub type Page = Response<Full<Bytes>>;

/// A response of indented JSON.
#[must_use]
pub fn json_page(status: StatusCode, page: &impl Serialize) -> Page {
    match serde_json::to_string_pretty(page) {
        Ok(json) => respond(status, "application/json", json + "\n"),
        Err(cause) => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot render this page: {cause}; this is a bug, please report it\n"),
        ),
    }
}

/// An error response: `{"error": "…"}`.
#[must_use]
pub fn error(status: StatusCode, why: &str) -> Page {
    json_page(status, &Failure { error: why.to_owned() })
}

/// A response of plain text.
#[must_use]
pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Page {
    respond(status, "text/plain", text)
}

/// A response of metrics in the Prometheus text format.
#[must_use]
pub fn metrics(text: Bytes) -> Page {
    respond(StatusCode::OK, "text/plain; version=0.0.4", text)
}

/// The response to a method that the path does not allow.
#[must_use]
pub fn not_allowed(methods: &'static str) -> Page {
    let mut page = error(StatusCode::METHOD_NOT_ALLOWED, &format!("this path takes {methods}"));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    page
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(body.into()));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The sender left or broke the protocol.
    #[error("the body is incomplete; send it again")]
    CutOff,
    /// The body exceeds its limit.
    #[error("the body is larger than {} KiB; send less", .0 >> 10)]
    TooLarge(usize),
}

impl BodyError {
    /// The HTTP status for the error.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            BodyError::CutOff => StatusCode::BAD_REQUEST,
            BodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// Reads a body of at most `most` bytes.
///
/// # Errors
/// The body is larger, or incomplete.
pub async fn read(mut body: Incoming, most: usize) -> Result<Vec<u8>, BodyError> {
    let (mut kept, mut seen) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::CutOff)?.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if seen <= most {
            kept.extend_from_slice(&data);
        } else if seen > DISCARDED {
            break;
        }
    }
    if seen <= most { Ok(kept) } else { Err(BodyError::TooLarge(most)) }
}

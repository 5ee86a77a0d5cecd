//! Routes a path of the admin port to its page.

use std::collections::HashMap;

use hyper::StatusCode;
use isthmus_http::page::{Page, error, json_page};
use isthmus_model::admin::Index;
use isthmus_model::admin::gateway::{GET, POST, schema};
use serde::Serialize;

use super::effective::effective;
use super::explain::explain;
use super::status::{matrix, status};
use super::tables::{connections, routes, services};
use crate::control::Control;

/// The parameters of a request.
#[derive(Debug, Default)]
pub(crate) struct Params(HashMap<String, String>);

impl Params {
    /// Parses `a=b&c=d`, percent-decoded.
    ///
    /// # Errors
    /// The encoding is invalid.
    pub(super) fn parse(query: &str) -> Result<Params, String> {
        let mut params = HashMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            params.insert(decode(key)?, decode(value)?);
        }
        Ok(Params(params))
    }

    /// Returns the value of a parameter.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: &str, unless: usize) -> Result<usize, String> {
        self.get(key).map_or(Ok(unless), |value| {
            value.parse().map_err(|_| format!("{key} must be a number, not '{}'", value.escape_default()))
        })
    }
}

fn decode(text: &str) -> Result<String, String> {
    let bytes = text.replace('+', " ");
    percent_encoding::percent_decode_str(&bytes)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| "a parameter is not UTF-8".to_owned())
}

/// Returns the page at a path.
pub(crate) fn page(path: &str, params: &Params, control: &Control) -> Page {
    match path {
        "/status" => json_page(StatusCode::OK, &status(control)),
        "/config" => json_page(StatusCode::OK, &effective(control.written(), &control.configured())),
        "/routes" => answer(routes(params, control)),
        "/services" => answer(services(params, control)),
        "/connections" => answer(connections(params, control)),
        "/explain" => answer(explain(params, control)),
        "/matrix" => json_page(StatusCode::OK, &matrix(control)),
        "/schema" => json_page(StatusCode::OK, &schema()),
        _ => json_page(StatusCode::NOT_FOUND, &index()),
    }
}

fn answer(page: Result<impl Serialize, String>) -> Page {
    match page {
        Ok(page) => json_page(StatusCode::OK, &page),
        Err(what) => error(StatusCode::BAD_REQUEST, &what),
    }
}

/// Returns the existing paths, as the answer for an unknown one.
pub(super) fn index() -> Index {
    Index::new(&GET, &POST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_paths_are_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/admin.md");
        let documented = std::fs::read_to_string(path).unwrap();
        let get = GET.map(|path| format!("GET {path}"));
        for row in get.into_iter().chain(POST.map(|path| format!("POST {path}"))) {
            assert!(documented.contains(&format!("\n| `{row}` |")), "docs/admin.md has no row for {row}");
        }
    }

    #[test]
    fn params_are_decoded() {
        let params = Params::parse("limit=2&name=A%2e&empty=").unwrap();
        assert_eq!((params.get("name"), params.get("empty")), (Some("A."), None));
        assert_eq!((params.number("limit", 1), params.number("offset", 1)), (Ok(2), Ok(1)));
        assert!(params.number("name", 1).is_err() && Params::parse("a=%ff").is_err());
    }
}

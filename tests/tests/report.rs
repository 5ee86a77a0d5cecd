//! `isthmus-bench report` as a process: a real browser renders the published figures, even on a narrow phone.
//! The page's content is tested beside the code that writes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use isthmus_tests::{binary, skip};
use serde_json::Value;

const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/figures/report.json");
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// A page that frames the report at the width of a small phone, which a window cannot have, and records its
/// layout.
const PHONE: &str = r#"<!doctype html>
<iframe src="report.html" style="width: 320px; height: 640px; border: 0"></iframe><pre></pre>
<script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument;
  const cut = text => {
    const box = text.getBBox(), chart = text.ownerSVGElement.viewBox.baseVal;
    return box.x < -1 || box.x + box.width > chart.width + 1;
  };
  const all = selector => [...page.querySelectorAll(selector)];
  document.querySelector("pre").textContent = JSON.stringify({
    width: page.documentElement.scrollWidth,
    titles: all("h3").length,
    charts: all("svg").filter(chart => chart.getBoundingClientRect().height > 50).length,
    cut: all("svg text").filter(cut).map(text => text.textContent),
    links: all("a").length,
    lost: all("a").filter(link => !page.getElementById(link.hash.slice(1))).length,
  });
};
</script>"#;

#[test]
fn report_page_fits_a_narrow_phone() {
    let folder = tempfile::tempdir().unwrap();
    let made =
        Command::new(binary::bench()).args(["report", FIGURES, "--out"]).arg(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(folder.path().join("phone.html"), PHONE).unwrap();
    let Some(shown) = BROWSERS.iter().find_map(|browser| show(browser, folder.path())) else {
        skip!("none of {BROWSERS:?} is installed");
    };
    let seen = shown.split("<pre>").nth(1).and_then(|rest| rest.split("</pre>").next()).unwrap_or_default();
    let seen: Value = serde_json::from_str(seen).unwrap_or_else(|error| panic!("{error}: {shown}"));
    let report: Value = serde_json::from_slice(&fs::read(FIGURES).unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap().len();
    assert_eq!(seen["titles"], cases);
    assert!(seen["charts"].as_u64() >= u64::try_from(cases).ok(), "a case without a chart: {seen}");
    assert_eq!(seen["cut"], Value::Array(Vec::new()), "text sticks out of a chart");
    assert_eq!(seen["width"], 320, "the page is wider than the phone");
    assert!(seen["links"].as_u64() >= u64::try_from(cases).ok(), "the summary lacks links to cases: {seen}");
    assert_eq!(seen["lost"], 0, "dead links");
}

/// Loads the framing page; returns its final content, or `None` if the browser is not installed.
fn show(browser: &str, folder: &Path) -> Option<String> {
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]);
    // Both pages are files, which browsers isolate from each other by default.
    command.args(["--allow-file-access-from-files", "--timeout=30000", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", folder.join("browser").display()));
    command.arg(format!("file://{}", folder.join("phone.html").display()));
    match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        output => Some(String::from_utf8(output.unwrap().stdout).unwrap()),
    }
}

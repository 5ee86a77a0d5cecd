//! Settings as pages and the schema show them.

use super::*;

#[test]
fn settings_serialize_in_file_syntax() {
    let shown = serde_json::to_value(good(&with_listener("timeouts: {hello: 1500ms}\n"))).unwrap();
    assert_eq!(shown["timeouts"]["hello"], "1500ms");
    assert_eq!(shown["limits"]["per_source"], "off");
    assert_eq!(shown["tcp"]["keepalive_idle"], "3m");
    assert_eq!(shown["tcp"]["send_buffer"], "auto");
    assert_eq!(shown["binds"][0]["address"], "127.0.0.1:0");
}

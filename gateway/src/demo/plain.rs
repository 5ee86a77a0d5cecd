//! Calls a service from applications that speak plain HTTP: west's gateway begins mTLS for the one that it knows, with an
//! identity by its address, and refuses another one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use isthmus_certs::{SpiffeId, TrustFiles};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::screen::Screen;
use super::service::{Greeting, Service};
use super::world::World;
use super::{Broken, until};

/// The application that west's gateway knows, and another one.
const APPS: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
/// Bytes of an answer, at most.
const MOST: u64 = 64 * 1024;

/// Returns a listener for applications without TLS that call a service.
pub(super) fn listener(service: &Service, id: &SpiffeId, files: &TrustFiles) -> String {
    let (host, port, [known, _]) = (service.host(), service.port(), APPS);
    let [certificate, key] = [&files.certificate, &files.key].map(|path| json!(path));
    format!(
        "- name: apps    # for applications without TLS\n  address: 127.0.0.1:0\n  side: outbound\n  mode: originate\n  \
         service: {host}\n  port: {port}\n  callers:\n  - {{ sources: [{known}/32], identity: '{id}', certificate: {certificate}, key: {key} }}\n"
    )
}

/// Calls productpage by plain HTTP from both applications.
pub(super) async fn call_without_tls(screen: &mut Screen, world: &World) -> Result<(), Broken> {
    screen.step("Applications without TLS: west's gateway begins mTLS for the one that it knows");
    let at = world.west.gateway.address_of("listener apps")?;
    let [known, other] = APPS;
    let said = until(async || get(known, at).await.ok()).await;
    let seen = said.as_ref().map_or("nobody", |said| &said.client);
    screen.say(format_args!("   GET http://{at}/ from {known}, without TLS: productpage saw {seen}"));
    screen.promise(
        "an application that speaks plain HTTP reaches productpage over mTLS, with an identity of its own",
        said.is_some_and(|said| {
            said.client == world.client_id.to_string() && said.server == world.productpage.id.to_string()
        }),
    );
    let before = world.productpage.accepted();
    let refused = get(other, at).await.is_err();
    screen.promise(
        format_args!(
            "the same from {other}, which the gateway does not know, is reset, and productpage sees nothing"
        ),
        refused && world.productpage.accepted() == before,
    );
    Ok(())
}

/// Gets `/` by plain HTTP from an address.
async fn get(from: Ipv4Addr, at: SocketAddr) -> io::Result<Greeting> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
    let mut stream = socket.connect(at).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: productpage.bookinfo:9080\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer).await?;
    Greeting::parse(&answer).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

//! Reports to an agent from clients that should not report, or report too much: each is refused with the reason, and the
//! gateways' own reports go on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{Client as Tls, Peer, Trust};
use isthmus_grpc::dial::dial;
use isthmus_model::address::Target;
use isthmus_proto::isthmus::v1::{GatewayReport, ReportedHealth, UnhealthyEndpoint};
use isthmus_report::stubs::reports_client::ReportsClient;
use isthmus_tests::cluster::Cluster;
use isthmus_tests::wait::until;
use isthmus_tests::workload::files;
use tokio::runtime::Runtime;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Code;
use tonic::transport::Channel;

/// Longer than any answer of the agent.
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    cluster: Cluster,
    runtime: Runtime,
}

impl World {
    fn new() -> World {
        let mut cluster = Cluster::new("east");
        cluster.set("gateways", "[{ name: gw-1 }, { name: gw-2 }]");
        cluster.start();
        World { cluster, runtime: Runtime::new().unwrap() }
    }

    async fn channel(&self, leaf: &str) -> Channel {
        let trust = Trust::load(&files(&self.cluster, leaf)).unwrap();
        let tls = Arc::new(Tls::new(trust, Peer::Trusted, &[b"h2"]).unwrap());
        dial(&Target::Address(self.cluster.agent_address()), &tls).await.unwrap()
    }

    /// How the agent ends a stream of these reports by a client.
    fn end_of(&self, leaf: &str, reports: impl Stream<Item = GatewayReport> + Send + 'static) -> Code {
        self.runtime.block_on(async {
            let mut client = ReportsClient::new(self.channel(leaf).await);
            let ended =
                tokio::time::timeout(PATIENCE, client.report(reports)).await.expect("the agent answers");
            ended.map_or_else(|status| status.code(), |_| Code::Ok)
        })
    }

    fn reporting(&self) -> usize {
        self.cluster.ask("/matrix")["gateways"].as_object().unwrap().len()
    }
}

fn report(host: &str, count: usize) -> GatewayReport {
    let one = UnhealthyEndpoint {
        host: host.to_owned(),
        port: 443,
        address: "10.0.0.1:443".to_owned(),
        ..UnhealthyEndpoint::default()
    };
    let health = ReportedHealth { unhealthy: vec![one; count], left_out: 0 };
    GatewayReport { health: Some(health), matrix: None }
}

fn once_then_silence(report: GatewayReport) -> impl Stream<Item = GatewayReport> + Send + 'static {
    tokio_stream::once(report).chain(tokio_stream::pending())
}

#[test]
fn reports_are_taken_from_listed_gateways_alone_and_are_bounded() {
    let world = World::new();
    let gateway = world.cluster.gateway("gw-1");
    until("the gateway reports", || world.reporting() == 1);

    // It never says anything.
    let hanging = world.runtime.block_on(world.channel("gw-2"));
    world.runtime.spawn(async move { ReportsClient::new(hanging).report(tokio_stream::pending()).await });

    for leaf in ["client", "agent"] {
        let code = world.end_of(leaf, once_then_silence(report("a.example", 1)));
        assert_eq!(code, Code::PermissionDenied, "{leaf}");
    }
    assert_eq!(world.end_of("gw-2", tokio_stream::empty()), Code::Ok);
    assert_eq!(world.end_of("gw-2", once_then_silence(report("no host", 1))), Code::InvalidArgument);
    assert_eq!(world.end_of("gw-2", once_then_silence(report("a.example", 2_000))), Code::InvalidArgument);
    // More than a mebibyte, encoded or decoded.
    let long = format!("{}.example", ["a"; 100].join("."));
    assert_eq!(world.end_of("gw-2", once_then_silence(report(&long, 10_000))), Code::ResourceExhausted);
    assert_eq!(world.end_of("gw-2", once_then_silence(report("", 50_000))), Code::ResourceExhausted);
    let flood =
        tokio_stream::iter((0..1_000).map(|_| GatewayReport::default())).chain(tokio_stream::pending());
    assert_eq!(world.end_of("gw-2", flood), Code::ResourceExhausted);

    let fresh = |name: &str| {
        let page = world.cluster.ask("/matrix");
        let id = format!("spiffe://east.example/isthmus/east/gateway/{name}");
        page["gateways"][id]["fresh"].as_bool().unwrap_or_default()
    };
    assert!(fresh("gw-1"), "the other gateway's reports go on");
    drop(gateway);
}

#[test]
fn report_stream_gives_way_to_a_later_one_of_the_same_gateway() {
    let world = World::new();
    let (sender, reports) = tokio::sync::mpsc::channel(1);
    let mut client = world.runtime.block_on(async {
        sender.send(report("a.example", 1)).await.unwrap();
        ReportsClient::new(world.channel("gw-2").await)
    });
    let reports = tokio_stream::wrappers::ReceiverStream::new(reports);
    let earlier = world.runtime.spawn(async move { client.report(reports).await });
    until("the first report is taken", || world.reporting() == 1);
    assert_eq!(world.end_of("gw-2", tokio_stream::iter([report("b.example", 2)])), Code::Ok);
    let ended = world.runtime.block_on(async {
        sender.send(report("c.example", 3)).await.unwrap();
        earlier.await.unwrap()
    });
    assert_eq!(ended.unwrap_err().code(), Code::Aborted);
    let page = world.cluster.ask("/matrix");
    let only = page["gateways"].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!((&only["unhealthy_count"], &only["connected"]), (&2.into(), &false.into()), "{only}");
}

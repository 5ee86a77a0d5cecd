//! The agent's file: text → settings that cannot be wrong, or everything that is wrong with it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use isthmus_certs::TrustFiles;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::address::ListenAddress;
use crate::config::at::{At, Spot};
use crate::config::problem::{Place, Quoted, Report};
use crate::config::{Problems, file, yaml};
use crate::slice::Cluster;

const ADDRESS: &str = "0.0.0.0:15012";

/// What an agent runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster it speaks for.
    pub cluster: Cluster,
    /// Where the cluster's endpoints stand.
    pub network: String,
    /// Its identity, and whom it believes.
    pub trust: TrustFiles,
    /// The directory of the registry's files.
    pub registry: PathBuf,
    /// The names of the cluster's gateways; nobody else is served.
    pub gateways: Vec<String>,
    /// Where it serves.
    pub address: SocketAddr,
}

/// The file exactly as it is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Isthmus agent")]
struct File {
    /// The cluster it speaks for: 1 to 63 letters, digits, `-`, `_` or `.`.
    #[schemars(required)]
    cluster: Option<At<String>>,
    /// The network that the cluster's endpoints stand in. Default: empty.
    network: Option<At<String>>,
    /// Its identity, an agent's of this cluster, and whom it believes.
    #[schemars(required)]
    trust: Option<At<Trust>>,
    /// Where services are registered.
    #[schemars(required)]
    registry: Option<At<Registry>>,
    /// The cluster's gateways: those that this agent serves. Default: none.
    gateways: Option<Vec<At<Gateway>>>,
    /// Where gateways come.
    xds: Option<Xds>,
}

/// Files, followed while the agent runs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Trust {
    /// The chain, leaf first, PEM.
    #[schemars(required)]
    certificate: Option<At<String>>,
    /// Its key, PEM.
    #[schemars(required)]
    key: Option<At<String>>,
    /// A directory with a bundle for each trust domain: `DOMAIN.json` (SPIFFE) or `DOMAIN.pem` (roots).
    #[schemars(required)]
    bundles: Option<At<String>>,
    /// A directory with deny-lists: `DOMAIN.json`. Default: none.
    deny: Option<At<String>>,
}

/// Where services are registered.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Registry {
    /// A directory of YAML files, each with `services:` as a gateway's file has them.
    #[schemars(required)]
    files: Option<At<String>>,
}

/// One gateway of the cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Gateway {
    /// The last part of its identity, `spiffe://TRUST-DOMAIN/isthmus/CLUSTER/gateway/NAME`.
    #[schemars(required)]
    name: Option<At<String>>,
}

/// Where gateways come.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Xds {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = ADDRESS))]
    address: Option<At<ListenAddress>>,
}

/// Reads a file and checks it whole.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Settings, Problems> {
    parse(&file::read(path, "an agent's file is short; is it the right one?")?, path)
}

/// Checks a text as if it stood in `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, path: &Path) -> Result<Settings, Problems> {
    let mut report = Report::new(path);
    let settings = yaml::read(text, &mut report).and_then(|file| resolve(&mut report, file));
    report.finish(settings)
}

/// The JSON Schema of the file, for editors.
#[must_use]
pub fn schema() -> String {
    format!("{:#}", schemars::schema_for!(File).as_value())
}

fn resolve(report: &mut Report, file: File) -> Option<Settings> {
    let cluster = needed(report, Place::Root, Spot::START, "cluster", file.cluster.as_ref());
    let cluster = cluster.and_then(|cluster| match cluster.value.parse::<Cluster>() {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            report.add(
                cluster.spot,
                format_args!("cluster: {} cannot be used", Quoted(&cluster.value)),
                error,
            );
            None
        }
    });
    let trust = needed(report, Place::Root, Spot::START, "trust", file.trust.as_ref());
    let trust = trust.and_then(|trust| trust_files(report, trust));
    let registry = needed(report, Place::Root, Spot::START, "registry", file.registry.as_ref());
    let registry = registry.and_then(|registry| {
        let place = Place::Root.key("registry");
        needed(report, place, registry.spot, "files", registry.value.files.as_ref())
    });
    let mut gateways = Vec::new();
    for (index, gateway) in file.gateways.iter().flatten().enumerate() {
        let place = Place::Root.key("gateways");
        let name = needed(report, place.item(index), gateway.spot, "name", gateway.value.name.as_ref());
        gateways.extend(name.map(|name| name.value.clone()));
    }
    let address = file.xds.and_then(|xds| xds.address);
    let place = Place::Root.key("xds");
    let address = match &address {
        Some(written) => report.value(Some(written), place.key("address")),
        None => ADDRESS.parse().ok(),
    };
    Some(Settings {
        cluster: cluster?,
        network: file.network.map(|network| network.value).unwrap_or_default(),
        trust: trust?,
        registry: registry?.value.clone().into(),
        gateways,
        address: address?,
    })
}

fn trust_files(report: &mut Report, trust: &At<Trust>) -> Option<TrustFiles> {
    let place = Place::Root.key("trust");
    let mut path = |key, written: Option<&At<String>>| {
        needed(report, place, trust.spot, key, written).map(|path| PathBuf::from(&path.value))
    };
    let certificate = path("certificate", trust.value.certificate.as_ref());
    let key = path("key", trust.value.key.as_ref());
    let bundles = path("bundles", trust.value.bundles.as_ref());
    Some(TrustFiles {
        certificate: certificate?,
        key: key?,
        bundles: bundles?,
        deny: trust.value.deny.as_ref().map(|deny| PathBuf::from(&deny.value)),
        ..TrustFiles::default()
    })
}

/// The value of a key that must be there; `whole` is where the mapping stands that lacks it.
fn needed<'a, T>(
    report: &mut Report,
    place: Place<'_>,
    whole: Spot,
    key: &'static str,
    written: Option<&'a At<T>>,
) -> Option<&'a At<T>> {
    if written.is_none() {
        report.add(whole, format_args!("{place} has no {key}"), format_args!("add '{key}: …'"));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
cluster: east
network: east-net
trust: { certificate: tls.crt, key: tls.key, bundles: bundles, deny: deny }
registry: { files: ./registry }
gateways: [{ name: gw-1 }]
xds: { address: '127.0.0.1:0' }
";

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(text, Path::new("agent.yaml")).unwrap_err();
        problems.list().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_file_is_read() {
        let settings = parse(GOOD, Path::new("agent.yaml")).unwrap();
        assert_eq!((settings.cluster.as_str(), settings.network.as_str()), ("east", "east-net"));
        assert_eq!((settings.gateways, settings.address.port()), (vec!["gw-1".to_owned()], 0));
        let short = GOOD.replace("xds: { address: '127.0.0.1:0' }\n", "");
        assert_eq!(parse(&short, Path::new("x")).unwrap().address.to_string(), ADDRESS);
    }

    #[test]
    fn everything_that_is_wrong_is_named_with_its_place() {
        let none = problems("network: a");
        assert_eq!(none.len(), 3, "{none:#?}");
        assert!(none[0].contains("agent.yaml:1:1:") && none[0].contains("has no cluster"), "{none:#?}");
        let wrong = problems(&GOOD.replace("cluster: east", "cluster: a/b").replace("key: tls.key, ", ""));
        assert!(wrong.iter().any(|why| why.starts_with("agent.yaml:1:10: cluster: 'a/b'")), "{wrong:#?}");
        assert!(
            wrong.iter().any(|why| why.starts_with("agent.yaml:3:") && why.contains("trust has no key")),
            "{wrong:#?}"
        );
        assert!(problems(&(GOOD.to_owned() + "peers: []\n"))[0].contains("unknown key 'peers'"));
        assert!(problems(&GOOD.replace("127.0.0.1:0", "here"))[0].contains("xds.address"));
    }
}

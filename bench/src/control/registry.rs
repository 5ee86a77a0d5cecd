//! Writes the registry of a cluster: 100 services per file, all exported and none with a health check.
//! Changes are made by rename, as a careful editor does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::hello::service_name;

/// Services per file.
const IN_A_FILE: u32 = 100;
const PORT: u16 = 8443;
const COMMENT: &str = "# ";

/// A registry of services numbered from 0.
#[derive(Debug)]
pub(super) struct Registry {
    folder: PathBuf,
    services: u32,
    endpoints: u32,
    /// Services with a live endpoint.
    real: BTreeMap<u32, SocketAddr>,
}

impl Registry {
    /// Writes all files.
    pub(super) fn fill(
        folder: &Path,
        (services, endpoints): (u32, u32),
        real: BTreeMap<u32, SocketAddr>,
    ) -> io::Result<Self> {
        let registry = Self { folder: folder.to_owned(), services, endpoints, real };
        fs::create_dir_all(folder)?;
        for file in 0..services.div_ceil(IN_A_FILE) {
            registry.write(&format!("services-{file:05}.yaml"), &registry.text_of(file))?;
        }
        Ok(registry)
    }

    /// Replaces the endpoint of a service; returns when the file was renamed.
    pub(super) fn lead(&mut self, service: u32, endpoint: SocketAddr) -> io::Result<Instant> {
        self.real.insert(service, endpoint);
        let file = service / IN_A_FILE;
        self.write(&format!("services-{file:05}.yaml"), &self.text_of(file))
    }

    /// Adds one service in its own file; returns its number and when the file was renamed.
    pub(super) fn add(&mut self, endpoint: Option<SocketAddr>) -> io::Result<(u32, Instant)> {
        let number = self.services;
        self.services += 1;
        self.real.extend(endpoint.map(|endpoint| (number, endpoint)));
        let text = format!("services:\n{}", self.service(number));
        Ok((number, self.write(&format!("one-{number:06}.yaml"), &text)?))
    }

    /// Writes one file with as many further services, each with a comment that makes it `bytes` long in all.
    pub(super) fn add_large_file(&mut self, services: u32, bytes: usize) -> io::Result<u32> {
        let first = self.services;
        self.services += services;
        let each = bytes / usize::try_from(services.max(1)).unwrap_or(usize::MAX);
        let text = (first..self.services).map(|number| self.service(number)).fold(
            "services:\n".to_owned(),
            |text, service| {
                let padding = "x".repeat(each.saturating_sub(service.len() + COMMENT.len() + 1));
                text + COMMENT + &padding + "\n" + &service
            },
        );
        self.write("large.yaml", &text)?;
        Ok(self.services)
    }

    fn text_of(&self, file: u32) -> String {
        let first = file * IN_A_FILE;
        let services = first..self.services.min(first + IN_A_FILE);
        services.map(|number| self.service(number)).fold("services:\n".to_owned(), |text, one| text + &one)
    }

    fn service(&self, number: u32) -> String {
        let host = service_name(number);
        let mut text = format!("- {{ host: {host}, port: 443, allow_unauthenticated: true, endpoints: [");
        let written = match self.real.get(&number) {
            Some(address) => write!(text, "{{ address: '{address}' }}"),
            None => (0..self.endpoints).try_for_each(|endpoint| {
                let address = Ipv4Addr::from_bits(0x0a00_0000 | (number * self.endpoints + endpoint));
                write!(text, "{{ address: '{address}:{PORT}' }}, ")
            }),
        };
        // Writing into a String cannot fail.
        let _ = written;
        text + "] }\n"
    }

    fn write(&self, name: &str, text: &str) -> io::Result<Instant> {
        let beside = self.folder.join(".new");
        fs::write(&beside, text)?;
        let now = Instant::now();
        fs::rename(beside, self.folder.join(name))?;
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_writes_services_to_files_and_added_service_to_its_own_file() {
        let folder = tempfile::tempdir().unwrap();
        let mark = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
        let mut registry = Registry::fill(folder.path(), (150, 2), BTreeMap::from([(3, mark)])).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let second = read("services-00001.yaml");
        assert_eq!(second.matches("host:").count(), 50);
        assert!(second.contains("service-000149.") && second.contains("10.0.0.200:8443"), "{second}");
        assert_eq!(read("services-00000.yaml").matches("127.0.0.1:7").count(), 1);
        registry.lead(149, mark).unwrap();
        assert_eq!(read("services-00001.yaml").matches("127.0.0.1:7").count(), 1);
        let (number, _) = registry.add(None).unwrap();
        assert_eq!(number, 150);
        assert!(read("one-000150.yaml").contains("service-000150."));
        assert_eq!(registry.add_large_file(100, 100_000).unwrap(), 251);
        let large = read("large.yaml");
        assert!((99_000..101_000).contains(&large.len()) && large.matches("host:").count() == 100);
        assert!(!folder.path().join(".new").exists());
    }
}

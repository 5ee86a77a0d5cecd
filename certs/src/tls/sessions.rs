//! Session stores that end with the trust they rest on. A resumed handshake presents no certificate, so nothing checks
//! it again: each configuration has its own store, which ends when the trust changes and when the first certificate
//! verified in it expires.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

/// Sessions in a store by default; evicted peers make a full handshake.
pub(super) const CAPACITY: usize = 1024;

/// When the sessions of a store expire, in seconds since 1970.
#[derive(Debug)]
pub(super) struct Lifetime(AtomicU64);

impl Default for Lifetime {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Lifetime {
    pub(super) fn not_past(&self, end: u64) {
        self.0.fetch_min(end, Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        UnixTime::now().as_secs() >= self.0.load(Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct ServerSessions {
    store: Arc<ServerSessionMemoryCache>,
    lifetime: Arc<Lifetime>,
}

impl ServerSessions {
    pub(super) fn new(lifetime: Arc<Lifetime>, capacity: usize) -> Self {
        Self { store: ServerSessionMemoryCache::new(capacity), lifetime }
    }
}

impl StoresServerSessions for ServerSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.store.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        if self.lifetime.is_over() { None } else { self.store.get(key) }
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        if self.lifetime.is_over() { None } else { self.store.take(key) }
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[derive(Debug)]
pub(super) struct ClientSessions {
    store: ClientSessionMemoryCache,
    lifetime: Arc<Lifetime>,
}

impl ClientSessions {
    pub(super) fn new(lifetime: Arc<Lifetime>, capacity: usize) -> Self {
        Self { store: ClientSessionMemoryCache::new(capacity), lifetime }
    }
}

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.store.set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.store.kx_hint(server_name)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.store.set_tls12_session(server_name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        if self.lifetime.is_over() { None } else { self.store.tls12_session(server_name) }
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.store.remove_tls12_session(server_name);
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.store.insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.lifetime.is_over() { None } else { self.store.take_tls13_ticket(server_name) }
    }
}

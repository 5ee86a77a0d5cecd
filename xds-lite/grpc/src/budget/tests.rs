//! Tests of budgets: accounting, refusal, and return of what was taken.

use super::*;

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://east.example/{path}")).unwrap()
}

fn peer(name: &str) -> Principal {
    Principal::Peer(name.parse().unwrap())
}

#[test]
fn budget_is_refused_at_its_limit_and_given_back_on_drop() {
    let budgets = Arc::new(Budgets::default());
    let west = budgets.account(peer("west"));
    let mut shares: Vec<_> = (0..16).map(|_| west.reserve(Resource::Connections, 1).unwrap()).collect();
    let error = west.reserve(Resource::Connections, 1).unwrap_err().to_string();
    assert!(error.starts_with("peer west may have 16 connections at once, has 16"), "{error}");
    assert!(error.ends_with("raise `limits` in agent.yaml"), "{error}");
    let used = |resource: &str| budgets.report()["peers"]["west"][resource];
    assert_eq!(used("connections"), Usage { used: 16, limit: 16, exceeded: 1 });
    shares.pop();
    let _one = west.reserve(Resource::Connections, 1).unwrap();
    let mut names = west.reserve(Resource::Names, 20_000).unwrap();
    assert!(names.set(20_001).is_err() && names.amount() == 20_000, "as it was");
    names.set(10).unwrap();
    assert_eq!(used("names"), Usage { used: 10, limit: 20_000, exceeded: 1 });
    drop((names, shares, _one));
    assert_eq!((used("names").used, used("connections").used), (0, 0));
    assert_eq!(budgets.totals(Kind::Peer, Resource::Connections), (0, 1));
}

#[test]
fn peers_together_never_take_a_place_of_gateways() {
    let budgets = Arc::new(Budgets::new(Limits::default(), Places::of_descriptors(1_024)));
    let mut taken = Vec::new();
    for name in 0..1_000 {
        let account = budgets.account(peer(&format!("c{name}")));
        taken.extend((0..100).map_while(|_| account.reserve(Resource::Connections, 1).ok()));
    }
    assert_eq!(taken.len() as u64, budgets.places().get(Kind::Peer));
    let gateways = budgets.places().get(Kind::Gateway);
    assert!(gateways > taken.len() as u64);
    for number in 0..gateways {
        let gateway =
            budgets.account(Principal::Gateway(id(&format!("isthmus/east/gateway/{}", number % 64))));
        taken.push(gateway.reserve(Resource::Connections, 1).unwrap());
    }
}

#[test]
fn accounts_of_strangers_end_with_their_use() {
    let budgets = Arc::new(Budgets::default());
    for number in 0..10_000 {
        let stranger = budgets.account(Principal::Stranger(id(&format!("ns/a/sa/{number}"))));
        let held = stranger.reserve(Resource::Connections, 1).unwrap();
        assert!(stranger.reserve(Resource::RequestBytes, 1).is_err(), "not a byte");
        drop(held);
    }
    assert!(budgets.ledger().accounts.is_empty());
    assert_eq!(budgets.totals(Kind::Stranger, Resource::RequestBytes), (0, 10_000));
}

//! Answers of the tables and of other servers.

use super::*;

#[tokio::test]
async fn dns_server_answers_names_of_its_table_on_both_transports() {
    let dns = start(Configured::Off, quick());
    assert_eq!(last(&ask(dns.address, "page.shop.").await), 7);
    assert_eq!(last(&ask_over_tcp(dns.address, "Page.Shop.").await), 7);
    assert_eq!(code(&ask(dns.address, "nobody.mesh.").await), ResponseCode::NXDomain);
    assert_eq!(code(&ask(dns.address, "example.org.").await), ResponseCode::Refused, "nobody else is asked");
    let stats = dns.server.stats();
    assert_eq!((stats.get(Answer::Tables), stats.get(Answer::Refused)), (3, 1));
}

#[tokio::test]
async fn dns_answers_with_sixty_addresses_fit_own_and_forwarded_ones() {
    let (server, _) = upstream(|_, question| {
        let mut reply = answered(question, ResponseCode::NoError, 60);
        // Some servers send EDNS, and more than 512 bytes, to whom sent none.
        reply.edns = Some(Edns::new());
        Some(reply)
    })
    .await;
    let dns = start(Configured::At(vec![server]), quick());
    for name in ["many.shop.", "many.example.org."] {
        let (reply, size) = exchange(dns.address, "127.0.0.1", &question(name, None)).await;
        assert!(size <= 512 && reply.metadata.truncation && reply.edns.is_none(), "{name}: {size}");
        let (reply, size) = exchange(dns.address, "127.0.0.1", &question(name, Some(1_232))).await;
        assert!(size <= 1_232 && reply.edns.is_some(), "{name}: {size}");
        let reply = ask_over_tcp(dns.address, name).await;
        assert_eq!((reply.answers.len(), reply.edns), (60, None), "{name}");
    }
}

#[tokio::test]
async fn dns_answers_of_an_upstream_are_passed_on_and_its_silence_is_a_failure() {
    let (server, asked) = upstream(|_, question| match question.queries[0].name().to_ascii().as_str() {
        "page.shop.search.example." | "page.shop.other.example." => {
            Some(answered(question, ResponseCode::NXDomain, 0))
        }
        "silent.example." => None,
        _ => Some(answered(question, ResponseCode::NoError, 1)),
    })
    .await;
    let dns = start(Configured::At(vec![server]), quick());
    // As a resolver with `ndots:5` asks.
    for suffixed in ["page.shop.search.example.", "page.shop.other.example."] {
        assert_eq!(code(&ask(dns.address, suffixed).await), ResponseCode::NXDomain);
    }
    assert_eq!(last(&ask(dns.address, "page.shop.").await), 7);
    assert_eq!(asked.load(Relaxed), 2, "own names reach no other server");
    assert_eq!(last(&ask(dns.address, "www.example.").await), 0);
    assert_eq!(code(&ask(dns.address, "silent.example.").await), ResponseCode::ServFail);
    assert_eq!(code(&ask_over_tcp(dns.address, "silent.example.").await), ResponseCode::ServFail);
}

#[tokio::test]
async fn dns_upstream_that_failed_once_is_asked_again_at_once() {
    let (server, _) = upstream(|number, question| match number {
        0 => Some(answered(question, ResponseCode::ServFail, 0)),
        1 => None,
        _ => Some(answered(question, ResponseCode::NoError, 1)),
    })
    .await;
    let dns = start(Configured::At(vec![server]), quick());
    for expected in [ResponseCode::ServFail, ResponseCode::ServFail, ResponseCode::NoError] {
        assert_eq!(code(&ask(dns.address, "www.example.").await), expected);
    }
}

#[tokio::test]
async fn dns_name_that_did_not_exist_resolves_as_soon_as_its_service_appears() {
    let dns = start(Configured::Off, quick());
    let reply = ask(dns.address, "new.mesh.").await;
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    let RData::SOA(soa) = &reply.authorities[0].data else { panic!("{reply}") };
    assert_eq!((soa.minimum, reply.authorities[0].ttl), (0, 0), "nobody may remember it");
    let mut table = shop();
    let addresses = vec![Ipv4Addr::new(240, 15, 0, 9).into()];
    table.insert(host("new.mesh"), Arc::new(Records { addresses, ports: Vec::new(), ttl: 30 }));
    dns.table.send_replace(Arc::new(table));
    assert_eq!(last(&ask(dns.address, "new.mesh.").await), 9);
}

#[tokio::test]
async fn dns_question_goes_on_to_the_next_upstream() {
    let (good, asked) = upstream(|_, question| Some(answered(question, ResponseCode::NoError, 1))).await;
    let (silent, _) = upstream(|_, _| None).await;
    let (unable, _) = upstream(|_, question| Some(answered(question, ResponseCode::Refused, 0))).await;
    let closed = socket("127.0.0.1").await.local_addr().unwrap();
    for dead in [silent, unable, closed] {
        let dns = start(Configured::At(vec![dead, good]), quick());
        let before = asked.load(Relaxed);
        assert_eq!(code(&ask(dns.address, "www.example.").await), ResponseCode::NoError);
        assert_eq!(code(&ask_over_tcp(dns.address, "www.example.").await), ResponseCode::NoError);
        assert_eq!(asked.load(Relaxed), before + 2);
    }
}

#[tokio::test]
async fn dns_same_question_of_many_clients_is_asked_once() {
    let (server, asked) = upstream(|_, question| {
        std::thread::sleep(Duration::from_millis(100));
        Some(answered(question, ResponseCode::NoError, 1))
    })
    .await;
    let dns = start(Configured::At(vec![server]), quick());
    let questions: Vec<_> = (0..20).map(|_| tokio::spawn(ask(dns.address, "www.example."))).collect();
    for question in questions {
        assert_eq!(last(&question.await.unwrap()), 0);
    }
    assert!(asked.load(Relaxed) < 20, "{asked:?}");
}

//! Circles, floods, stalls and noise.

use super::*;

const MALFORMED: usize = 100_000;

#[tokio::test]
async fn dns_upstream_that_is_the_server_itself_fails_promptly() {
    // By its address it is known; behind a rule that redirects port 53, by its question that comes back.
    for knows_itself in [true, false] {
        let sockets = Sockets::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = sockets.local_addr().unwrap();
        let own = if knows_itself { address } else { "127.0.0.1:1".parse().unwrap() };
        let upstreams = Configured::At(vec![address]);
        let dns = start_on(sockets, own, "127.0.0.0/8", upstreams, Limits::default());
        assert_eq!(code(&ask(dns.address, "www.example.").await), ResponseCode::ServFail);
        assert_eq!(code(&ask_over_tcp(dns.address, "www.example.").await), ResponseCode::ServFail);
        assert_eq!(last(&ask(dns.address, "page.shop.").await), 7, "own names are answered");
        assert_eq!(dns.server.stats().get(Answer::Looped), if knows_itself { 0 } else { 2 });
        assert_eq!(dns.server.forwarded(), 0);
    }
}

#[tokio::test]
async fn dns_question_that_goes_in_a_circle_through_another_resolver_is_asked_once() {
    let resolver = socket("127.0.0.1").await;
    let dns = start(Configured::At(vec![resolver.local_addr().unwrap()]), quick());
    let (address, seen) = (dns.address, Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4_096];
        loop {
            let (length, _) = resolver.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Relaxed);
            let back = socket("127.0.0.1").await;
            back.send_to(&buffer[..length], address).await.unwrap();
        }
    });
    assert_eq!(code(&ask(dns.address, "www.example.").await), ResponseCode::ServFail);
    assert_eq!(seen.load(Relaxed), 1);
    until("all questions have ended", || dns.server.forwarded() == 0).await;
}

#[tokio::test]
async fn dns_flood_of_one_client_leaves_others_their_answers() {
    let (server, _) = upstream(|_, question| {
        let is_good = question.queries[0].name().to_ascii() == "good.example.";
        is_good.then(|| answered(question, ResponseCode::NoError, 1))
    })
    .await;
    let limits = Limits { forwarded: 12, forwarded_per_client: 8, ..quick() };
    let dns = start(Configured::At(vec![server]), limits);
    let flood = socket("127.0.0.2").await;
    flood.connect(dns.address).await.unwrap();
    for number in 0..200 {
        let packet = question(&format!("n{number}.example."), None).to_vec().unwrap();
        flood.send(&packet).await.unwrap();
        tokio::task::yield_now().await;
    }
    until("the flood is limited", || dns.server.stats().get(Answer::Limited) > 0).await;
    assert!(dns.server.forwarded() <= 8);
    let good = question("good.example.", None);
    assert_eq!(code(&exchange(dns.address, "127.0.0.3", &good).await.0), ResponseCode::NoError);
    assert_eq!(last(&exchange(dns.address, "127.0.0.2", &question("page.shop.", None)).await.0), 7);
    for _ in 0..200 {
        assert_eq!(code(&receive(&flood).await.0), ResponseCode::ServFail, "each is told");
    }
    until("all questions have ended", || dns.server.forwarded() == 0).await;
}

#[tokio::test]
async fn dns_connections_that_stall_are_closed_and_leave_others_their_places() {
    let limits = Limits {
        connections: 3,
        connections_per_client: 2,
        idle: Duration::from_millis(500),
        ..Limits::default()
    };
    let dns = start(Configured::Off, limits);
    let mut stalled = Vec::new();
    for start in [&[][..], &[0, 40, 1, 2, 3]] {
        let mut stream = TcpStream::connect(dns.address).await.unwrap();
        stream.write_all(start).await.unwrap();
        stalled.push(stream);
    }
    until("both are accepted", || dns.server.connections() == 2).await;
    let mut third = TcpStream::connect(dns.address).await.unwrap();
    assert!(message(&mut third).await.is_err(), "closed at once");
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(dns.address).await.unwrap();
    tcp::write(&mut other, &question("page.shop.", None).to_vec().unwrap()).await.unwrap();
    assert_eq!(last(&message(&mut other).await.unwrap()), 7);
    for mut stream in stalled {
        assert!(message(&mut stream).await.is_err());
    }
    until("their places are free", || dns.server.connections() == 0).await;
    assert_eq!(last(&ask_over_tcp(dns.address, "page.shop.").await), 7);
    let mut large = TcpStream::connect(dns.address).await.unwrap();
    tcp::write(&mut large, &vec![0; LARGEST + 1]).await.unwrap();
    assert!(message(&mut large).await.is_err(), "no question is so large");
}

#[tokio::test]
async fn dns_upstream_that_hangs_delays_no_name_of_the_tables() {
    let (silent, _) = upstream(|_, _| None).await;
    let limits = Limits { total: PATIENCE * 2, attempt: PATIENCE * 2, ..Limits::default() };
    let dns = start(Configured::At(vec![silent]), limits);
    let address = dns.address;
    let hanging: Vec<_> = (0..50)
        .map(|number| tokio::spawn(async move { ask(address, &format!("n{number}.example.")).await }))
        .collect();
    let over_tcp = tokio::spawn(ask_over_tcp(address, "tcp.example."));
    until("all hang", || dns.server.forwarded() == 51).await;
    assert_eq!(last(&ask(address, "page.shop.").await), 7);
    assert_eq!(last(&ask_over_tcp(address, "page.shop.").await), 7);
    assert!(hanging.iter().all(|question| !question.is_finished()) && !over_tcp.is_finished());
}

#[tokio::test]
async fn dns_client_that_is_not_listed_is_refused() {
    let (server, asked) = upstream(|_, question| Some(answered(question, ResponseCode::NoError, 1))).await;
    let sockets = Sockets::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let own = sockets.local_addr().unwrap();
    let dns = start_on(sockets, own, "127.0.0.2/32", Configured::At(vec![server]), quick());
    for name in ["page.shop.", "www.example."] {
        let (reply, size) = exchange(dns.address, "127.0.0.1", &question(name, None)).await;
        assert_eq!((code(&reply), reply.answers.len()), (ResponseCode::Refused, 0));
        assert_eq!(size, question(name, None).to_vec().unwrap().len(), "nothing is amplified");
        let allowed = exchange(dns.address, "127.0.0.2", &question(name, None)).await.0;
        assert_eq!(code(&allowed), ResponseCode::NoError);
    }
    let mut stream = TcpStream::connect(dns.address).await.unwrap();
    assert!(message(&mut stream).await.is_err());
    assert_eq!((asked.load(Relaxed), dns.server.stats().get(Answer::Refused)), (1, 3));
}

/// A good question, spoilt in one of four ways.
fn malformed(good: &[u8], way: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut packet = good.to_vec();
    let place = random.usize(..packet.len());
    match way {
        0 => packet = (0..random.usize(..64)).map(|_| random.u8(..)).collect(),
        1 => packet.truncate(place),
        2 => packet[place..].fill_with(|| random.u8(..)),
        _ => _ = packet.splice(place..place, (0..random.usize(..300)).map(|_| random.u8(..))),
    }
    packet
}

#[tokio::test]
async fn dns_server_answers_after_a_hundred_thousand_malformed_packets() {
    let (server, _) = upstream(|_, question| Some(answered(question, ResponseCode::NoError, 1))).await;
    let dns = start(Configured::At(vec![server]), quick());
    let mut random = fastrand::Rng::with_seed(15);
    let client = socket("127.0.0.1").await;
    client.connect(dns.address).await.unwrap();
    let good = question("page.shop.", Some(1_232)).to_vec().unwrap();
    let mut buffer = vec![0; 65_535];
    for number in 0..MALFORMED {
        client.send(&malformed(&good, number % 4, &mut random)).await.unwrap();
        while client.try_recv(&mut buffer).is_ok() {}
        if number % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for number in 0..200 {
        let mut stream = TcpStream::connect(dns.address).await.unwrap();
        stream.write_all(&malformed(&good, number % 4, &mut random)).await.unwrap();
    }
    assert_eq!(last(&ask(dns.address, "page.shop.").await), 7);
    until("no connection is left", || dns.server.connections() == 0).await;
    assert_eq!(last(&ask_over_tcp(dns.address, "page.shop.").await), 7);
    assert!(dns.server.stats().get(Answer::Malformed) > 1_000);
    assert!(!dns.task.is_finished());
}

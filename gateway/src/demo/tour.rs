//! Calls services across the clusters by every name, then makes calls that must be refused: names that are not
//! exported, transit, and no certificate. The views of client and server are compared.

use std::time::Instant;

use rustls::AlertDescription;

use super::call::{Answer, CallError};
use super::screen::Screen;
use super::service::{Endpoint, Service};
use super::world::World;
use super::{Broken, until};

/// One call and the endpoints that may answer it.
struct Call<'a> {
    name: String,
    service: &'a Service,
    endpoints: &'a [Endpoint],
}

/// Waits until east's exports have arrived in west, and calls them by every name.
pub(super) async fn call_by_name(screen: &mut Screen, world: &World, joined: Instant) {
    screen.step("East exports the workspace */bookinfo, which west shares; west calls its services by name");
    let World { productpage, details, .. } = world;
    let first = until(async || world.client.call(&productpage.host()).await.ok()).await;
    let took = joined.elapsed().as_millis();
    let _other = until(async || world.client.call(&details.host()).await.ok()).await;
    screen.promise(
        format_args!(
            "west reaches productpage without further configuration; first answer {took} ms after the join"
        ),
        first.is_some(),
    );
    let any = |name: String, service| Call { name, service, endpoints: &service.endpoints };
    let second = productpage.endpoints.get(1..).unwrap_or_default();
    let calls = [
        any(productpage.host(), productpage),
        any(productpage.host(), productpage),
        any(productpage.alias(), productpage),
        any(productpage.outbound(), productpage),
        Call { name: productpage.host_of(1), service: productpage, endpoints: second },
        any(details.host(), details),
        any(details.alias(), details),
    ];
    row(screen, ["name called", "answered by", "client saw", "server saw", "ms"]);
    let mut answered = Vec::new();
    for call in calls {
        match world.client.call(&call.name).await {
            Ok(answer) => {
                show(screen, &call.name, &answer);
                answered.push((call, answer));
            }
            Err(error) => screen.promise(format_args!("{} is answered ({error})", call.name), false),
        }
    }
    screen.dim("An identity spiffe://CLUSTER.demo.isthmus/ns/NAMESPACE/sa/ACCOUNT is shown as CLUSTER/NAMESPACE/ACCOUNT.");
    judge(screen, world, &answered);
}

fn judge(screen: &mut Screen, world: &World, answered: &[(Call<'_>, Answer)]) {
    let all = |holds: &dyn Fn(&Call<'_>, &Answer) -> bool| {
        !answered.is_empty() && answered.iter().all(|(call, answer)| holds(call, answer))
    };
    screen.promise(
        "every name leads to its service, and an instance's name to that instance",
        all(&|call, answer| call.answerer(answer).is_some()),
    );
    screen.promise(
        "both endpoints of productpage receive calls",
        world
            .productpage
            .endpoints
            .iter()
            .all(|endpoint| answered.iter().any(|(_, answer)| answer.said.endpoint == endpoint.instance)),
    );
    screen.promise(
        "each end saw the other's identity, across trust domains, and nobody else's",
        all(&|call, answer| see_each_other(world, call.service, answer)),
    );
    screen.promise(
        "end to end: the client saw the endpoint's own certificate, and both ends hold the same session keys",
        all(&|call, answer| {
            answer.binding == answer.said.binding
                && call.answerer(answer).is_some_and(|endpoint| endpoint.leaf == answer.leaf)
        }),
    );
}

impl Call<'_> {
    fn answerer(&self, answer: &Answer) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.instance == answer.said.endpoint)
    }
}

/// Whether each end saw the other's identity, across trust domains.
pub(super) fn see_each_other(world: &World, service: &Service, answer: &Answer) -> bool {
    answer.server == service.id
        && answer.said.server == service.id.to_string()
        && answer.said.client == world.client_id.to_string()
        && service.id.trust_domain() != world.client_id.trust_domain()
}

/// Makes calls that the gateways or the services must refuse.
pub(super) async fn meet_refusals(screen: &mut Screen, world: &World) -> Result<(), Broken> {
    screen.step("What is refused");
    let World { productpage, details, reviews, ratings, ledger, .. } = world;
    let received = || [productpage, details, reviews, ledger].map(Service::accepted).iter().sum::<u64>();
    let before = received();
    let theirs = world.client.at(world.east.gateway.address_of("listener east-west")?);
    let through = world.client.at(world.west.gateway.address_of("listener east-west")?);
    let unknown = [
        (&world.client, ledger.host(), "its namespace is not shared"),
        (&theirs, ledger.host(), "the same, called at east's gateway"),
        (&world.client, productpage.host_of(0), "this instance is not exported by name"),
        (&world.client, ratings.host(), "it accepts clients without a certificate"),
        (&through, productpage.host(), "at west's east-west listener: no transit"),
    ];
    let mut all_refused = true;
    for (client, name, why) in unknown {
        let outcome = client.call(&name).await;
        all_refused &= refused_with(&outcome, AlertDescription::UnrecognisedName);
        show_refusal(screen, &name, &outcome, why);
    }
    screen.promise(
        "names that are not exported are unknown at every gateway, and west is no transit (alert 112)",
        all_refused,
    );
    screen.promise("no service received these calls", received() == before);
    let held = world.held_back().await;
    if let Some(why) = held.as_deref().and_then(|why| why.split(';').next()) {
        screen.say(format_args!("   east's agent does not export ratings: {why}"));
    }
    screen.promise(
        "a service that accepts clients without a certificate is not exported: not_mtls",
        held.is_some_and(|why| why.starts_with("not_mtls")),
    );

    let outcome = world.stranger.call(&productpage.alias()).await;
    show_refusal(screen, &productpage.alias(), &outcome, "called without a certificate");
    screen.promise(
        "the service itself refuses a client without a certificate, with alert 116 (certificate_required)",
        refused_with(&outcome, AlertDescription::CertificateRequired) && received() > before,
    );
    Ok(())
}

pub(super) fn refused_with(outcome: &Result<Answer, CallError>, alert: AlertDescription) -> bool {
    matches!(outcome, Err(CallError::Alert(sent)) if *sent == alert)
}

/// Prints the outcome of a call that must be refused, with the reason.
pub(super) fn show_refusal(screen: &Screen, name: &str, outcome: &Result<Answer, CallError>, why: &str) {
    match outcome {
        Ok(answer) => show(screen, name, answer),
        Err(error) => screen.say(format_args!("   {name:<57}  {:<44}  {why}", error.to_string())),
    }
}

/// Prints one answer as a table row.
pub(super) fn show(screen: &Screen, name: &str, answer: &Answer) {
    let took = format!("{:.1}", answer.took.as_secs_f64() * 1000.0);
    let server = short(&answer.server.to_string());
    row(screen, [name, &answer.said.endpoint, &server, &short(&answer.said.client), &took]);
}

fn row(screen: &Screen, [name, endpoint, server, client, took]: [&str; 5]) {
    screen.say(format_args!("   {name:<57}  {endpoint:<13}  {server:<25}  {client:<13}  {took:>5}"));
}

/// Shortens `spiffe://east.demo.isthmus/ns/bookinfo/sa/details` to `east/bookinfo/details`; other IDs stay as they
/// are.
fn short(id: &str) -> String {
    match id.split('/').collect::<Vec<_>>().as_slice() {
        ["spiffe:", "", domain, "ns", namespace, "sa", account] => match domain.strip_suffix(".demo.isthmus")
        {
            Some(cluster) => format!("{cluster}/{namespace}/{account}"),
            None => id.to_owned(),
        },
        _ => id.to_owned(),
    }
}

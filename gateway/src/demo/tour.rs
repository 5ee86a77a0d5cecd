//! The calls that go well and the calls that must not: by every name of a service, by names that are not
//! exported, and without a certificate. Each end's view is compared with the other's.

use rustls::{AlertDescription, ProtocolVersion};

use super::call::{Answer, CallError};
use super::screen::Screen;
use super::service::Endpoint;
use super::world::{Service, World};

/// One call, and who may answer it.
struct Call<'a> {
    name: String,
    service: &'a Service,
    endpoints: &'a [Endpoint],
}

/// Calls services by every name they have.
pub(super) async fn call_by_name(screen: &mut Screen, world: &World) {
    screen.step("Calls by name, through the gateway");
    let World { productpage, details, .. } = world;
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
    row(screen, ["name called", "answered by", "client saw", "server saw", "TLS", "ms"]);
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
    screen.dim("An identity spiffe://demo.isthmus/ns/NAMESPACE/sa/ACCOUNT is shown as NAMESPACE/ACCOUNT.");
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
        "both endpoints of productpage take their share",
        world
            .productpage
            .endpoints
            .iter()
            .all(|endpoint| answered.iter().any(|(_, answer)| answer.said.endpoint == endpoint.instance)),
    );
    screen.promise(
        "each end saw the other's identity, and nobody else's",
        all(&|call, answer| see_each_other(world, call.service, answer)),
    );
    screen.promise(
        "end to end: the certificate seen is the endpoint's own, and both ends hold the same session keys",
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

/// Each end saw who the other is.
pub(super) fn see_each_other(world: &World, service: &Service, answer: &Answer) -> bool {
    answer.server == service.id
        && answer.said.server == service.id.to_string()
        && answer.said.client == world.client_id.to_string()
}

/// Calls that must not be served: by the gateway, and by the services themselves.
pub(super) async fn meet_refusals(screen: &mut Screen, world: &World) {
    screen.step("Calls that are refused");
    let World { productpage, reviews, .. } = world;
    let heard = || world.details.accepted() + productpage.accepted() + reviews.accepted();
    let before = heard();
    let mut all_refused = true;
    for name in [reviews.host(), "admin.bookinfo.svc.cluster.local".to_owned(), productpage.host_of(7)] {
        let outcome = world.client.call(&name).await;
        all_refused &= refused_with(&outcome, AlertDescription::UnrecognisedName);
        show_refusal(screen, &name, &outcome);
    }
    screen.promise("a name that is not exported is refused with alert 112 (unrecognized_name)", all_refused);
    screen.promise("no service heard of those calls", heard() == before);

    let outcome = world.stranger.call(&productpage.alias()).await;
    show_refusal(screen, &format!("{} without a certificate", productpage.alias()), &outcome);
    screen.promise(
        "the service itself refuses who has no certificate, with alert 116 (certificate_required)",
        refused_with(&outcome, AlertDescription::CertificateRequired) && heard() > before,
    );
}

pub(super) fn refused_with(outcome: &Result<Answer, CallError>, alert: AlertDescription) -> bool {
    matches!(outcome, Err(CallError::Alert(sent)) if *sent == alert)
}

pub(super) fn show_refusal(screen: &Screen, name: &str, outcome: &Result<Answer, CallError>) {
    match outcome {
        Ok(answer) => show(screen, name, answer),
        Err(error) => screen.say(format_args!("   {name:<57}  {error}")),
    }
}

/// One answer as a row of the table.
pub(super) fn show(screen: &Screen, name: &str, answer: &Answer) {
    let took = format!("{:.1}", answer.took.as_secs_f64() * 1000.0);
    let server = answer.server.to_string();
    let version = match answer.version {
        ProtocolVersion::TLSv1_3 => "1.3",
        ProtocolVersion::TLSv1_2 => "1.2",
        _ => "?",
    };
    row(screen, [name, &answer.said.endpoint, &short(&server), &short(&answer.said.client), version, &took]);
}

fn row(screen: &Screen, [name, endpoint, server, client, version, took]: [&str; 6]) {
    screen.say(format_args!(
        "   {name:<57}  {endpoint:<13}  {server:<20}  {client:<10}  {version:<3}  {took:>5}"
    ));
}

/// `bookinfo/details` of `spiffe://demo.isthmus/ns/bookinfo/sa/details`; anything else as it is.
fn short(id: &str) -> String {
    match id.split('/').collect::<Vec<_>>().as_slice() {
        ["spiffe:", "", "demo.isthmus", "ns", namespace, "sa", account] => format!("{namespace}/{account}"),
        _ => id.to_owned(),
    }
}

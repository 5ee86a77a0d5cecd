//! An invalid policy of traffic is refused by field.

use super::*;

/// The policy of the only port: a valid one at first.
fn traffic(message: &mut pb::ServiceSlice) -> &mut pb::Traffic {
    message.ports[0].traffic.insert(Traffic::default().to_message())
}

#[test]
fn slice_error_names_the_field_of_a_policy() {
    let cases: [(&str, Change); 7] = [
        ("ports[0].traffic.affinity: has an unknown value", |m| traffic(m).affinity = 9),
        ("ports[0].traffic.locality: has an unknown value", |m| traffic(m).locality = 0),
        ("ports[0].traffic.overprovisioning: must be from 100 to 1000", |m| traffic(m).overprovisioning = 0),
        ("ports[0].traffic.panic: must be from 1 to 100", |m| traffic(m).panic = 101),
        ("ports[0].traffic.split: has 33 items; the limit is 32", |m| {
            traffic(m).split = vec![pb::SplitPart::default(); 33];
        }),
        ("ports[0].traffic.split[0].to: must be set", |m| traffic(m).split = vec![pb::SplitPart::default()]),
        ("ports[0].traffic.split: must have a weight above 0", |m| {
            let to = Some(pb::split_part::To::Cluster("east".to_owned()));
            traffic(m).split = vec![pb::SplitPart { to, ..pb::SplitPart::default() }];
        }),
    ];
    cases.into_iter().for_each(assert_refused);
}

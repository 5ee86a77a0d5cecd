//! Reads RBAC rules that depend on the source address only. All others are refused: a passthrough gateway sees nothing
//! else of a client.

use super::fields::{Shape, unknown};
use super::matching::{CIDR, Sources, net};
use isthmus_proto::envoy::config::rbac::v3::rbac::Action;
use isthmus_proto::envoy::config::rbac::v3::{Permission, Policy, Principal, permission, principal};
use isthmus_proto::envoy::extensions::filters::network::rbac::v3::Rbac;

static SHAPE: Shape = Shape {
    name: "RBAC",
    // Shadow rules and statistics only observe; a delayed denial is a denial.
    plain: &[2, 3, 4, 5, 6, 7, 8],
    messages: &[(1, &RULES)],
};
static RULES: Shape = Shape { name: "RBAC.rules", plain: &[1, 3], messages: &[(2, &ENTRY)] };
static ENTRY: Shape = Shape { name: "RBAC.rules.policies", plain: &[1], messages: &[(2, &POLICY)] };
static POLICY: Shape =
    Shape { name: "Policy", plain: &[3, 4, 5], messages: &[(1, &PERMISSION), (2, &PRINCIPAL)] };
static PERMISSION: Shape = Shape {
    name: "Permission",
    plain: &[3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14],
    messages: &[(1, &PERMISSIONS), (2, &PERMISSIONS), (8, &PERMISSION)],
};
static PERMISSIONS: Shape = Shape { name: "Permission.Set", plain: &[], messages: &[(1, &PERMISSION)] };
static PRINCIPAL: Shape = Shape {
    name: "Principal",
    plain: &[3, 4, 6, 7, 9, 12, 13, 14],
    messages: &[(1, &PRINCIPALS), (2, &PRINCIPALS), (5, &CIDR), (8, &PRINCIPAL), (10, &CIDR), (11, &CIDR)],
};
static PRINCIPALS: Shape = Shape { name: "Principal.Set", plain: &[], messages: &[(1, &PRINCIPAL)] };

/// The sources that the rules admit.
///
/// # Errors
/// They depend on something that this gateway cannot see.
pub(super) fn read(bytes: &[u8]) -> Result<Sources, String> {
    let filter: Rbac =
        prost::Message::decode(bytes).map_err(|error| format!("RBAC cannot be read: {error}"))?;
    if let Some(field) = unknown(bytes, &SHAPE) {
        return Err(format!("{field} is not supported"));
    }
    if filter.matcher.is_some() {
        return Err("RBAC.matcher is not supported".to_owned());
    }
    let Some(rules) = filter.rules else { return Ok(Sources::Any) };
    match Action::try_from(rules.action) {
        Ok(Action::Allow) => {}
        Ok(Action::Log) => return Ok(Sources::Any),
        Ok(Action::Deny) => return Err("RBAC action DENY is not supported; only ALLOW is".to_owned()),
        Err(_) => return Err(format!("RBAC action {} is unknown", rules.action)),
    }
    let mut allowed = Vec::new();
    for policy in rules.policies.values() {
        match of_policy(policy)? {
            Sources::Any => return any_source(rules.policies.values()),
            Sources::Only(nets) => allowed.extend(nets),
        }
    }
    allowed.sort_unstable();
    allowed.dedup();
    Ok(Sources::Only(allowed))
}

/// Any source, if all policies are supported, though the others admit no more.
fn any_source<'a>(policies: impl Iterator<Item = &'a Policy>) -> Result<Sources, String> {
    for policy in policies {
        of_policy(policy)?;
    }
    Ok(Sources::Any)
}

fn of_policy(policy: &Policy) -> Result<Sources, String> {
    if policy.condition.is_some() || policy.checked_condition.is_some() || policy.cel_config.is_some() {
        return Err("RBAC has a policy with a condition, which is not supported".to_owned());
    }
    if !policy.permissions.iter().all(is_any) || policy.permissions.is_empty() {
        return Err("RBAC has permissions other than `any`, which is not supported".to_owned());
    }
    any_of(&policy.principals)
}

/// Whether a permission is for every connection. Istio writes it as one of a set.
fn is_any(permission: &Permission) -> bool {
    use permission::Rule::{AndRules, Any, OrRules};
    match &permission.rule {
        Some(Any(any)) => *any,
        Some(AndRules(set) | OrRules(set)) => !set.rules.is_empty() && set.rules.iter().all(is_any),
        _ => false,
    }
}

fn any_of(principals: &[Principal]) -> Result<Sources, String> {
    let mut nets = Vec::new();
    let mut any = false;
    for principal in principals {
        match of_principal(principal)? {
            Sources::Any => any = true,
            Sources::Only(more) => nets.extend(more),
        }
    }
    Ok(if any { Sources::Any } else { Sources::Only(nets) })
}

fn of_principal(principal: &Principal) -> Result<Sources, String> {
    use principal::Identifier::{AndIds, Any, DirectRemoteIp, OrIds, RemoteIp, SourceIp};
    match &principal.identifier {
        Some(Any(true)) => Ok(Sources::Any),
        // No header tells another source than the connection's own.
        Some(SourceIp(range) | DirectRemoteIp(range) | RemoteIp(range)) => {
            Ok(Sources::Only(vec![net(range)?]))
        }
        Some(OrIds(set)) => any_of(&set.ids),
        Some(AndIds(set)) if !set.ids.is_empty() => {
            set.ids.iter().try_fold(Sources::Any, |sources, id| Ok(sources.and(of_principal(id)?)))
        }
        _ => Err("RBAC has principals other than address ranges, which is not supported".to_owned()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use prost::Message as _;

    use super::*;
    use isthmus_proto::envoy::config::core::v3::CidrRange;
    use isthmus_proto::envoy::config::rbac::v3::Rbac as Rules;

    /// Rules that admit these ranges.
    pub(crate) fn from(ranges: &[(&str, u32)]) -> Rules {
        let policy = Policy {
            permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
            principals: ranges.iter().map(|(prefix, length)| remote(prefix, *length)).collect(),
            ..Policy::default()
        };
        Rules { policies: [("p".to_owned(), policy)].into(), ..Rules::default() }
    }

    fn remote(prefix: &str, length: u32) -> Principal {
        let range = CidrRange { address_prefix: prefix.to_owned(), prefix_len: Some(length) };
        Principal { identifier: Some(principal::Identifier::RemoteIp(range)) }
    }

    fn admitted(rules: Rules) -> Result<String, String> {
        let filter = Rbac { rules: Some(rules), ..Rbac::default() };
        Ok(match read(&filter.encode_to_vec())? {
            Sources::Any => "any".to_owned(),
            Sources::Only(nets) => nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        })
    }

    const TEN: &[(&str, u32)] = &[("10.0.0.0", 8)];

    fn altered(change: impl FnOnce(&mut Policy)) -> Rules {
        let mut rules = from(&[("10.0.0.0", 8), ("192.0.2.1", 32)]);
        change(rules.policies.get_mut("p").unwrap());
        rules
    }

    #[test]
    fn rbac_address_ranges_become_sources() {
        use principal::Identifier::{AndIds, Any, OrIds};
        let sources = |rules| admitted(rules).unwrap();
        let set = |ids: Vec<Principal>| principal::Set { ids };
        assert_eq!(sources(altered(|_| {})), "10.0.0.0/8 192.0.2.1/32");
        assert_eq!(sources(Rules::default()), "", "nobody");
        assert_eq!(sources(Rules { action: Action::Log.into(), ..from(TEN) }), "any");
        assert_eq!(sources(altered(|policy| policy.principals[0].identifier = Some(Any(true)))), "any");
        // As istiod writes it.
        let istio = altered(|policy| {
            let rules = std::mem::take(&mut policy.permissions);
            let all = permission::Rule::AndRules(permission::Set { rules });
            policy.permissions = vec![Permission { rule: Some(all) }];
            let any_of = Principal { identifier: Some(OrIds(set(std::mem::take(&mut policy.principals)))) };
            let all_of = AndIds(set(vec![any_of, remote("10.1.0.0", 16)]));
            policy.principals = vec![Principal { identifier: Some(all_of) }];
        });
        assert_eq!(sources(istio), "10.1.0.0/16");
        let several = Rbac { rules: None, shadow_rules: Some(from(TEN)), ..Rbac::default() };
        assert_eq!(read(&several.encode_to_vec()), Ok(Sources::Any), "shadow rules only observe");
    }

    #[test]
    fn rbac_rules_beyond_source_addresses_are_refused() {
        use principal::Identifier::{AndIds, Any, Authenticated, NotId};
        let first = |identifier| altered(|policy| policy.principals[0].identifier = identifier);
        let permitted = |rule| altered(|policy| policy.permissions[0].rule = rule);
        for rules in [
            Rules { action: Action::Deny.into(), ..from(TEN) },
            Rules { action: 9, ..from(TEN) },
            altered(|policy| policy.condition = Some(Default::default())),
            altered(|policy| policy.permissions.clear()),
            permitted(None),
            permitted(Some(permission::Rule::Any(false))),
            permitted(Some(permission::Rule::AndRules(Default::default()))),
            permitted(Some(permission::Rule::NotRule(Default::default()))),
            permitted(Some(permission::Rule::DestinationPort(1))),
            first(None),
            first(Some(Any(false))),
            first(Some(AndIds(Default::default()))),
            first(Some(NotId(Default::default()))),
            first(Some(Authenticated(Default::default()))),
            // An unsupported principal beside `any` is refused, too.
            altered(|policy| {
                policy.principals[0].identifier = Some(Any(true));
                policy.principals[1].identifier = None;
            }),
        ] {
            let why = admitted(rules.clone()).unwrap_err();
            assert!(why.contains("RBAC"), "{rules:?}: {why}");
        }
        let matcher = Rbac { matcher: Some(Default::default()), ..Rbac::default() };
        assert!(read(&matcher.encode_to_vec()).unwrap_err().contains("RBAC.matcher"));
        let mut future = Rbac { rules: Some(from(TEN)), ..Rbac::default() }.encode_to_vec();
        future.extend([0xf8, 0x01, 1]);
        assert!(read(&future).unwrap_err().contains("field 31 of RBAC"));
    }
}

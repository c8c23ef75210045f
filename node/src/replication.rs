//! Between the mesh's messages and the node's own types, in both directions; pure.
//!
//! What comes from another member is checked here once: names are cut and cleaned, numbers bounded, so that the
//! registry and the [`statistics`] never hold what a peer made up beyond what it may claim.

pub mod providers;
pub mod statistics;

use std::sync::Arc;

use shoal_cluster::ClusterView;
use shoal_cluster::ids::NodeId;
use shoal_proto as proto;
use shoal_routing::{ModelSpec, Offer, Power, Registry, Route, Tokens, UpstreamId};

use crate::cloud::Budget;
use crate::store::KeyRecord;

/// Platform of phones and tablets that may say nothing of their battery.
const ANDROID: &str = "android/";
/// Longest name of a device or model that is believed.
const NAME_LEN: usize = 128;
/// Most requests at once that a device may claim to take; a claim attracts traffic.
const MAX_SLOTS: u32 = 1024;
/// Most models of one device.
const MAX_MODELS: usize = 256;

/// Makes an API-key record for the wire.
pub fn key_to_proto(key: KeyRecord) -> proto::KeyRecord {
    proto::KeyRecord {
        id: key.id,
        sha256: key.sha256.to_vec(),
        name: key.name,
        local_only: key.local_only,
        created_unix_ms: key.created_ms,
        revoked_unix_ms: key.revoked_ms,
        budget: key.budget.map_or_else(String::new, |budget| budget.to_string()),
    }
}

/// Reads an API-key record; `None` if it is malformed.
pub fn key_from_proto(key: proto::KeyRecord) -> Option<KeyRecord> {
    let id_fits = key.id.len() == 8 && key.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    Some(KeyRecord {
        id: id_fits.then_some(key.id)?,
        sha256: key.sha256.try_into().ok()?,
        name: clean(&key.name, NAME_LEN),
        local_only: key.local_only,
        created_ms: key.created_unix_ms,
        revoked_ms: key.revoked_unix_ms,
        // A form of a later version must not become a key without a bound.
        budget: (!key.budget.is_empty()).then(|| key.budget.parse().unwrap_or(Budget::NOTHING)),
    })
}

/// Builds the registry: what is linked here directly, then what live routers say they have.
///
/// `direct` are devices of this node, its own engines among them; a device that is both direct and elsewhere
/// is one offer with several routes, the direct one first.
/// `clouds` are the offers of this node's own providers; those of other routers are added where this node has none of
/// the same name.
pub fn registry<'a>(
    direct: impl Iterator<Item = &'a proto::DeviceInfo>,
    view: &ClusterView,
    clouds: &[Offer],
) -> Registry {
    let direct: Vec<&proto::DeviceInfo> = direct.collect();
    let mut offers = clouds.to_vec();
    offers.extend(providers::of_others(view, clouds));
    for device in &direct {
        let mut routes = vec![Route::Direct];
        routes.extend(other_routers(view, &device.id));
        push_offers(&mut offers, device, &routes);
    }
    for (id, device) in view.devices() {
        if direct.iter().any(|d| d.id == id.as_str()) {
            continue;
        }
        let routes: Vec<Route> = other_routers(view, id.as_str()).collect();
        if !routes.is_empty() {
            push_offers(&mut offers, device.info, &routes);
        }
    }
    Registry::new(offers)
}

fn other_routers<'a>(view: &'a ClusterView, device: &'a str) -> impl Iterator<Item = Route> + 'a {
    let id: Option<NodeId> = device.parse().ok();
    view.alive()
        .filter(|m| m.id != view.me && !m.info.draining)
        .filter(move |m| id.as_ref().is_some_and(|id| m.devices.contains_key(id)))
        .map(|m| Route::Via(m.id.as_str().into()))
}

fn push_offers(offers: &mut Vec<Offer>, device: &proto::DeviceInfo, routes: &[Route]) {
    for model in device.models.iter().take(MAX_MODELS) {
        let mut offer = offer(device, model_spec(model));
        offer.name = clean(&device.name, NAME_LEN).into();
        offer.routes = routes.to_vec();
        offer.resident = model.resident;
        offers.push(offer);
    }
}

/// What a device says of itself, whatever the model.
fn offer(device: &proto::DeviceInfo, model: ModelSpec) -> Offer {
    let mut offer = Offer::new(UpstreamId::Device(device.id.as_str().into()), Arc::new(model));
    offer.slots = device.slots.clamp(1, MAX_SLOTS);
    offer.in_flight_reported = device.in_flight.min(MAX_SLOTS);
    offer.queued_reported = device.queued.min(MAX_SLOTS);
    offer.power = match (device.charging, device.battery_percent) {
        (Some(true), _) => Power::Charging,
        (_, Some(percent)) => Power::Battery(percent.min(100) as u8),
        (Some(false), None) => Power::Mains,
        (None, None) => Power::Unknown,
    };
    offer.naps = device.battery_percent.is_some() || device.platform.starts_with(ANDROID);
    offer.throttled = device.throttled.unwrap_or(false);
    offer.kv_use = device.kv_percent.map(|percent| percent.min(100) as f32 / 100.0);
    offer
}

/// Returns the requests that a device says it has, from all routers together.
pub fn requests(device: &proto::DeviceInfo) -> u32 {
    offer(device, ModelSpec::new("", "")).requests_reported()
}

fn model_spec(model: &proto::ModelInfo) -> ModelSpec {
    let known = |text: &str| (!text.is_empty()).then(|| Arc::from(clean(text, NAME_LEN)));
    let mut spec = ModelSpec::new(clean(&model.id, NAME_LEN), clean(&model.engine, NAME_LEN));
    spec.context = (model.context_length > 0).then_some(Tokens(model.context_length));
    spec.digest = known(&model.digest);
    spec.quantization = known(&model.quantization);
    spec.size_bytes = (model.size_bytes > 0).then_some(model.size_bytes);
    spec.tools = model.tools;
    spec.vision = model.vision;
    spec.logprobs = model.logprobs;
    spec.embeddings = model.embeddings;
    spec.schema = model.schema;
    spec.audio = model.audio;
    spec.transcription = model.transcription;
    spec.speech = model.speech;
    spec.remote = model.remote;
    spec
}

/// Cuts and cleans everything that a device says of itself, since people and the mesh will read it.
pub fn clean_device(device: &mut proto::DeviceInfo) {
    for percent in [&mut device.battery_percent, &mut device.kv_percent].into_iter().flatten() {
        *percent = (*percent).min(100);
    }
    device.models.truncate(MAX_MODELS);
    let own = [&mut device.name, &mut device.platform, &mut device.version];
    let models =
        device.models.iter_mut().flat_map(|m| [&mut m.id, &mut m.engine, &mut m.quantization, &mut m.digest]);
    for text in own.into_iter().chain(models) {
        *text = clean(text, NAME_LEN);
    }
}

/// Cuts a text and drops control characters; it will stand in headers, tables and logs.
pub fn clean(text: &str, max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(max).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use shoal_cluster::Member;

    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId::from_spki(&[n])
    }

    fn device(n: u8, model: &str, seq: u64) -> proto::DeviceInfo {
        proto::DeviceInfo {
            id: id(n).to_string(),
            name: format!("device{n}"),
            seq,
            slots: 2,
            models: vec![proto::ModelInfo { id: model.into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn member(n: u8, devices: Vec<proto::DeviceInfo>, alive: bool) -> Member {
        Member {
            id: id(n),
            info: proto::NodeInfo::default(),
            devices: devices.into_iter().map(|d| (d.id.parse().unwrap(), d)).collect(),
            providers: BTreeMap::new(),
            stats: None,
            alive,
            last_seen: Instant::now(),
            generation: 1,
        }
    }

    fn view(members: Vec<Member>) -> ClusterView {
        ClusterView {
            me: id(1),
            members: members.into_iter().map(|m| (m.id.clone(), m)).collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn a_device_linked_to_two_nodes_is_one_offer_with_two_routes() {
        let shared = device(9, "m", 1);
        let view = view(vec![
            member(1, vec![shared.clone()], true),
            member(2, vec![shared.clone()], true),
            member(3, vec![shared.clone()], false),
        ]);
        let registry = registry(std::iter::once(&shared), &view, &[]);
        let offers = registry.by_model("m");
        assert_eq!(offers.len(), 1);
        assert_eq!(offers[0].routes, [Route::Direct, Route::Via(id(2).as_str().into())]);
        assert_eq!(offers[0].slots, 2);
    }

    #[test]
    fn a_dead_or_draining_router_carries_nobody() {
        let mut draining = member(3, vec![device(8, "b", 1)], true);
        draining.info.draining = true;
        let view = view(vec![member(2, vec![device(9, "a", 1)], false), draining]);
        assert!(registry(std::iter::empty(), &view, &[]).models().is_empty());
    }

    #[test]
    fn names_from_the_mesh_are_cleaned_and_bounded() {
        let mut bad = device(9, "m\u{1b}[2J", 1);
        bad.name = "x".repeat(10_000);
        bad.slots = u32::MAX;
        let registry = registry(std::iter::once(&bad), &view(vec![]), &[]);
        let offer = &registry.offers()[0];
        assert_eq!(&*offer.model.id, "m[2J");
        assert_eq!((offer.name.len(), offer.slots), (NAME_LEN, MAX_SLOTS));
    }

    #[test]
    fn what_a_device_says_of_its_load_and_condition_reaches_the_balancer() {
        let mut phone = device(9, "m", 1);
        (phone.in_flight, phone.queued, phone.kv_percent) = (1, 3, Some(400));
        (phone.battery_percent, phone.throttled) = (Some(17), Some(true));
        phone.models[0].resident = Some(false);
        let registry = registry(std::iter::once(&phone), &view(vec![]), &[]);
        let offer = &registry.offers()[0];
        assert_eq!((offer.power, offer.throttled), (Power::Battery(17), true));
        assert_eq!((offer.resident, offer.kv_use), (Some(false), Some(1.0)));
        assert_eq!(requests(&phone), 5, "both slots are taken, and three wait");
        phone.queued = 0;
        assert_eq!(requests(&phone), 1);
    }
}

//! Providers as the mesh knows them: which router has a key for which, with models and prices, and never the key.
//!
//! A router without the key makes offers of what another one tells, reached through that one. They are cloud like any
//! provider's, so the policy of the entry router filters them before it ranks, and the owner's checks again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;
use shoal_cluster::ClusterView;
use shoal_proto::{ProviderInfo, ProviderModel};
use shoal_routing::{MicroUsd, ModelSpec, Offer, Price, Route, SoundPrice, Tokens, UpstreamId};

use super::{MAX_MODELS, NAME_LEN, clean};

/// Most bytes of one provider's message: with envelope and base64 it stays below the bound of a gossip value. About 150
/// models fit; the first ones are told, which are the ones to try first.
const MAX_BYTES: usize = 5_500;

/// Most bytes of all of them: a third of what a node may gossip, so that its devices have room whatever is configured.
const MAX_BYTES_OF_ALL: usize = 12_000;

/// Returns what the mesh is told of this node's providers, by name.
pub fn to_publish(clouds: &[Offer]) -> BTreeMap<String, ProviderInfo> {
    let mut out: BTreeMap<String, ProviderInfo> = BTreeMap::new();
    let mut bytes = 0;
    for offer in clouds {
        let name = offer.upstream.name();
        let Some(id) = offer.model.id.strip_prefix(&**name).and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        let info = out.entry(name.to_string()).or_insert_with(|| ProviderInfo {
            name: name.to_string(),
            kind: offer.model.engine.to_string(),
            internal_ok: offer.internal_ok,
            models: Vec::new(),
        });
        let model = to_wire(id, offer);
        bytes += model.encoded_len();
        info.models.push(model);
        if info.encoded_len() > MAX_BYTES || bytes > MAX_BYTES_OF_ALL {
            bytes -= info.models.pop().map_or(0, |model| model.encoded_len());
        }
    }
    out
}

fn to_wire(id: &str, offer: &Offer) -> ProviderModel {
    let (spec, price) = (&offer.model, offer.price.unwrap_or_default());
    ProviderModel {
        id: id.to_owned(),
        input_micro_usd: price.input_per_million.0,
        output_micro_usd: price.output_per_million.0,
        context_length: spec.context.map_or(0, |context| context.0),
        tools: spec.tools,
        vision: spec.vision,
        audio: spec.audio,
        schema: spec.schema,
        logprobs: spec.logprobs,
        embeddings: spec.embeddings,
        transcription: spec.transcription,
        speech: spec.speech,
        minute_micro_usd: offer.sound_price.per_minute.0,
        chars_micro_usd: offer.sound_price.per_million_chars.0,
        max_output: spec.max_output.map_or(0, |limit| limit.0),
    }
}

/// Returns the offers of providers that other routers have keys for.
///
/// A name that this node has a provider of means that one alone: another router's may be a different server, and it has
/// a purse of its own. The provider of a router that is away or drains is known but has no way to it.
pub(super) fn of_others(view: &ClusterView, own: &[Offer]) -> Vec<Offer> {
    let own: BTreeSet<&str> = own.iter().map(|offer| &**offer.upstream.name()).collect();
    let mut offers = Vec::new();
    for member in view.members.values().filter(|member| member.id != view.me) {
        let reachable = member.alive && !member.info.draining;
        let routes = if reachable { vec![Route::Via(member.id.as_str().into())] } else { Vec::new() };
        for info in member.providers.values().filter(|info| !own.contains(info.name.as_str())) {
            for model in info.models.iter().take(MAX_MODELS) {
                let mut offer = Offer::new(
                    UpstreamId::Provider(info.name.as_str().into()),
                    Arc::new(spec_of(info, model)),
                );
                offer.routes.clone_from(&routes);
                offer.price = Some(Price {
                    input_per_million: MicroUsd(model.input_micro_usd),
                    output_per_million: MicroUsd(model.output_micro_usd),
                });
                offer.sound_price = SoundPrice {
                    per_minute: MicroUsd(model.minute_micro_usd),
                    per_million_chars: MicroUsd(model.chars_micro_usd),
                };
                offer.internal_ok = info.internal_ok;
                offers.push(offer);
            }
        }
    }
    offers
}

fn spec_of(info: &ProviderInfo, model: &ProviderModel) -> ModelSpec {
    let id = format!("{}/{}", info.name, clean(&model.id, NAME_LEN));
    let mut spec = ModelSpec::new(id, clean(&info.kind, NAME_LEN));
    spec.context = (model.context_length > 0).then_some(Tokens(model.context_length));
    spec.tools = model.tools;
    spec.vision = model.vision;
    spec.audio = model.audio;
    spec.schema = model.schema;
    spec.logprobs = model.logprobs;
    spec.embeddings = model.embeddings;
    spec.transcription = model.transcription;
    spec.speech = model.speech;
    spec.max_output = (model.max_output > 0).then_some(Tokens(model.max_output));
    spec
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use shoal_cluster::Member;
    use shoal_cluster::ids::NodeId;
    use shoal_proto::NodeInfo;
    use shoal_routing::DataClass;

    use super::*;

    fn offer(provider: &str, model: &str) -> Offer {
        let mut spec = ModelSpec::new(format!("{provider}/{model}"), "openai");
        spec.context = Some(Tokens(1000));
        (spec.tools, spec.vision) = (Some(true), Some(false));
        let mut offer = Offer::new(UpstreamId::Provider(provider.into()), Arc::new(spec));
        offer.price = Some(Price { input_per_million: MicroUsd(5), output_per_million: MicroUsd(7) });
        offer.internal_ok = false;
        offer
    }

    fn id(n: u8) -> NodeId {
        NodeId::from_spki(&[n])
    }

    fn view(members: Vec<(u8, bool, Vec<Offer>)>) -> ClusterView {
        let member = |(n, alive, offers): (u8, bool, Vec<Offer>)| Member {
            id: id(n),
            info: NodeInfo::default(),
            devices: BTreeMap::new(),
            providers: to_publish(&offers),
            stats: None,
            alive,
            last_seen: Instant::now(),
            generation: 1,
        };
        let members = members.into_iter().map(member).map(|member| (member.id.clone(), member));
        ClusterView { me: id(1), members: members.collect() }
    }

    #[test]
    fn an_offer_survives_the_mesh_and_is_reached_through_its_owner() {
        let told = offer("openai", "gpt-x");
        let offers = of_others(&view(vec![(2, true, vec![told.clone()])]), &[]);
        let via = Offer { routes: vec![Route::Via(id(2).as_str().into())], ..told };
        assert_eq!(offers, [via]);
        assert!(!offers[0].admits(DataClass::Restricted) && !offers[0].admits(DataClass::Internal));
    }

    #[test]
    fn an_own_provider_is_the_only_one_of_its_name() {
        let view = view(vec![(2, true, vec![offer("openai", "gpt-y"), offer("mine", "m")])]);
        let offers = of_others(&view, &[offer("openai", "gpt-x")]);
        assert_eq!(offers.iter().map(|o| &*o.model.id).collect::<Vec<_>>(), ["mine/m"]);
    }

    #[test]
    fn the_provider_of_a_router_that_is_away_is_known_and_not_reachable() {
        let offers = of_others(&view(vec![(2, false, vec![offer("openai", "gpt-x")])]), &[]);
        assert!(offers.len() == 1 && !offers[0].is_alive());
    }

    #[test]
    fn many_models_are_cut_to_what_a_value_holds() {
        let many: Vec<Offer> = (0..2000).map(|n| offer("openai", &format!("model-{n:04}"))).collect();
        let told = to_publish(&many);
        assert!(told["openai"].encoded_len() <= MAX_BYTES && told["openai"].models.len() > 100);
        assert_eq!(told["openai"].models[0].id, "model-0000");
        let providers = (0..20).flat_map(|p| (0..90).map(move |n| offer(&format!("p{p}"), &format!("m{n}"))));
        let told = to_publish(&providers.collect::<Vec<_>>());
        assert!(told.values().map(|info| info.encoded_len()).sum::<usize>() < MAX_BYTES_OF_ALL + 2_000);
    }
}

//! What an engine says of its own load: requests it runs, requests that wait in it, memory for them.
//!
//! Clients that reach an engine past the mesh are seen in no count of ours; only the engine knows them. Each kind tells
//! it in its own way, and one that does not is taken to run what we sent it.

use serde_json::Value;

/// Load of an engine, whoever caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineLoad {
    /// Requests it runs.
    pub running: u32,
    /// Requests that wait for a slot in it.
    pub waiting: u32,
    /// Use of the KV cache, percent; `None` = it does not say.
    pub kv_percent: Option<u8>,
}

impl EngineLoad {
    /// Returns the load without requests that came from here.
    pub fn without(self, ours: u32) -> Self {
        Self { running: self.running.saturating_sub(ours), ..self }
    }

    /// Reads `/slots` of `llama-server`; `None` when that is switched off.
    pub(super) fn of_slots(slots: &Value) -> Option<Self> {
        let running = slots.as_array()?.iter().filter(|slot| slot["is_processing"] == true).count();
        Some(Self { running: u32::try_from(running).unwrap_or(u32::MAX), ..Self::default() })
    }

    /// Reads a page of metrics in Prometheus' text form; `None` when it tells nothing of this kind.
    ///
    /// Several models or data-parallel ranks each have a line: requests add up, and the fullest cache counts.
    pub(super) fn of_metrics(page: &str, names: &MetricNames) -> Option<Self> {
        let (mut found, mut load, mut kv) = (false, Self::default(), None::<f64>);
        for (name, value) in page.lines().filter_map(sample) {
            if name == names.running {
                load.running = load.running.saturating_add(count(value));
                found = true;
            } else if name == names.waiting {
                load.waiting = load.waiting.saturating_add(count(value));
            } else if names.kv_share.contains(&name) {
                kv = Some(kv.unwrap_or(0.0).max(value));
            }
        }
        load.kv_percent = kv.map(|share| (share.clamp(0.0, 1.0) * 100.0).round() as u8);
        found.then_some(load)
    }
}

/// Names of the metrics of one kind of engine.
#[derive(Debug)]
pub(super) struct MetricNames {
    running: &'static str,
    waiting: &'static str,
    /// Shares 0..1; the names that different versions use.
    kv_share: &'static [&'static str],
}

/// vLLM's; the cache's share was renamed when the engine came to run on other hardware, too.
pub(super) const VLLM: MetricNames = MetricNames {
    running: "vllm:num_requests_running",
    waiting: "vllm:num_requests_waiting",
    kv_share: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
};

/// SGLang's, there when it runs with `--enable-metrics`.
pub(super) const SGLANG: MetricNames = MetricNames {
    running: "sglang:num_running_reqs",
    waiting: "sglang:num_queue_reqs",
    kv_share: &["sglang:token_usage"],
};

/// `llama-server`'s, there when it runs with `--metrics`; the only place where it tells its queue.
pub(super) const LLAMA_CPP: MetricNames = MetricNames {
    running: "llamacpp:requests_processing",
    waiting: "llamacpp:requests_deferred",
    kv_share: &["llamacpp:kv_cache_usage_ratio"],
};

/// Splits a line into its metric's name and value; comments and what cannot be read are nothing.
fn sample(line: &str) -> Option<(&str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let rest = if line[end..].starts_with('{') { &line[line.rfind('}')? + 1..] } else { &line[end..] };
    // A time stamp may follow the value.
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((&line[..end], value))
}

fn count(value: f64) -> u32 {
    value.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_several_ranks_add_up() {
        let page = "# HELP vllm:num_requests_running Number of requests.\n\
            # TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a } b\"} 3.0\n\
            vllm:num_requests_running{engine=\"1\"} 2 1700000000000\n\
            vllm:num_requests_waiting 7\n\
            vllm:num_requests_waiting_by_reason 99\n\
            vllm:kv_cache_usage_perc{engine=\"0\"} 0.255\n\
            vllm:kv_cache_usage_perc{engine=\"1\"} 0.61\n";
        let load = EngineLoad::of_metrics(page, &VLLM).unwrap();
        assert_eq!(load, EngineLoad { running: 5, waiting: 7, kv_percent: Some(61) });
        assert_eq!(EngineLoad::of_metrics(page, &SGLANG), None);
    }

    #[test]
    fn nonsense_is_no_load() {
        for page in
            ["", "{", "vllm:num_requests_running", "vllm:num_requests_running{ 3", "<html>", "a }{ NaN"]
        {
            assert_eq!(EngineLoad::of_metrics(page, &VLLM), None, "{page}");
        }
        let negative =
            "vllm:num_requests_running -4\nvllm:num_requests_waiting 1e300\nvllm:kv_cache_usage_perc 7";
        let load = EngineLoad::of_metrics(negative, &VLLM).unwrap();
        assert_eq!(load, EngineLoad { running: 0, waiting: u32::MAX, kv_percent: Some(100) });
    }

    #[test]
    fn slots_that_work_are_counted() {
        let slots = serde_json::json!([{"id": 0, "is_processing": true}, {"id": 1, "is_processing": false}]);
        assert_eq!(EngineLoad::of_slots(&slots).unwrap().running, 1);
        assert_eq!(EngineLoad::of_slots(&serde_json::json!({"error": {"code": 501}})), None);
    }
}

//! What upstreams do wrong, and what a router must make of each: the specification that the matrix is held against.
//!
//! Sources: row 16 of `docs/faults.md` and the failure modes that users of other gateways reported.

/// What must come of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// It does no harm: the answer is whole.
    Passes,
    /// Nothing was given to the client yet: another upstream answers, and without one the client gets this error.
    Fails(u16, &'static str),
    /// The request is at fault: no other upstream is asked.
    Refused(u16, &'static str),
    /// Content was given: the answer ends in `upstream_interrupted`, whoever else could answer.
    Marked,
    /// The client gets what the upstream said; a router cannot know better.
    AsIs,
    /// A call of a tool, with the index and the id that the upstream left out.
    Call,
}

/// One thing that upstreams do wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behaviour {
    pub(super) name: &'static str,
    /// Words of the stub's script.
    pub(super) script: &'static str,
    /// Not streamed.
    pub(super) whole: Option<Expect>,
    /// Streamed, before the first content.
    pub(super) before: Option<Expect>,
    /// Streamed, after content.
    pub(super) after: Option<Expect>,
    /// The upstream asks for fewer requests, so it is left alone for a while: it gets stubs of its own.
    pub(super) throttles: bool,
}

use Expect::{AsIs, Call, Fails, Marked, Passes, Refused};

const BROKEN: Option<Expect> = Some(Fails(502, "upstream_error"));
const CUT: Option<Expect> = Some(Fails(502, "upstream_interrupted"));
const LATE: Option<Expect> = Some(Fails(504, "upstream_timeout"));
const FULL: Option<Expect> = Some(Fails(503, "overloaded"));
const GOOD: Option<Expect> = Some(Passes);
/// One code for every cut after content, whatever its cause: what came so far is not whole.
const CUT_OFF: Option<Expect> = Some(Marked);

/// The same before the head, streamed or not.
const fn both(name: &'static str, script: &'static str, expect: Option<Expect>) -> Behaviour {
    Behaviour { name, script, whole: expect, before: expect, after: None, throttles: false }
}

const fn throttle(name: &'static str, script: &'static str, expect: Option<Expect>) -> Behaviour {
    Behaviour { throttles: true, ..both(name, script, expect) }
}

/// Faults of a stream only.
const fn stream(name: &'static str, script: &'static str, before: Option<Expect>) -> Behaviour {
    Behaviour { whole: None, ..both(name, script, before) }
}

const fn three(
    name: &'static str,
    script: &'static str,
    whole: Option<Expect>,
    before: Option<Expect>,
    after: Option<Expect>,
) -> Behaviour {
    Behaviour { name, script, whole, before, after, throttles: false }
}

/// Every behaviour.
pub(super) const BEHAVIOURS: &[Behaviour] = &[
    // Refusals.
    both("status_400", "err=400", Some(Refused(400, "invalid_request_error"))),
    both("status_401", "err=401", BROKEN),
    both("status_403", "err=403", BROKEN),
    both("status_404", "err=404", Some(Fails(404, "model_not_found"))),
    both("status_408", "err=408", LATE),
    both("status_422", "err=422", Some(Refused(422, "invalid_request_error"))),
    both("status_500", "err=500", BROKEN),
    both("status_502", "err=502", BROKEN),
    both("status_504", "err=504", LATE),
    throttle("status_429", "err=429", Some(Fails(429, "rate_limit_exceeded"))),
    throttle("status_429_retry_after", "err=429 retry_after=1", Some(Fails(429, "rate_limit_exceeded"))),
    throttle("status_503", "err=503", FULL),
    throttle("status_529", "err=529", FULL),
    // Silence.
    both("hang_before_head", "fault=hang_before_head", LATE),
    both("hang_after_head", "fault=hang_after_head", LATE),
    three("hang_midway", "fault=hang_midway", LATE, None, CUT_OFF),
    // Broken connections.
    both("reset_before_head", "fault=reset_before_head", BROKEN),
    three("reset_after_head", "fault=reset_after_head", CUT, BROKEN, None),
    three("reset_midway", "fault=reset_midway", CUT, None, CUT_OFF),
    both("fin_before_head", "fault=fin_before_head", BROKEN),
    both("fin_inside_head", "fault=fin_inside_head", BROKEN),
    three("fin_after_head", "fault=fin_after_head", CUT, BROKEN, None),
    three("fin_midway", "fault=fin_midway", CUT, None, CUT_OFF),
    three("end_midway", "fault=end_midway", BROKEN, BROKEN, CUT_OFF),
    three("bad_chunk_size", "fault=bad_chunk_size", CUT, BROKEN, CUT_OFF),
    both("not_http", "fault=not_http", BROKEN),
    both("huge_head", "fault=huge_head", BROKEN),
    both("early_hints", "fault=early_hints", GOOD),
    both("redirect", "fault=redirect", BROKEN),
    // Lengths and encodings.
    both("no_length", "fault=no_length", GOOD),
    three("length_too_long", "fault=length_too_long", CUT, GOOD, None),
    three("length_too_short", "fault=length_too_short", BROKEN, GOOD, None),
    both("empty_body", "fault=empty_body", BROKEN),
    both("html", "html=1", BROKEN),
    both("plain_text_type", "fault=plain_text_type", GOOD),
    both("gzip_unasked", "fault=gzip_unasked", BROKEN),
    both("other_form", "fault=other_form", BROKEN),
    // Event streams.
    stream("crlf", "crlf=1", GOOD),
    stream("cr_only", "fault=cr_only", GOOD),
    stream("comments_and_fields", "noise=1", GOOD),
    stream("multi_line_data", "fault=multi_line", GOOD),
    stream("byte_order_mark", "fault=byte_order_mark", GOOD),
    stream("a_byte_at_a_time", "split=1", GOOD),
    both("slow_drip", "ttft=300 itl=60", GOOD),
    stream("no_done", "no_done=1", GOOD),
    three("no_finish_reason", "no_finish=1", None, None, CUT_OFF),
    stream("after_done", "fault=after_done", GOOD),
    three("comments_only", "fault=comments_only", BROKEN, BROKEN, CUT_OFF),
    three("no_content", "fault=no_content", None, BROKEN, CUT_OFF),
    stream("chunks_twice", "fault=chunks_twice", Some(AsIs)),
    // Payloads.
    three("broken_json", "fault=broken_json", BROKEN, BROKEN, CUT_OFF),
    three("nan_numbers", "fault=nan_numbers", BROKEN, BROKEN, CUT_OFF),
    three("invalid_utf8", "fault=invalid_utf8", BROKEN, BROKEN, CUT_OFF),
    three("deep_json", "fault=deep_json", BROKEN, BROKEN, CUT_OFF),
    three("huge_line", "fault=huge_line", BROKEN, BROKEN, CUT_OFF),
    three("error_in_200", "fault=error_event", BROKEN, BROKEN, CUT_OFF),
    Behaviour {
        throttles: true,
        ..three(
            "error_429_in_200",
            "fault=error_429_event",
            Some(Fails(429, "rate_limit_exceeded")),
            Some(Fails(429, "rate_limit_exceeded")),
            CUT_OFF,
        )
    },
    both("huge_usage", "fault=huge_usage", GOOD),
    both("no_usage", "fault=no_usage", GOOD),
    both("tools_without_index", "fault=tools_without_index", Some(Call)),
];

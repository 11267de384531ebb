//! Which traces are recorded.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler as SdkSampler, SamplingDecision, SamplingResult, ShouldSample};

/// Keeps the decision of the caller; a trace without a caller that is linked to others is recorded if one of them is.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Decides about traces without a caller and without links.
    root: SdkSampler,
}

impl Sampler {
    /// A sampler whose traces without a caller and without links are recorded as `root` decides.
    pub fn new(root: SdkSampler) -> Self {
        Self { root }
    }
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent = parent.filter(|parent| parent.span().span_context().is_valid());
        let sampled = match parent {
            Some(parent) => parent.span().span_context().is_sampled(),
            None if !links.is_empty() => links.iter().any(|link| link.span_context.is_sampled()),
            None => {
                return self
                    .root
                    .should_sample(None, trace_id, name, kind, attributes, links);
            }
        };
        SamplingResult {
            decision: if sampled {
                SamplingDecision::RecordAndSample
            } else {
                SamplingDecision::Drop
            },
            attributes: Vec::new(),
            trace_state: parent.map_or_else(TraceState::default, |parent| {
                parent.span().span_context().trace_state().clone()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags};

    use super::*;

    fn context(sampled: bool) -> SpanContext {
        SpanContext::new(
            TraceId::from(1),
            SpanId::from(2),
            TraceFlags::default().with_sampled(sampled),
            true,
            TraceState::default(),
        )
    }

    fn is_sampled(root: SdkSampler, parent: Option<bool>, links: &[bool]) -> bool {
        let parent = parent.map(|sampled| Context::new().with_remote_span_context(context(sampled)));
        let links: Vec<_> = links
            .iter()
            .map(|sampled| Link::with_context(context(*sampled)))
            .collect();
        let sampled = Sampler::new(root).should_sample(
            parent.as_ref(),
            TraceId::from(3),
            "a span",
            &SpanKind::Internal,
            &[],
            &links,
        );
        sampled.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn the_caller_decides_then_the_links_then_the_root() {
        use SdkSampler::{AlwaysOff, AlwaysOn};
        assert!(is_sampled(AlwaysOff, Some(true), &[false]));
        assert!(!is_sampled(AlwaysOn, Some(false), &[true]));
        assert!(is_sampled(AlwaysOff, None, &[false, true]));
        assert!(!is_sampled(AlwaysOn, None, &[false]));
        assert!(is_sampled(AlwaysOn, None, &[]));
        assert!(!is_sampled(AlwaysOff, None, &[]));
    }
}

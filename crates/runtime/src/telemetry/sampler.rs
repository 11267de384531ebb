//! The sampler of the settings.

use herald_trace::Sampler;
use opentelemetry_sdk::trace::Sampler as SdkSampler;

use super::{Config, Error, variable};

/// Standard OpenTelemetry variables of the sampler.
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// The values of [`SAMPLER`] that are supported.
const SAMPLERS: &str = "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, \
                        parentbased_traceidratio";

/// The sampler of the settings, or else of the OpenTelemetry variables. Every sampler keeps the decision of the caller, as
/// the `parentbased` ones do: a trace whose spans decide apart has holes.
pub(super) fn from_config(config: &Config) -> Result<Sampler, Error> {
    let root = match config.sampling_ratio {
        Some(ratio) if (0.0..=1.0).contains(&ratio) => SdkSampler::TraceIdRatioBased(ratio),
        Some(ratio) => return Err(Error::SamplingRatio(ratio)),
        None => from_variables()?,
    };
    Ok(Sampler::new(root))
}

fn from_variables() -> Result<SdkSampler, Error> {
    let Some((_, name)) = variable(&[SAMPLER]) else {
        return Ok(SdkSampler::AlwaysOn);
    };
    match name.strip_prefix("parentbased_").unwrap_or(&name) {
        "always_on" => Ok(SdkSampler::AlwaysOn),
        "always_off" => Ok(SdkSampler::AlwaysOff),
        "traceidratio" => {
            let argument = variable(&[SAMPLER_ARGUMENT]).map_or_else(|| "1".into(), |(_, argument)| argument);
            let ratio = argument.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            let ratio = ratio.ok_or(Error::Sampler {
                variable: SAMPLER_ARGUMENT,
                value: argument,
                expected: "the numbers from 0 to 1",
            })?;
            Ok(SdkSampler::TraceIdRatioBased(ratio))
        }
        _ => Err(Error::Sampler {
            variable: SAMPLER,
            value: name,
            expected: SAMPLERS,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_out_of_range_is_refused() {
        let with_ratio = |ratio| Config {
            sampling_ratio: Some(ratio),
            ..Config::default()
        };
        for ratio in [-0.1, 1.1, f64::NAN] {
            let refused = from_config(&with_ratio(ratio));
            assert!(matches!(refused, Err(Error::SamplingRatio(_))), "{ratio}");
        }
        for ratio in [0.0, 0.01, 1.0] {
            assert!(from_config(&with_ratio(ratio)).is_ok(), "{ratio}");
        }
    }
}

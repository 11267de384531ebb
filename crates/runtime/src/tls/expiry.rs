//! When the certificates of a process end, as a metric.

use herald_metrics::encoding::{DescriptorEncoder, EncodeMetric as _};
use herald_metrics::{Collector, Family, Gauge, MetricType, Registry};
use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

use super::ServerTls;

/// Registers the end of the certificates of these ports, by the value of the label `port`. A port without TLS has none.
pub fn register_certificates(registry: &mut Registry, ports: Vec<(&'static str, ServerTls)>) {
    registry.register_collector(Certificates(ports));
}

#[derive(Debug)]
struct Certificates(Vec<(&'static str, ServerTls)>);

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ends = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        for (port, tls) in &self.0 {
            if let Some(end) = tls.not_after() {
                ends.get_or_create(&[("port", *port)]).set(end);
            }
        }
        let help = "End of the certificate that a port shows, or of an authority in its file if that ends before, seconds \
                    since 1970.";
        let name = "tls_certificate_not_after_timestamp_seconds";
        ends.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }
}

/// The earliest end of the certificates of a chain, seconds since 1970. `None` if none of them can be read.
pub(super) fn first_end(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let ends = chain.iter().filter_map(|certificate| {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        Some(parsed.validity().not_after.timestamp())
    });
    ends.min()
}

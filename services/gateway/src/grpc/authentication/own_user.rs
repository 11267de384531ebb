//! Whether a request of a caller that acts for one user is about that user.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use herald_auth::{Denied, IsOwn};
use herald_rpc::status;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tonic::body::Body;

use super::Refusal;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Reads the one message of a request, checks its user, and puts it back.
pub(super) async fn require_own_user(
    request: &mut Request<Body>,
    is_own: IsOwn,
    user: &str,
    bytes_max: usize,
) -> Result<(), Refusal> {
    let mut body = std::mem::take(request.body_mut());
    let mut data = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(more) = frame.map_err(Refusal::Malformed)?.into_data() else {
            continue;
        };
        if data.len() + more.len() > bytes_max + PREFIX {
            let message = format!("a request message is larger than {bytes_max} bytes");
            return Err(Refusal::Malformed(status::message_too_large(message)));
        }
        data.extend_from_slice(&more);
    }
    let data = data.freeze();
    let is_own = message(&data).and_then(|message| is_own(message, user).ok());
    match is_own {
        Some(true) => {
            let body = Full::new(data).map_err(|never: Infallible| match never {});
            *request.body_mut() = Body::new(body);
            Ok(())
        }
        Some(false) => Err(Denied::User.into()),
        None => Err(Refusal::Malformed(status::invalid(&[(
            "request",
            "must be one message that is not compressed",
        )]))),
    }
}

/// The message of a body that has exactly one.
fn message(data: &Bytes) -> Option<&[u8]> {
    let (prefix, message) = data.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = prefix;
    let fits = usize::try_from(u32::from_be_bytes(*length)) == Ok(message.len());
    (*compressed == 0 && fits).then_some(message)
}

#[cfg(test)]
mod tests {
    use herald_auth::{Bound, Rule, rule};
    use herald_proto::{Method, v1};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut data = vec![0];
        data.extend((message.len() as u32).to_be_bytes());
        data.extend(message);
        data
    }

    async fn check(body: Vec<u8>, bytes_max: usize) -> (Result<(), Refusal>, Bytes) {
        let Rule::Needs {
            bound: Bound::Own(is_own),
            ..
        } = rule(Method::ListTimeline)
        else {
            panic!("the method is for one user");
        };
        let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {});
        let mut request = Request::new(Body::new(body));
        let checked = require_own_user(&mut request, is_own, "ann", bytes_max).await;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        (checked, body)
    }

    fn request_of(user: &str) -> Vec<u8> {
        let user_id = user.into();
        framed(
            &v1::ListTimelineRequest {
                user_id,
                ..Default::default()
            }
            .encode_to_vec(),
        )
    }

    #[tokio::test]
    async fn only_the_callers_own_request_passes_unchanged() {
        let (checked, body) = check(request_of("ann"), 100).await;
        assert!(checked.is_ok());
        assert_eq!(body, request_of("ann"));
        for other in ["bob", "Ann", "ann ", ""] {
            let (checked, _) = check(request_of(other), 1_000).await;
            assert!(matches!(checked, Err(Refusal::Denied(Denied::User))), "{other:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_one_message_is_refused() {
        let own = request_of("ann");
        let two = [own.clone(), request_of("bob")].concat();
        let mut compressed = own.clone();
        compressed[0] = 1;
        for body in [
            Vec::new(),
            own[..4].to_vec(),
            own[..own.len() - 1].to_vec(),
            two,
            compressed,
            framed(&[0xff]),
        ] {
            let (checked, _) = check(body.clone(), 1_000).await;
            let Err(Refusal::Malformed(status)) = checked else {
                panic!("{body:?} passes")
            };
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
        }
        let (checked, _) = check(own, 2).await;
        let Err(Refusal::Malformed(status)) = checked else {
            panic!("a large message passes")
        };
        assert!(status.message().contains("larger than 2 bytes"), "{status:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_one_message_or_none(data in prop::collection::vec(any::<u8>(), 0..40)) {
            let data = Bytes::from(data);
            if let Some(message) = message(&data) {
                prop_assert_eq!(framed(message), data.to_vec());
            }
        }
    }
}

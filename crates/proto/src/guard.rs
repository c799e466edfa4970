//! A channel to a peer that is not trusted.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Frame, SizeHint};
use tonic::{
    body::Body,
    codegen::{
        Bytes,
        http::{HeaderMap, Request, Response},
    },
};
use tower::Service;

/// What no peer of ours sends, and what tonic 0.14 panics on when it is not base64
/// (<https://github.com/grpc/grpc-rust/pull/2618>).
const DETAILS: &str = "grpc-status-details-bin";

/// Takes out of a peer's headers what a client of tonic cannot bear. Wrap the channel to a guest in it.
pub fn clean(headers: &mut HeaderMap) {
    headers.remove(DETAILS);
}

/// A channel whose answers go through [`clean`], trailers too.
#[derive(Clone, Copy, Debug)]
pub struct Guarded<S>(pub S);

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            clean(answer.headers_mut());
            Ok(answer.map(|body| Body::new(Cleaned(body))))
        })
    }
}

struct Cleaned(Body);

impl http_body::Body for Cleaned {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let mut frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            clean(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::{Code, client::Grpc, codegen::http::HeaderValue};
    use tonic_prost::ProstCodec;

    use super::*;
    use crate::v1;

    /// A body of trailers alone.
    struct Trailers(Option<HeaderMap>);

    impl http_body::Body for Trailers {
        type Data = Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
            Poll::Ready(self.0.take().map(|t| Ok(Frame::trailers(t))))
        }
    }

    #[tokio::test]
    async fn details_that_are_not_base64_reach_no_client() {
        for in_trailers in [false, true] {
            let hostile = tower::service_fn(move |_: Request<Body>| async move {
                let mut headers = HeaderMap::new();
                headers.insert("grpc-status", HeaderValue::from_static("5"));
                headers.insert("grpc-message", HeaderValue::from_static("nothing here"));
                headers.insert(DETAILS, HeaderValue::from_static("!!!"));
                let mut answer = Response::new(Body::empty());
                if in_trailers {
                    answer = Response::new(Body::new(Trailers(Some(headers))));
                } else {
                    *answer.headers_mut() = headers;
                }
                Ok::<_, Infallible>(answer)
            });
            let mut client = Grpc::new(Guarded(hostile));
            let codec = ProstCodec::<v1::AgentGreetRequest, v1::AgentGreetReply>::default();
            let path = tonic::codegen::http::uri::PathAndQuery::from_static("/x/y");
            client.ready().await.unwrap();
            let request = tonic::Request::new(v1::AgentGreetRequest::default());
            let status = client.unary(request, path, codec).await.unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::NotFound, "nothing here")
            );
        }
    }
}

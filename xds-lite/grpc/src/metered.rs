//! Counts the messages of a gRPC request body before they are buffered: the length of each, and the size of its parts
//! once decoded. A message that is too large, or exceeds the budget of its sender, ends the call.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tonic::Status;

use crate::budget::Share;

use isthmus_proto::measure::{Rules, Scan, Wrong};

/// A request body whose messages are counted.
#[derive(Debug)]
pub struct Metered<B> {
    body: B,
    scan: Scan,
    charge: Option<Charge>,
}

/// The shares that a request is charged to.
#[derive(Debug)]
pub struct Charge {
    /// The bytes of its messages.
    pub bytes: Share,
    /// The open request itself.
    pub _stream: Arc<Share>,
}

impl<B> Metered<B> {
    /// Counts the messages of `body`.
    pub fn new(body: B, rules: Rules, charge: Option<Charge>) -> Metered<B> {
        Metered { body, scan: Scan::new(rules), charge }
    }

    fn count(&mut self, data: &[u8]) -> Result<(), Status> {
        self.scan.feed(data).map_err(refusal)?;
        match &mut self.charge {
            Some(charge) => Ok(charge.bytes.set(self.scan.held())?),
            None => Ok(()),
        }
    }
}

fn refusal(wrong: Wrong) -> Status {
    match wrong {
        Wrong::Long { .. } | Wrong::Large { .. } | Wrong::Other => {
            Status::resource_exhausted(wrong.to_string())
        }
        Wrong::Compressed => Status::unimplemented(wrong.to_string()),
        Wrong::Malformed => Status::invalid_argument(wrong.to_string()),
    }
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // A reader that asks for more has processed the complete messages.
        self.scan.settle();
        if let Err(status) = self.count(&[]) {
            return Poll::Ready(Some(Err(status)));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            None => return Poll::Ready(None),
        };
        let counted = frame.data_ref().map_or(Ok(()), |data| self.count(data));
        Poll::Ready(Some(counted.map(|()| frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

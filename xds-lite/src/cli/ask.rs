//! Questions to a running agent, and words of VMs to it, over its admin address. Everything is JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use isthmus_certs::input;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::registry::registered::registration::LARGEST;

/// An agent answers at once; one that does not is stopped, or no agent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const LARGEST_ANSWER: usize = 64 << 20;

/// Whom to ask.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The admin address of the agent to ask
    #[arg(long, value_name = "ADDRESS", env = "ISTHMUS_AGENT_ADMIN", default_value = "127.0.0.1:15014")]
    pub admin: String,
}

/// What to ask or to say.
#[derive(Clone, Debug, Subcommand)]
pub enum Question {
    /// What a running agent is and does
    Status {
        /// Whom to ask
        #[command(flatten)]
        at: Where,
    },
    /// What an agent tells about a host, and why
    #[command(after_help = "Example:\n  isthmus-agent explain db.pxc.svc.cluster.local")]
    Explain {
        /// The service's name
        host: String,
        /// Whom to ask
        #[command(flatten)]
        at: Where,
    },
    /// Announce this VM, or say again that it is there; prints the lease
    #[command(after_help = "\
Example:
  echo '{\"host\": \"db.pxc\", \"port\": 3306, \"instance\": \"db-0\", \"ttl\": \"1m\",
         \"endpoints\": [{\"address\": \"10.1.0.7:3306\"}]}' | isthmus-agent register

It ends when nothing is heard for its TTL: say it again, or `heartbeat`, three times as often. The lease is
told once, to whoever registers first; it moves the VM to another address, and ends its registration.")]
    Register {
        /// The registration (JSON): one entry of `services:` with one endpoint, and `instance`, `ttl`, `lease`
        #[arg(value_name = "FILE", default_value = "-")]
        file: PathBuf,
        /// Whom to tell
        #[command(flatten)]
        at: Where,
    },
    /// Say that a VM is still there
    Heartbeat {
        /// What `register` told
        #[arg(env = "ISTHMUS_LEASE", hide_env_values = true)]
        lease: String,
        /// Whom to tell
        #[command(flatten)]
        at: Where,
    },
    /// Take a VM out
    Deregister {
        /// What `register` told
        #[arg(env = "ISTHMUS_LEASE", hide_env_values = true)]
        lease: String,
        /// Whom to tell
        #[command(flatten)]
        at: Where,
    },
}

/// There is no answer, or it is no.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The registration cannot be read.
    #[error("{}: cannot be read: {cause}", file.display())]
    File {
        /// Which; `-` is standard input.
        file: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The registration is too large.
    #[error("{}: larger than {} KiB; a registration is short", .0.display(), LARGEST >> 10)]
    Large(PathBuf),
    /// Nobody is there.
    #[error(
        "no agent answers at {at}: {cause}; is it running, and is its admin address another (--admin, ISTHMUS_AGENT_ADMIN)?"
    )]
    Nobody {
        /// Who was asked.
        at: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It says nothing.
    #[error("{at} gave no answer within {} s; is that an agent, and is it stopped?", PATIENCE.as_secs())]
    Silent {
        /// Who was asked.
        at: String,
    },
    /// It says something else.
    #[error("{at} is no admin address of an agent: {why}; it is under `admin:` in its file")]
    Stranger {
        /// Who was asked.
        at: String,
        /// How that is seen.
        why: String,
    },
    /// It refuses.
    #[error("{at}: {why}")]
    Refused {
        /// Who was asked.
        at: String,
        /// What it says.
        why: String,
    },
    /// The system gives no sockets.
    #[error("cannot ask anybody: {0}")]
    Runtime(#[source] io::Error),
}

/// One request.
struct Asked<'a> {
    at: &'a str,
    method: Method,
    path: String,
    body: Vec<u8>,
}

/// Asks, and gives the answer. Not for use within a runtime: it waits.
///
/// # Errors
/// There is no answer, or it is no.
pub fn ask(question: &Question) -> Result<Value, AskError> {
    let asked = request(question)?;
    let at = asked.at.strip_prefix("http://").unwrap_or(asked.at).trim_end_matches('/').to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(AskError::Runtime)?;
    let answered = runtime.block_on(async { timeout(PATIENCE, exchange(&at, asked)).await });
    let (status, body) = answered.map_err(|_| AskError::Silent { at: at.clone() })??;
    let Ok(answer) = serde_json::from_slice::<Value>(&body) else {
        return Err(AskError::Stranger { at, why: format!("its answer ({status}) is not JSON") });
    };
    if status.is_success() {
        return Ok(answer);
    }
    let why = answer.get("error").and_then(Value::as_str).unwrap_or("the agent refused");
    // Whoever answers may be a stranger: no control characters to a terminal.
    let why = why.chars().map(|one| if one.is_control() && one != '\n' { '\u{fffd}' } else { one });
    Err(AskError::Refused { at, why: why.collect() })
}

fn request(question: &Question) -> Result<Asked<'_>, AskError> {
    let get = |at, path| Ok(Asked { at, method: Method::GET, path, body: Vec::new() });
    let post = |at, path: &str, body| Ok(Asked { at, method: Method::POST, path: path.to_owned(), body });
    let word = |lease: &str| json!({ "lease": lease }).to_string().into_bytes();
    match question {
        Question::Status { at } => get(&at.admin, "/status".to_owned()),
        Question::Explain { host, at } => {
            get(&at.admin, format!("/explain?host={}", utf8_percent_encode(host, NON_ALPHANUMERIC)))
        }
        Question::Register { file, at } => post(&at.admin, "/register", registration(file)?),
        Question::Heartbeat { lease, at } => post(&at.admin, "/heartbeat", word(lease)),
        Question::Deregister { lease, at } => post(&at.admin, "/deregister", word(lease)),
    }
}

fn registration(file: &Path) -> Result<Vec<u8>, AskError> {
    let path = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    input::read_argument(path, LARGEST as u64).map_err(|cause| match cause.kind() {
        io::ErrorKind::FileTooLarge => AskError::Large(file.to_owned()),
        _ => AskError::File { file: file.to_owned(), cause },
    })
}

async fn exchange(at: &str, asked: Asked<'_>) -> Result<(StatusCode, Bytes), AskError> {
    let stranger = |why: String| AskError::Stranger { at: at.to_owned(), why };
    let stream = TcpStream::connect(at).await;
    let stream = stream.map_err(|cause| AskError::Nobody { at: at.to_owned(), cause })?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| stranger(error.to_string()))?;
    // Whatever name or forwarded port led there: the name that every agent takes for its own.
    let request = Request::builder().method(asked.method).uri(asked.path).header("host", "localhost");
    let request = request.body(Full::new(Bytes::from(asked.body)));
    let request = request.map_err(|error| stranger(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| stranger(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| stranger(error.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(exchange);
    // Both ends: a connection that is over may still hold the answer.
    tokio::select! {
        answer = &mut exchange => answer,
        _over = connection => exchange.await,
    }
}

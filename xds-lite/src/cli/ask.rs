//! Queries a running agent and registers VMs with it, over its admin address or Unix socket, in JSON.

use std::fmt;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::agent::config;

use super::matrix::matrix;
use super::text;

use isthmus_model::admin::agent::LeaseRequest;
use isthmus_model::admin::{Answer, NotThePage};
use isthmus_model::file::AGENT;
use isthmus_registry::registered::registration::LARGEST;

/// An agent answers at once; without an answer by then it is suspended, or something else listens there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const LARGEST_ANSWER: usize = 64 << 20;

/// The agent to ask.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The admin address of the agent to ask
    #[arg(long, value_name = "ADDRESS", env = "ISTHMUS_AGENT_ADMIN", default_value = "127.0.0.1:15014")]
    pub admin: String,
    /// Print the JSON of the admin API
    #[arg(long)]
    pub json: bool,
}

/// How to reach the agent to register: its socket on this machine, or its admin address with a token.
#[derive(Clone, Debug, Args)]
pub struct Way {
    /// The agent's Unix socket. Default: the one in the agent's file
    #[arg(long, value_name = "PATH", env = "ISTHMUS_AGENT_SOCKET")]
    pub socket: Option<PathBuf>,
    /// The agent's file, which names its socket
    #[arg(long, value_name = "FILE", default_value = AGENT)]
    pub config: PathBuf,
    /// The admin address of the agent, instead of its socket
    #[arg(long, value_name = "ADDRESS", env = "ISTHMUS_AGENT_ADMIN")]
    pub admin: Option<String>,
    /// A file with a token of the agent's `registration.tokens`, for --admin
    #[arg(long, value_name = "FILE", env = "ISTHMUS_AGENT_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// A request to a running agent.
#[derive(Clone, Debug, Subcommand)]
pub enum Question {
    /// Print the status of a running agent
    Status {
        /// The agent to ask
        #[command(flatten)]
        at: Where,
    },
    /// Print what an agent knows of a host: registry, export, imports, and why not
    #[command(after_help = "Examples:\n  isthmus-agent explain db.pxc.svc.cluster.local\n  \
isthmus-agent explain db.pxc.svc.cluster.local --as spiffe://east.example/ns/shop/sa/cart --from 10.1.2.3")]
    Explain {
        /// A name of the service: its host, an alias, an instance, or outbound_.PORT_._.HOST
        #[arg(value_name = "NAME")]
        host: String,
        /// Identity of a caller: what the rules of this cluster say about it
        #[arg(long = "as", value_name = "SPIFFE-ID")]
        identity: Option<String>,
        /// Address of a caller [default with --as: 127.0.0.1]
        #[arg(long, value_name = "IP")]
        from: Option<String>,
        /// The agent to ask
        #[command(flatten)]
        at: Where,
    },
    /// Print how this cluster's gateways reach other clusters' gateways: round trip, jitter, loss, state
    #[command(after_help = "Example:\n  isthmus-agent matrix --json")]
    Matrix {
        /// The agent to ask
        #[command(flatten)]
        at: Where,
    },
    /// Register this VM, or renew its registration; prints the lease
    #[command(after_help = "\
Example:
  echo '{\"host\": \"db.pxc\", \"port\": 3306, \"instance\": \"db-0\", \"ttl\": \"1m\",
         \"endpoints\": [{\"address\": \"10.1.0.7:3306\"}]}' | isthmus-agent register

On the agent's machine, root and the agent's own user may register through its Unix socket; elsewhere use --admin
and --token-file. A registration ends after its TTL: repeat it, or send `heartbeat`, three times per TTL. The
first registration prints the lease, once; with it the VM can move to another address or deregister.")]
    Register {
        /// The registration (JSON): one entry of `services:` with one endpoint, and `instance`, `ttl`, `lease`
        #[arg(value_name = "FILE", default_value = "-")]
        file: PathBuf,
        /// How to reach the agent
        #[command(flatten)]
        way: Way,
    },
    /// Renew a VM's registration
    Heartbeat {
        /// The lease that `register` printed
        #[arg(env = "ISTHMUS_LEASE", hide_env_values = true)]
        lease: String,
        /// How to reach the agent
        #[command(flatten)]
        way: Way,
    },
    /// End a VM's registration
    Deregister {
        /// The lease that `register` printed
        #[arg(env = "ISTHMUS_LEASE", hide_env_values = true)]
        lease: String,
        /// How to reach the agent
        #[command(flatten)]
        way: Way,
    },
}

impl Question {
    /// The answer as the caller wants it: a page for people, or JSON.
    ///
    /// # Errors
    /// The answer is not the page.
    pub fn render(&self, answer: &Answer) -> Result<String, NotThePage> {
        Ok(match self {
            Question::Status { at } if !at.json => text::status(&answer.page()?),
            Question::Matrix { at } if !at.json => matrix(&answer.page()?),
            Question::Explain { at, .. } if !at.json => text::explain(&answer.page()?),
            _ => answer.json(),
        })
    }
}

/// Why a request to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The registration or the token file cannot be read.
    #[error("{}: cannot be read: {cause}", file.display())]
    File {
        /// The file; `-` is standard input.
        file: PathBuf,
        /// The system's error.
        #[source]
        cause: io::Error,
    },
    /// The agent's file names no socket, or cannot be used.
    #[error("{}: {why}; name the agent's socket (--socket, ISTHMUS_AGENT_SOCKET), or its admin address and a token (--admin, --token-file)", file.display())]
    Way {
        /// The agent's file.
        file: PathBuf,
        /// The problem with it.
        why: String,
    },
    /// The registration is too large.
    #[error("{}: larger than {} KiB; is it a registration?", .0.display(), LARGEST >> 10)]
    Large(PathBuf),
    /// Nothing listens there, or the socket refuses this user.
    #[error(
        "no agent answers at {at}: {cause}; is it running, may this user use its socket (registration.users), and does it use another admin address (--admin, ISTHMUS_AGENT_ADMIN)?"
    )]
    Nobody {
        /// The agent's address or socket.
        at: String,
        /// The system's error.
        #[source]
        cause: io::Error,
    },
    /// The agent does not answer in time.
    #[error("{at} gave no answer within {} s; is that an agent, and is it suspended?", PATIENCE.as_secs())]
    Silent {
        /// The agent's address or socket.
        at: String,
    },
    /// Something other than an agent answers.
    #[error("{at} is not the admin address of an agent: {why}; use the one under `admin:` in its file")]
    Stranger {
        /// The agent's address or socket.
        at: String,
        /// What was wrong with the answer.
        why: String,
    },
    /// The agent refuses the request.
    #[error("{at}: {why}")]
    Refused {
        /// The agent's address or socket.
        at: String,
        /// The agent's reason.
        why: String,
    },
    /// The runtime cannot start.
    #[error("cannot start a runtime: {0}")]
    Runtime(#[source] io::Error),
}

struct Asked {
    at: At,
    token: Option<String>,
    method: Method,
    path: String,
    body: Vec<u8>,
}

/// Where an agent listens.
#[derive(Clone, Debug)]
enum At {
    Address(String),
    Socket(PathBuf),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Address(address) => f.write_str(address),
            At::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

impl At {
    fn address(written: &str) -> At {
        At::Address(written.strip_prefix("http://").unwrap_or(written).trim_end_matches('/').to_owned())
    }
}

/// Sends the request and returns the agent's answer. It blocks: not for use within a runtime.
///
/// # Errors
/// There is no answer, or the agent refuses the request.
pub fn ask(question: &Question) -> Result<Answer, AskError> {
    let asked = request(question)?;
    let at = asked.at.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(AskError::Runtime)?;
    let answered = runtime.block_on(async { timeout(PATIENCE, exchange(asked)).await });
    let (status, body) = answered.map_err(|_| AskError::Silent { at: at.clone() })??;
    let Some(answer) = Answer::parse(&body) else {
        return Err(AskError::Stranger { at, why: format!("its answer ({status}) is not JSON") });
    };
    if status.is_success() {
        return Ok(answer);
    }
    let why = answer.error().unwrap_or_else(|| "the agent refused".to_owned());
    Err(AskError::Refused { at, why })
}

fn request(question: &Question) -> Result<Asked, AskError> {
    let get = |at: &Where, path| {
        let at = At::address(&at.admin);
        Ok(Asked { at, token: None, method: Method::GET, path, body: Vec::new() })
    };
    let post = |way: &Way, path: &str, body| {
        let token = way.token_file.as_deref().map(token).transpose()?;
        Ok(Asked { at: by(way)?, token, method: Method::POST, path: path.to_owned(), body })
    };
    let lease_body = |lease: &str| {
        let request = LeaseRequest { lease: lease.to_owned() };
        serde_json::to_vec(&request).unwrap_or_default()
    };
    match question {
        Question::Status { at } => get(at, "/status".to_owned()),
        Question::Matrix { at } => get(at, "/matrix".to_owned()),
        Question::Explain { host, identity, from, at } => {
            let parts = [("host", Some(host)), ("as", identity.as_ref()), ("from", from.as_ref())];
            let query: Vec<_> = parts
                .iter()
                .filter_map(|(key, value)| {
                    Some(format!("{key}={}", utf8_percent_encode((*value)?, NON_ALPHANUMERIC)))
                })
                .collect();
            get(at, format!("/explain?{}", query.join("&")))
        }
        Question::Register { file, way } => post(way, "/register", registration(file)?),
        Question::Heartbeat { lease, way } => post(way, "/heartbeat", lease_body(lease)),
        Question::Deregister { lease, way } => post(way, "/deregister", lease_body(lease)),
    }
}

/// The socket or admin address given on the command line, else the socket in the agent's file.
fn by(way: &Way) -> Result<At, AskError> {
    if let Some(socket) = &way.socket {
        return Ok(At::Socket(socket.clone()));
    }
    if let Some(admin) = &way.admin {
        return Ok(At::address(admin));
    }
    let settings = config::load(&way.config)
        .map_err(|problems| AskError::Way { file: way.config.clone(), why: problems.to_string() })?;
    settings.registration.socket.map(At::Socket).ok_or_else(|| AskError::Way {
        file: way.config.clone(),
        why: "it has no registration socket; add `state: DIRECTORY` or `registration: { socket: PATH }`"
            .to_owned(),
    })
}

fn token(file: &Path) -> Result<String, AskError> {
    let read = input::read_text(file, LARGEST as u64);
    let text = read.map_err(|cause| AskError::File { file: file.to_owned(), cause })?;
    Ok(text.trim().to_owned())
}

fn registration(file: &Path) -> Result<Vec<u8>, AskError> {
    let path = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    input::read_argument(path, LARGEST as u64).map_err(|cause| match cause.kind() {
        io::ErrorKind::FileTooLarge => AskError::Large(file.to_owned()),
        _ => AskError::File { file: file.to_owned(), cause },
    })
}

async fn exchange(asked: Asked) -> Result<(StatusCode, Bytes), AskError> {
    let nobody = |cause| AskError::Nobody { at: asked.at.to_string(), cause };
    match asked.at.clone() {
        At::Address(address) => talk(TcpStream::connect(address).await.map_err(nobody)?, asked).await,
        At::Socket(path) => talk(UnixStream::connect(path).await.map_err(nobody)?, asked).await,
    }
}

async fn talk<S>(stream: S, asked: Asked) -> Result<(StatusCode, Bytes), AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let at = asked.at.to_string();
    let stranger = |why: String| AskError::Stranger { at: at.clone(), why };
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| stranger(error.to_string()))?;
    // Every agent accepts `localhost` as its own name, whatever name or forwarded port led to it.
    let mut request = Request::builder().method(asked.method).uri(asked.path).header("host", "localhost");
    if let Some(token) = asked.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
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
    // A connection that has ended may still hold the answer.
    tokio::select! {
        answer = &mut exchange => answer,
        _over = connection => exchange.await,
    }
}

//! Clients for the API servers, from what the configuration says.

use std::{io, path::PathBuf, time::Duration};

use axum::http::{Request, StatusCode, Uri};
use kube::{
    Client,
    client::{Body, ClientBuilder},
    config::{AuthInfo, Config, KubeConfigOptions, Kubeconfig},
};
use tower::limit::RateLimitLayer;

use super::{
    Pace,
    servers::{Server, place},
};
use crate::{
    config::{Credentials, KubernetesConfig},
    error::chain,
};

/// Requests a second to one server; a server that ends every watch at once must not be flooded.
const REQUESTS: u64 = 50;
/// Longest silence on a connection: a watch is ended by the server before.
const SILENCE: Duration = Duration::from_secs(300);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot use the kubeconfig {}: {source}", path.display())]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    #[error(
        "this does not run in a pod with a service account: {0}; name a kubeconfig, or servers and \
         files"
    )]
    ServiceAccount(Box<kube::config::InClusterError>),
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{0} is no URL of a server")]
    Url(String),
    #[error("cannot set up the connection: {0}")]
    Setup(Box<kube::Error>),
}

/// Where the servers are and who this is to them, read from the files anew.
pub(super) struct Access {
    base: Config,
    servers: Vec<Uri>,
}

impl Access {
    /// Reads what the configuration names.
    pub(super) async fn read(config: &KubernetesConfig, pace: &Pace) -> Result<Self, ClientError> {
        let url = |text: &String| text.parse().map_err(|_| ClientError::Url(text.clone()));
        let servers = config.servers.iter().map(url).collect::<Result<Vec<Uri>, _>>()?;
        let mut base = match &config.credentials {
            Credentials::Kubeconfig { path, context } => {
                kubeconfig(path, context.as_deref()).await.map_err(|source| {
                    ClientError::Kubeconfig { path: path.clone(), source: source.into() }
                })?
            }
            // The account's files do not say where the servers are, the pod's environment does.
            Credentials::ServiceAccount if servers.is_empty() => Config::incluster_env()
                .map_err(|error| ClientError::ServiceAccount(error.into()))?,
            Credentials::ServiceAccount => Config::incluster_dns()
                .map_err(|error| ClientError::ServiceAccount(error.into()))?,
            Credentials::Files { token, authority, certificate } => {
                let mut base = Config::new(servers.first().cloned().unwrap_or_default());
                base.root_cert_file.clone_from(authority);
                for file in authority.iter().chain(token) {
                    let check = std::fs::read(file);
                    check.map_err(|source| ClientError::File { path: file.clone(), source })?;
                }
                let text = |path: &PathBuf| path.display().to_string();
                base.auth_info = AuthInfo {
                    token_file: token.as_ref().map(text),
                    client_certificate: certificate.as_ref().map(|(file, _)| text(file)),
                    client_key: certificate.as_ref().map(|(_, file)| text(file)),
                    ..AuthInfo::default()
                };
                base
            }
        };
        if let Some(name) = &config.tls_server_name {
            base.tls_server_name = Some(name.clone());
        }
        // The errors are told, and tried again in our own time.
        base.default_retry = false;
        // Who asks gives up before, so that it is always the same that is said.
        base.connect_timeout = Some(pace.answer * 2);
        base.read_timeout = Some(SILENCE);
        base.reset_reader_on_write = true;
        let servers = if servers.is_empty() { vec![base.cluster_url.clone()] } else { servers };
        Ok(Self { base, servers })
    }

    /// The configured servers, the preferred one first.
    pub(super) fn servers(&self) -> &[Uri] {
        &self.servers
    }

    /// A client for a server, and how that answers.
    pub(super) async fn reach(
        &self,
        server: &Server,
        pace: &Pace,
    ) -> Result<(Client, Answer), ClientError> {
        let client = self.client(&server.url, None)?;
        let answer = ask(&client, server, pace).await;
        // The certificate of one that was learnt may name what is configured, and not its address.
        let Answer::Refused(_) = answer else { return Ok((client, answer)) };
        let Some(name) = self.other_name(server) else { return Ok((client, answer)) };
        let by_name = self.client(&server.url, Some(name))?;
        match ask(&by_name, server, pace).await {
            Answer::Refused(_) => Ok((client, answer)),
            good @ (Answer::Ready | Answer::NotReady(_) | Answer::Hung(_)) => Ok((by_name, good)),
        }
    }

    fn other_name(&self, server: &Server) -> Option<String> {
        let learnt = server.learnt && self.base.tls_server_name.is_none();
        self.servers.first().filter(|_| learnt).map(|url| place(url).0)
    }

    /// A client for a server whose certificate has this name, or that of its URL.
    fn client(&self, server: &Uri, name: Option<String>) -> Result<Client, ClientError> {
        let mut config = self.base.clone();
        config.cluster_url = server.clone();
        config.tls_server_name = name.or(config.tls_server_name);
        let builder = ClientBuilder::try_from(config);
        let builder = builder.map_err(|error| ClientError::Setup(error.into()))?;
        Ok(builder.with_layer(&RateLimitLayer::new(REQUESTS, Duration::from_secs(1))).build())
    }
}

async fn kubeconfig(
    path: &std::path::Path,
    context: Option<&str>,
) -> Result<Config, kube::config::KubeconfigError> {
    let file = Kubeconfig::read_from(path)?;
    let context = context.map(str::to_owned);
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(file, &options).await
}

/// What a server answers when it is asked how it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// It serves
    Ready,
    /// It answers, but does not want to serve
    NotReady(String),
    /// Nobody takes the connection
    Refused(String),
    /// It does not answer in time
    Hung(String),
}

/// Asks a server whether it serves. Who may not ask that has an answer all the same; but one that was
/// learnt, and does not know who this is, is another one than the configured ones stand for.
pub(super) async fn ask(client: &Client, server: &Server, pace: &Pace) -> Answer {
    let request = match Request::get("/readyz").body(Body::empty()) {
        Ok(request) => request,
        Err(error) => return Answer::Refused(error.to_string()),
    };
    match tokio::time::timeout(pace.answer, client.send(request)).await {
        Err(_) => Answer::Hung(format!("it does not answer within {:?}", pace.answer)),
        Ok(Err(error)) => Answer::Refused(chain(&error)),
        Ok(Ok(response)) if response.status().is_server_error() => {
            Answer::NotReady(format!("it is not ready: {}", response.status()))
        }
        Ok(Ok(response)) if server.learnt && response.status() == StatusCode::UNAUTHORIZED => {
            Answer::Refused("it does not know who this is: 401 Unauthorized".to_owned())
        }
        Ok(Ok(_)) => Answer::Ready,
    }
}

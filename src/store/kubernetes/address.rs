//! Which namespace of which cluster, as whom. What is asked for is checked here, before anything is started; the files are
//! read again whenever the cluster refuses what they said. Must never name a cluster that the user did not.

use std::fmt;
use std::path::PathBuf;

use http::Uri;
use kube::Config;
use kube::config::Kubeconfig;

use super::access::Shared;
use crate::lease::LeaseName;
use crate::store::server::Variable;

#[derive(Clone)]
pub struct Address {
    pub namespace: String,
    pub source: Source,
    pub pod: Pod,
    /// One for all connections of this process: an exec plugin may need seconds, and is not to be asked at every error.
    pub access: Shared,
    shown: String,
}

/// Where cluster and credentials come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The account of the pod. Token and CA file rotate.
    InCluster,
    /// Files, the first of which wins, a context in them, and the server that it named at first.
    Kubeconfig { files: Vec<PathBuf>, context: Option<String>, server: Option<Uri> },
}

/// What the downward API says of this pod.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    pub name: Option<String>,
    pub uid: Option<String>,
}

impl Address {
    /// The error names what is wrong, never the URL, which may hold a password.
    pub fn parse(url: &str, variable: Variable<'_>) -> Result<Address, String> {
        let rest = url.split_once(':').map_or("", |(_, rest)| rest);
        if rest.starts_with('/') {
            return Err("no slashes; write kubernetes:NAMESPACE, or kubernetes: for the namespace of the pod or context".to_string());
        }
        let (namespace, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut context, mut file) = (None, None);
        for (key, value) in query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, ""))) {
            match key {
                "context" if !value.is_empty() => context = Some(value.to_string()),
                "kubeconfig" if !value.is_empty() => file = Some(PathBuf::from(value)),
                _ => return Err("after ? there are context=NAME and kubeconfig=PATH, joined by &, and nothing else".to_string()),
            }
        }
        if !namespace.is_empty() && (namespace.len() > 63 || !is_label(namespace)) {
            let rule = "at most 63 of a-z 0-9 -, a letter or digit first and last";
            return Err(format!("not the name of a namespace ({rule}); write kubernetes:NAMESPACE"));
        }
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let mut source = Source::find(file, context, variable)?;
        let config = source.settle()?;
        let namespace = if namespace.is_empty() { config.default_namespace.trim() } else { namespace }.to_string();
        let host = config.cluster_url.host().unwrap_or("?").to_string();
        let port = config.cluster_url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let shown = format!("kubernetes:{namespace} at {host}{port}");
        let pod = Pod { name: text("POD_NAME"), uid: text("POD_UID") };
        Ok(Address { namespace, source, pod, access: Shared::default(), shown })
    }
}

impl Address {
    pub fn in_pod(&self) -> bool {
        matches!(self.source, Source::InCluster)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl Source {
    /// As kubectl looks: what is named, KUBECONFIG, the file in the home folder, and then the pod's account.
    fn find(file: Option<PathBuf>, context: Option<String>, variable: Variable<'_>) -> Result<Source, String> {
        // lockrun leaves its folder soon.
        let absolute = |path: PathBuf| std::path::absolute(&path).map_err(|error| format!("{}: {error}", path.display()));
        let named = file.is_some() || context.is_some();
        let mut files: Vec<PathBuf> = file.into_iter().collect();
        if files.is_empty() {
            let list = variable("KUBECONFIG").unwrap_or_default();
            files = std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
        }
        if files.is_empty() {
            let home = variable("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
            let in_pod = variable("KUBERNETES_SERVICE_HOST").is_some();
            match home {
                Some(home) if home.exists() => files.push(home),
                _ if in_pod && !named => return Ok(Source::InCluster),
                _ => {
                    return Err(
                        "no cluster: this is no pod and there is no ~/.kube/config; set KUBECONFIG, or ?kubeconfig=PATH".to_string()
                    );
                }
            }
        }
        let files = files.into_iter().map(absolute).collect::<Result<_, _>>()?;
        Ok(Source::Kubeconfig { files, context, server: None })
    }

    /// The first reading: what is found is what all later ones must find. kubectl may name another context while lockrun
    /// runs, and a waiter that moved to another cluster would start its command beside the one here.
    fn settle(&mut self) -> Result<Config, String> {
        let (config, found) = self.read_with_context()?;
        if let Source::Kubeconfig { context, server, .. } = self {
            (*context, *server) = (found, Some(config.cluster_url.clone()));
        }
        Ok(config)
    }

    /// Reads the files anew. Blocks for as long as the disk does.
    pub fn read(&self) -> Result<Config, String> {
        self.read_with_context().map(|(config, _)| config)
    }

    fn read_with_context(&self) -> Result<(Config, Option<String>), String> {
        let (files, context, server) = match self {
            Source::InCluster => {
                let config = Config::incluster().map_err(|error| {
                    format!("the account of this pod: {}; mount its token (automountServiceAccountToken), or set KUBECONFIG", chain(&error))
                });
                return Ok((config?, None));
            }
            Source::Kubeconfig { files, context, server } => (files, context, server),
        };
        let mut whole = Kubeconfig::default();
        for file in files {
            let why = |error| format!("{}: not a kubeconfig that can be read: {}; mend it", file.display(), chain(&error));
            whole = Kubeconfig::read_from(file).and_then(|next| whole.merge(next)).map_err(why)?;
        }
        if let Some(context) = context {
            whole.current_context = Some(context.clone());
        }
        let context = whole.current_context.clone();
        let shown = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(":");
        let proxied = proxy(&whole).is_some();
        let mut config =
            Config::try_from(whole).map_err(|error| format!("{shown}: {}; mend it, or name another context", chain(&error)))?;
        if proxied {
            return Err(format!("{shown}: proxy-url: lockrun goes through no proxy; name a context that reaches the API server itself"));
        }
        if let Some(provider) = &config.auth_info.auth_provider {
            return Err(format!("{shown}: auth-provider {}: gone from Kubernetes since 1.26; use its exec plugin", provider.name));
        }
        if server.as_ref().is_some_and(|server| *server != config.cluster_url) {
            return Err(format!("{shown}: names another server by now; lockrun stays with the one it began with: start it anew to move"));
        }
        // HTTPS_PROXY is the command's.
        config.proxy_url = None;
        Ok((config, context))
    }
}

/// The proxy of the cluster that the current context names.
fn proxy(kubeconfig: &Kubeconfig) -> Option<&String> {
    let context =
        kubeconfig.contexts.iter().find(|context| Some(&context.name) == kubeconfig.current_context.as_ref())?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.as_ref().filter(|proxy| !proxy.is_empty())
}

/// Lower case, digits, dots and dashes (RFC 1123), as the API server has it.
pub fn check_name(name: &LeaseName) -> Result<(), String> {
    if name.as_str().split('.').all(is_label) {
        return Ok(());
    }
    Err("on Kubernetes it names a Lease, so it is a DNS subdomain: a-z 0-9 . -, each part with a letter or digit first and last"
        .to_string())
}

fn is_label(text: &str) -> bool {
    let inner = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.iter().all(|letter| inner(*letter) || *letter == b'-')
        && [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(|end| inner(*end)))
}

/// An error with what is below it, on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = error.source();
    }
    text
}
